"""Pairs of neighbouring pieces of documents: next-sentence and sentence-order prediction."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from encoders.data.sources.base import Corruption, Source
from encoders.data.sources.tokens import open_store
from encoders.errors import ConfigError, DataError


@dataclasses.dataclass(kw_only=True, eq=False)
class SentencePairs(Source):
    """[CLS] A [SEP] B [SEP] from documents whose sentences `tools.prepare_data --sentences` kept.

    A document is cut into chunks of sentences that about fill a row. A chunk is split at a random
    sentence; what is too long loses tokens of the longer half, at random ends (BERT, arXiv
    1810.04805, appendix A.2, and its create_pretraining_data).

    'nsp': B is the rest of the chunk (label 0), or else, half the time and whenever a chunk is one
    sentence, begins at a random sentence of another document (label 1). What B took the place of is
    not put back into the document: it comes in another epoch.
    'sop': the halves are in order (label 0), or half the time swapped (label 1); chunks of one
    sentence are left out (ALBERT, arXiv 1909.11942, section 3.1).

    An example is {'ids', 'segments', 'token_types' [T] int32, 'word_start' [T] bool, 'label'}.
    Splits and choices are drawn anew every time an example comes.

    Attributes:
      path: a directory, or 'sample:peps'.
      split: which split of it.
      task: 'nsp' or 'sop'.
      length: T; None is preprocessing.max_length.
      short_seq_prob: share of the examples that are cut to a random length, so that encoders meet
        short inputs too.
      preprocessing: tokenizer and longest length (supplied).
    """

    path: str
    split: str = "train"
    task: Literal["nsp", "sop"] = "nsp"
    length: int | None = None
    short_seq_prob: float = 0.1
    preprocessing: Any = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        longest = self.preprocessing.max_length
        self._row = self.length or longest
        self._tokenizer = self.preprocessing.opened
        self._room = self._row - self._tokenizer.frame_size(2)
        if self._room < 2 or self._row > longest:
            raise ConfigError(
                f"data source: length: expected room for two texts and no more than "
                f"preprocessing.max_length, {longest}, got {self._row}."
            )
        if not 0 <= self.short_seq_prob <= 1:
            raise ConfigError(
                f"data source: short_seq_prob: expected a number in [0, 1], got "
                f"{self.short_seq_prob}."
            )
        self.store = open_store(self.path, self.split, self.preprocessing)
        if self.store.sentence_counts is None:
            raise DataError(
                f"data source: '{self.path}' does not say where sentences end; prepare it with "
                f"tools.prepare_data --from text --sentences."
            )
        super().__post_init__()
        if self.task == "nsp" and len(self._documents) < 2:
            raise DataError("data source: pairs of two documents need two documents, found one.")

    def _slice(self) -> None:
        # The part is taken of the documents, and every chunk of them is an example.
        self._documents = self._part_of(len(self.store))
        chunks = [self._chunks_of(document) for document in self._documents.tolist()]
        whole = np.concatenate(chunks) if chunks else np.zeros((0, 3), np.int64)
        if self.task == "sop":
            whole = whole[whole[:, 2] - whole[:, 1] > 1]
        self._chunks = whole
        self._total = self._length = len(whole)
        self._first = 0

    def _chunks_of(self, document: int) -> np.ndarray:
        """[C, 3] int64: the document, and its sentences [first, stop) of each chunk.

        Sentences that begin in the same `room` tokens of the document are one chunk.
        """
        lengths = self.store.sentences(document)
        windows = (np.cumsum(lengths) - lengths) // self._room
        firsts = np.flatnonzero(np.diff(windows, prepend=-1))
        stops = np.append(firsts[1:], len(lengths))
        return np.stack([np.full(len(firsts), document), firsts, stops], axis=1)

    def draw(
        self, index: int, rng: np.random.Generator, met: list[Corruption] | None = None
    ) -> dict[str, Any]:
        """The example at `index`, with the random choices that the pipeline's generator makes."""
        del met  # no sentence is corrupt
        return self._draw(self._locate(index), rng)

    def _read(self, index: int) -> dict[str, Any]:
        return self._draw(index, np.random.Generator(np.random.Philox(key=[0, index])))

    def _draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        document, first, stop = self._chunks[index].tolist()
        target = self._room
        if rng.random() < self.short_seq_prob:
            target = int(rng.integers(2, self._room + 1))
        ends = np.cumsum(self.store.sentences(document)[first:stop])
        count = min(int(np.searchsorted(ends, target)) + 1, len(ends))
        if self.task == "sop":
            count = max(2, count)
        split = 1 if count == 1 else int(rng.integers(1, count))
        a = self._sentences(document, first, first + split)
        label = int(count == 1 or rng.random() < 0.5)
        if self.task == "nsp" and label:
            b = self._other(document, target - len(a), rng)
        else:
            b = self._sentences(document, first + split, first + count)
            if label:
                a, b = b, a
        a, b = _shorten(a, b, self._room, rng)
        token_types = self.preprocessing.token_types
        fields = self._tokenizer.fields([a, b], self._row, token_types=token_types)
        return {**fields, "label": label}

    def _sentences(self, document: int, first: int, stop: int) -> np.ndarray:
        """The tokens of the sentences [first, stop) of a document."""
        ends = np.concatenate([[0], np.cumsum(self.store.sentences(document)[:stop])])
        return self.store.read(document, int(ends[first]), int(ends[stop]))

    def _other(self, document: int, target: int, rng: np.random.Generator) -> np.ndarray:
        """At least a sentence of another document, from a random one on, up to `target` tokens."""
        here = int(np.searchsorted(self._documents, document))
        place = int(rng.integers(len(self._documents) - 1))
        other = int(self._documents[place + (place >= here)])
        lengths = self.store.sentences(other)
        first = int(rng.integers(len(lengths)))
        ends = np.cumsum(lengths[first:])
        count = min(int(np.searchsorted(ends, target)) + 1, len(ends))
        return self._sentences(other, first, first + count)

    def _describe(self, index: int) -> str:
        document, first, _ = self._chunks[index].tolist()
        return f"sentence {first} from {self.store.describe(document)} on"


def _shorten(
    a: np.ndarray, b: np.ndarray, room: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Takes tokens from the longer text, each from its beginning or its end by chance."""
    short = min(len(a), len(b))
    if len(a) + len(b) <= room:
        return a, b
    kept = [room - short if len(text) > short else short for text in (a, b)]
    if 2 * short > room:
        kept = [room - room // 2, room // 2]
    cut = []
    for text, length in zip((a, b), kept, strict=True):
        front = int(rng.binomial(len(text) - length, 0.5))
        cut.append(text[front : front + length])
    return cut[0], cut[1]
