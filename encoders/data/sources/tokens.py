"""Prepared tokens in rows of one length, packed so that hardly any of a row is padding."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Literal

import numpy as np

from encoders.data.packing import best_fit, cut
from encoders.data.paths import locate
from encoders.data.permutation import permute
from encoders.data.sources.array_record import ArrayRecord
from encoders.data.sources.base import Source
from encoders.data.token_store import TOKENIZER, TokenStore
from encoders.data.tokenized_texts import TokenizedTexts
from encoders.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_STREAM_KEY = 0x57_8EA  # the order in which documents are concatenated; fixed


def open_store(path: str, split: str, preprocessing: Any) -> TokenStore | TokenizedTexts:
    """The documents of a split, whose tokenizer must be that of the preprocessing.

    Raises:
      DataError: it is another, or there are no such documents.
    """
    records = ArrayRecord(path=str(locate(path)), split=split)
    if "tokenizer" not in records.info:
        return TokenizedTexts(records, preprocessing.opened, path)
    store = TokenStore(path, split)
    if store.tokenizer_hash != preprocessing.opened.hash:
        raise DataError(
            f"data source: '{path}' was made with another tokenizer than preprocessing.tokenizer; "
            f"use its own, {store.directory / TOKENIZER}."
        )
    return store


@dataclasses.dataclass(kw_only=True, eq=False)
class Tokens(Source):
    """Rows of T tokens from documents that `tools.prepare_data --from text` has tokenised.

    Or from a small prepared data set of texts, such as 'sample:banking77', which are then tokenised
    whenever it is opened.

    An example is {'ids', 'segments' [T] int32, 'word_start' [T] bool}. Segments number the texts of
    a row from 1, and padding is 0.

    Documents longer than a row are cut. 'best_fit' packs the chunks, each a segment of its own,
    into few rows (encoders.data.packing); 'none' gives each chunk a row; 'concatenated' cuts rows
    from one stream of all documents with [SEP] between them, each row one segment (RoBERTa's
    full sentences, arXiv 1907.11692, section 4.2, but cut at any token).

    A part (`start`, `stop`) is one of documents, so that no document is in two parts.

    Attributes:
      path: the directory, or 'sample:NAME'.
      split: which split of it.
      length: T; None is preprocessing.max_length.
      packing: how documents become rows.
      wrap: put [CLS] before and [SEP] after every chunk, or, concatenated, every row.
      preprocessing: tokenizer and longest length (supplied).
    """

    path: str
    split: str = "train"
    length: int | None = None
    packing: Literal["best_fit", "none", "concatenated"] = "best_fit"
    wrap: bool = True
    preprocessing: Any = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        longest = self.preprocessing.max_length
        self._row = self.length or longest
        if not 3 <= self._row <= longest:
            raise ConfigError(
                f"data source: length: expected from 3 to preprocessing.max_length, {longest}, got "
                f"{self._row}."
            )
        self.store = open_store(self.path, self.split, self.preprocessing)
        self._tokenizer = self.preprocessing.opened
        super().__post_init__()
        logger.info(
            "%s of %s: %d documents in %d rows of %d tokens, of which %.2f %% are padding",
            self.split, self.path, len(self._documents), self._length, self._row,
            100 * self.padding,
        )  # fmt: skip

    def _slice(self) -> None:
        # The part is taken of the documents, and every row of it is an example.
        self._documents = self._part_of(len(self.store))
        lengths = self.store.lengths[self._documents]
        around = 2 * self.wrap
        self._room = self._row - around
        if self.packing == "concatenated":
            order = permute(np.arange(len(lengths)), len(lengths), _STREAM_KEY)
            self._documents, lengths = self._documents[order], lengths[order]
            # The stream has one more token per document, the [SEP] after it.
            self._stream = np.concatenate([[0], np.cumsum(lengths + 1)])
            rows = -(-int(self._stream[-1]) // self._room)
            filled = int(self._stream[-1]) + rows * around
        else:
            chunks = cut(lengths, self._room)
            ends = np.arange(1, len(chunks) + 1)
            if self.packing == "best_fit":
                order, ends = best_fit(chunks.length + around, self._row)
                chunks = chunks.take(order)
            self._chunks, self._ends = chunks, ends
            rows, filled = len(ends), int(lengths.sum()) + len(chunks) * around
        self._total = self._length = rows
        self._first = 0
        self._filled = filled

    @property
    def padding(self) -> float:
        """The share of all places in all rows that is padding."""
        return 1 - self._filled / (self._length * self._row)

    @property
    def unigram_entropy(self) -> float:
        """Of the whole split, in nats per token, see `TokenStore.unigram_entropy`."""
        return self.store.unigram_entropy

    def _parts(self, row: int) -> list[list[tuple[int, int, int]]]:
        """The segments of a row, each of parts (document, start, stop)."""
        if self.packing == "concatenated":
            return [self._parts_of_stream(row)]
        chunks, first = self._chunks, int(self._ends[row - 1]) if row else 0
        return [
            [(int(self._documents[chunks.document[i]]), start, start + int(chunks.length[i]))]
            for i in range(first, int(self._ends[row]))
            for start in (int(chunks.start[i]),)
        ]

    def _parts_of_stream(self, row: int) -> list[tuple[int, int, int]]:
        begin, end = row * self._room, min((row + 1) * self._room, int(self._stream[-1]))
        number = int(np.searchsorted(self._stream, begin, side="right")) - 1
        parts = []
        while begin < end:
            first, stop = int(self._stream[number]), int(min(self._stream[number + 1], end))
            parts.append((int(self._documents[number]), begin - first, stop - first))
            begin, number = stop, number + 1
        return parts

    def _read(self, index: int) -> dict[str, Any]:
        special, tokenizer = self._tokenizer.vocabulary, self._tokenizer
        ids = np.full(self._row, special.pad_id, np.int32)
        segments = np.zeros(self._row, np.int32)
        word_start = np.zeros(self._row, bool)
        at = 0
        for number, parts in enumerate(self._parts(index), 1):
            texts = [np.full(int(self.wrap), special.cls_id)]
            for document, start, stop in parts:
                length = int(self.store.lengths[document])
                if start < length:
                    texts.append(self.store.read(document, start, min(stop, length)))
                if stop > length:
                    texts.append(np.full(1, special.sep_id))
            texts.append(np.full(int(self.wrap), special.sep_id))
            place = slice(at, at + sum(map(len, texts)))
            ids[place], segments[place] = np.concatenate(texts), number
            # What a cut leaves of a word counts as a word.
            word_start[place] = np.concatenate([tokenizer.word_starts(text) for text in texts])
            at = place.stop
        return {"ids": ids, "segments": segments, "word_start": word_start}

    def _describe(self, index: int) -> str:
        document, start, _ = self._parts(index)[0][0]
        return f"row {index} from {self.store.describe(document, start)} on"
