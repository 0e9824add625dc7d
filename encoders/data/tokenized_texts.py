"""A small prepared data set of texts as the documents of a token store, without a store on disk."""

from __future__ import annotations

import functools
import logging

import numpy as np

from encoders.data.sources.base import CorruptExample, Source
from encoders.data.token_store import unigram_entropy
from encoders.data.tokenizer import Tokenizer
from encoders.errors import DataError

logger = logging.getLogger(__name__)

_MOST = 200_000  # texts, which take some seconds to tokenise; more are prepared once


class TokenizedTexts:
    """What `TokenStore` is, of texts that are tokenised when it is made, each a document.

    Args:
      texts: a source whose examples have a 'text'.
      tokenizer: makes the ids; special tokens that a text spells out are text.
      path: where the texts are, for errors.

    Raises:
      DataError: the examples have no texts, or are too many to be tokenised at every start.
    """

    sentence_counts = None

    def __init__(self, texts: Source, tokenizer: Tokenizer, path: str):
        how = "tools.prepare_data --from text"
        if len(texts) > _MOST:
            raise DataError(
                f"data source: '{path}' has {len(texts)} texts, too many to be tokenised at every "
                f"start; prepare them once by {how}."
            )
        found, corrupt = [], 0
        for index in range(len(texts)):
            try:
                text = texts[index].get("text")
            except CorruptExample:
                text, corrupt = "", corrupt + 1
            if not isinstance(text, str):
                raise DataError(
                    f"data source: '{path}' holds no tokens; expected a directory written by "
                    f"{how}, or examples with one 'text'."
                )
            found.append(text)
        if corrupt:
            logger.warning("%s: %d corrupt texts are left out", path, corrupt)
        self._texts = texts
        self._ids = tokenizer.literal().batch_ids(found)
        self.lengths = np.array([len(ids) for ids in self._ids], np.int64)
        size = tokenizer.vocabulary.size
        self.frequencies = np.bincount(np.concatenate(self._ids).astype(np.int64), minlength=size)
        self.tokenizer_hash = tokenizer.hash

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.lengths)

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of a document, int32."""
        return self._ids[document][start:stop].astype(np.int32)

    @functools.cached_property
    def unigram_entropy(self) -> float:
        """As that of `TokenStore`."""
        return unigram_entropy(self.frequencies)

    def describe(self, document: int, start: int = 0) -> str:
        """Where a person finds a document."""
        return self._texts.describe(document)
