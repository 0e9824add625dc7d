"""What all sources have in common: length, random access, names for the log, and slices."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from typing import Any

import numpy as np

from encoders.data.permutation import permute
from encoders.errors import ConfigError, DataError, nearest

_SLICE_KEY = 0x51_1CE  # the order that slices are cut from; fixed, so that parts never overlap


class CorruptExample(Exception):
    """One example cannot be used; the pipeline counts it, names it, and takes another."""


@dataclasses.dataclass(frozen=True)
class Corruption:
    """An example, or a part of one, that could not be used: where it is, and what was wrong."""

    name: str
    reason: str


@dataclasses.dataclass(kw_only=True, eq=False)
class Source:
    """Random access to examples. Subclasses write `_count`, `_read` and maybe `_describe`.

    `start` and `stop` take a part of the examples, for held-out parts that a data set does not
    come with: stop=0.9 and start=0.9 share no example and miss none. A part is a fixed
    pseudo-random choice, not a contiguous run, because folders are sorted by class.

    Attributes:
      start: fraction of the examples at which the part begins.
      stop: fraction of the examples before which it ends.
    """

    start: float = 0.0
    stop: float = 1.0

    indivisible = ""  # why parts of it cannot be taken, for an error

    def __post_init__(self) -> None:
        if not 0.0 <= self.start < self.stop <= 1.0:
            raise ConfigError(
                f"data source: expected 0 <= start < stop <= 1, got start={self.start}, "
                f"stop={self.stop}."
            )
        if self.indivisible and (self.start, self.stop) != (0, 1):
            raise ConfigError(f"data source: start, stop: {self.indivisible}.")
        self._slice()
        if self._length <= 0:
            raise DataError(f"{self!r} holds no examples ({self._total} before slicing).")

    def _slice(self) -> None:
        """Finds out how many examples there are, and which of them are in the part."""
        self._total = self._count()
        self._first = round(self.start * self._total)
        self._length = round(self.stop * self._total) - self._first

    # What a subclass provides --------------------------------------------------------------------

    def _count(self) -> int:
        """The number of examples before slicing."""
        raise NotImplementedError

    def _read(self, index: int) -> dict[str, Any]:
        """The example at an index before slicing; raises CorruptExample where it is unusable."""
        raise NotImplementedError

    def _describe(self, index: int) -> str:
        """Where a person finds that example: a file name, or a file and a number."""
        return f"example {index} of {type(self).__name__}"

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the labels 0, 1, ..., where the data set has them."""
        return None

    # What others use
    # --------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The example at `index`: {'image': uint8 [H, W, C] or encoded bytes, 'label': int, ...}.

        Raises:
          CorruptExample: the example cannot be read.
          IndexError: outside [0, len).
        """
        return self._read(self._locate(index))

    def describe(self, index: int) -> str:
        """Where a person finds the example: a file name, or a file and a number."""
        return self._describe(self._locate(index))

    def _locate(self, index: int) -> int:
        index = int(index)
        if not 0 <= index < self._length:
            raise IndexError(f"index {index} of a source of {self._length} examples")
        return int(self._permuted(np.array(index)))

    def _permuted(self, indices: np.ndarray) -> np.ndarray:
        """Where examples of the part are among all."""
        if self._length == self._total:
            return indices
        return permute(self._first + indices, self._total, _SLICE_KEY)

    def _part_of(self, total: int) -> np.ndarray:
        """The part (`start`, `stop`) of `total` things that examples are made of, sorted."""
        chosen = np.arange(round(self.start * total), round(self.stop * total))
        if len(chosen) == total:
            return chosen
        return np.sort(permute(chosen, total, _SLICE_KEY))

    def indices_at(self, positions: np.ndarray, seed: int, shuffle: bool) -> np.ndarray:
        """Which example stands at each position of the endless stream of epochs.

        Args:
          positions: [B] int64, step * batch_size + row.
          seed: picks the order; every epoch has another.
          shuffle: False keeps the source's own order in every epoch.

        Returns:
          [B] int64 indices in [0, len).
        """
        return epoch_order(positions, self._length, seed, shuffle)

    def span(self, index: int) -> tuple[int, int]:
        """The range of indices that may replace a corrupt example: here all of them."""
        del index
        return 0, self._length


def read(
    source: Any, index: int, rng: np.random.Generator, met: list[Corruption] | None = None
) -> dict[str, Any]:
    """The example at an index; a source with `draw(index, rng, met)` makes it anew each time.

    Such are sources whose examples are random choices from a data set, as negatives are. A choice
    that cannot be used may give way to another, for which it is added to `met`; without a list, it
    makes the example corrupt.
    """
    draw = getattr(source, "draw", None)
    return source[index] if draw is None else draw(index, rng, met)


def lengths_of(source: Any, sample_rate: int) -> np.ndarray:
    """int64 [N] samples of each of a source's clips at a rate.

    Raises:
      ConfigError: the source does not know them.
    """
    find = getattr(source, "lengths", None)
    if find is None:
        raise ConfigError(
            f"preprocessing.bucket_samples: expected a source that knows how long its clips are, "
            f"such as 'audio', got {type(source).__name__}."
        )
    return np.asarray(find(sample_rate))


def epoch_order(positions: np.ndarray, size: int, seed: int, shuffle: bool) -> np.ndarray:
    """[B] positions -> [B] indices, where epoch p // size is shuffled by a key of its own."""
    positions = np.asarray(positions, np.int64)
    epochs, offsets = np.divmod(positions, size)
    if not shuffle:
        return offsets
    indices = np.empty_like(offsets)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = permute(offsets[here], size, seed, int(epoch))
    return indices


def check_directory(directory: pathlib.Path, expected: str) -> None:
    """Raises a DataError that names the nearest existing neighbour unless `directory` is one."""
    if directory.is_dir():
        return
    parent = directory.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    neighbours = [p.name for p in itertools.islice(parent.iterdir(), 1000) if p.is_dir()]
    hint = nearest(directory.name, neighbours) if parent == directory.parent and neighbours else ""
    raise DataError(f"data source: no directory '{directory}'; expected {expected}.{hint}")
