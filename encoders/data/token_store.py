"""Documents as token ids on disk, as tools.prepare_data --from text writes them.

Beside info.json and the shards of an ordinary prepared data set lie tokenizer.json and, for each
shard, <shard>.index.npz with

    lengths           [D] uint32, tokens of each document
    frequencies       [V] uint64, how often each id occurs
    sentence_counts   [D] uint32, and
    sentence_lengths  [S] uint32, where sentences were kept

A record is {'ids': uint16 or uint32 [n]}, a document or at most so many tokens of a longer one as
info.json says (`piece`), so that a chunk of a novel costs no reading of the novel. Lengths tell
which records hold a document.
"""

from __future__ import annotations

import functools
import pathlib
import zipfile
from typing import Any

import numpy as np

from encoders.data.paths import locate
from encoders.data.sources.array_record import ArrayRecord
from encoders.data.sources.base import CorruptExample
from encoders.errors import DataError

INDEX_SUFFIX = ".index.npz"
TOKENIZER = "tokenizer.json"


class TokenStore:
    """Random access to the tokens of the documents of one split.

    Args:
      path: the directory, or 'sample:NAME'.
      split: which split of info.json.

    Raises:
      DataError: the directory is none that `tools.prepare_data --from text` wrote, or damaged.
    """

    def __init__(self, path: str, split: str):
        self.directory = locate(path)
        self._records = ArrayRecord(path=str(self.directory), split=split)
        self._tokenizer = self._records.info.get("tokenizer")
        if self._tokenizer is None:
            raise DataError(
                f"data source: '{path}' holds no tokens; expected a directory written by "
                f"tools.prepare_data --from text."
            )
        shards = self._records.info["splits"][split]["shards"]
        indices = [
            read_index(self.directory / f"{shard['file']}{INDEX_SUFFIX}") for shard in shards
        ]
        self.lengths = np.concatenate([one["lengths"] for one in indices]).astype(np.int64)
        self.frequencies = np.sum([one["frequencies"] for one in indices], axis=0)
        self._piece = self._records.info["piece"]
        self._first = np.concatenate([[0], np.cumsum(-(-self.lengths // self._piece))])
        if self._first[-1] != len(self._records):
            raise DataError(
                f"data source: the indices of '{path}' list {self._first[-1]} records, but the "
                f"shards hold {len(self._records)}; prepare it again."
            )
        self.sentence_counts: np.ndarray | None = None
        if all("sentence_counts" in one for one in indices):
            counts = np.concatenate([one["sentence_counts"] for one in indices])
            self.sentence_counts = counts.astype(np.int64)
            self._sentence_lengths = np.concatenate([one["sentence_lengths"] for one in indices])
            self._first_sentence = np.concatenate([[0], np.cumsum(self.sentence_counts)])

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.lengths)

    @property
    def tokenizer_hash(self) -> str:
        """Of the tokenizer that made the ids, see `Tokenizer.hash`."""
        return self._tokenizer["hash"]

    @property
    def vocabulary_size(self) -> int:
        """Ids are below this."""
        return self._tokenizer["size"]

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of a document, int32.

        Raises:
          CorruptExample: a record is damaged.
        """
        first = int(self._first[document])
        pieces = range(start // self._piece, -(-stop // self._piece))
        parts = []
        for piece in pieces:
            ids = self._records[first + piece].get("ids")
            offset = piece * self._piece
            expected = min(self._piece, int(self.lengths[document]) - offset)
            if not isinstance(ids, np.ndarray) or ids.shape != (expected,):
                raise CorruptExample("the record is no piece of this document")
            parts.append(ids[max(0, start - offset) : stop - offset])
        ids = parts[0] if len(parts) == 1 else np.concatenate(parts)
        ids = ids.astype(np.int32)
        if len(ids) and ids.max() >= self.vocabulary_size:
            raise CorruptExample(
                f"id {ids.max()} is beyond the {self.vocabulary_size} of the tokenizer"
            )
        return ids

    def sentences(self, document: int) -> np.ndarray:
        """[S] int64, the lengths of a document's sentences, which add up to its own."""
        first, stop = self._first_sentence[document : document + 2]
        return self._sentence_lengths[first:stop].astype(np.int64)

    @functools.cached_property
    def unigram_entropy(self) -> float:
        """Entropy of the frequencies of ids, in nats per token.

        The loss of a model that knows how frequent tokens are and nothing of their context:
        what masked language modelling must beat, and where it may stall.
        """
        return unigram_entropy(self.frequencies)

    def describe(self, document: int, start: int = 0) -> str:
        """Where a person finds a token of a document."""
        return self._records.describe(int(self._first[document]) + start // self._piece)


def unigram_entropy(frequencies: np.ndarray) -> float:
    """[V] counts -> the entropy of their shares, in nats."""
    counts = np.asarray(frequencies, np.float64)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def read_index(path: pathlib.Path) -> dict[str, Any]:
    """The arrays of the index of a shard.

    Raises:
      DataError: it is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise DataError(f"data source: index {path} is missing.") from error
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"data source: index {path} is damaged ({error}).") from error
