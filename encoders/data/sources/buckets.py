"""Clips in batches of a few static lengths: hardly any of a batch is padding."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np

from encoders.data.sources.base import Corruption, Source, epoch_order, lengths_of, read
from encoders.data.sources.mixture import place, seed_of, shares_of
from encoders.errors import ConfigError

logger = logging.getLogger(__name__)


def in_buckets(source: Any, preprocessing: Any, batch_size: int) -> Any:
    """The source in the buckets that the preprocessing asks for; itself where it asks for none."""
    sizes = getattr(preprocessing, "bucket_samples", None)
    if sizes is None:
        return source
    rate, least = preprocessing.sample_rate, preprocessing.min_samples
    return Buckets(source, sizes, rate, batch_size, least)


def by_length(source: Any, preprocessing: Any, batch_size: int) -> list[Any]:
    """Sources of the clips of each bucket, for a pass over all of them that keeps no order.

    Clips that are less than a batch are padded to the next length, where there is one. The source
    itself is the only one where there are no buckets, or it does not know lengths.
    """
    try:
        found = in_buckets(source, preprocessing, batch_size)
    except ConfigError:  # that training raises; here the longest length is as good
        return [source]
    return [source] if found is source else found.parts(batch_size)


class Buckets:
    """Another source, sorted into buckets by length; every batch is of one of them.

    Which bucket a step has is an integer formula of the step, as the sources of a `Mixture` are of
    the position, and each runs through shuffled epochs of its own: nothing is dropped, and in as
    many steps as an epoch of all clips has, every clip comes once, but for those of the one batch
    per bucket in which an epoch of it ends and the next begins.

    An example has 'bucket_samples', for the transform 'crop_audio'.

    Args:
      source: has `lengths(sample_rate)`.
      sizes: samples, ascending. A clip is in the first bucket that it fits, or in the last.
      sample_rate: of the sizes.
      batch_size: rows of the global batch.
      least: samples of the shortest clip that can be used. Shorter ones, and those that cannot be
        read, are in the fullest bucket, where there are others to replace them.

    Raises:
      ConfigError: the source does not know lengths.
    """

    def __init__(
        self,
        source: Source,
        sizes: tuple[int, ...],
        sample_rate: int,
        batch_size: int,
        least: int = 1,
    ):
        lengths = lengths_of(source, sample_rate)
        numbers = np.minimum(np.searchsorted(sizes, lengths), len(sizes) - 1)
        usable = lengths >= least
        numbers[~usable] = np.bincount(numbers[usable], minlength=1).argmax()
        counts = np.bincount(numbers, minlength=len(sizes))
        used = np.flatnonzero(counts)
        self.source, self.batch_size = source, batch_size
        self.sizes = tuple(int(sizes[number]) for number in used)
        self._counts = counts[used].tolist()
        self._order = np.argsort(numbers, kind="stable")
        self._shares = shares_of(self._counts)
        self._ends = list(itertools.accumulate(self._counts))
        filled = np.minimum(lengths, np.asarray(sizes)[numbers]).sum()
        self.padding = float(1 - filled / np.dot(self.sizes, self._counts))
        shown = ", ".join(
            f"{size} samples: {count / len(lengths):.1%}"
            for size, count in zip(self.sizes, self._counts, strict=True)
        )
        logger.info(
            "%d clips in buckets (%s), of which %.1f %% are padding; %.1f %% if all had %d",
            len(lengths), shown, 100 * self.padding,
            100 * (1 - np.minimum(lengths, sizes[-1]).mean() / sizes[-1]), sizes[-1],
        )  # fmt: skip

    @property
    def num_buckets(self) -> int:
        """How many lengths there are, of which each has a clip."""
        return len(self.sizes)

    @property
    def shares(self) -> dict[int, float]:
        """Size -> the share of batches that have it."""
        total = self._ends[-1]
        return {s: count / total for s, count in zip(self.sizes, self._counts, strict=True)}

    def bucket_at(self, step: int) -> int:
        """The number of the bucket that the batch at a step is of."""
        return place(step, self._shares)[0]

    def parts(self, least: int) -> list[_Part]:
        """All examples in sources of one length each, of `least` examples or more but the last."""
        found, start = [], 0
        for size, end in zip(self.sizes, self._ends, strict=True):
            if end - start >= least:
                found.append(_Part(self, range(start, end), size))
                start = end
        if start < len(self):  # too few, but those before are not to be padded with them
            found.append(_Part(self, range(start, len(self)), self.sizes[-1]))
        return found

    def first_of(self, bucket: int) -> int:
        """The index of the first example of a bucket."""
        return self._ends[bucket] - self._counts[bucket]

    @property
    def starts(self) -> tuple[int, ...]:
        """The index of the first example of each source of a mixture, as `Mixture.starts`."""
        places = np.argsort(self._order)
        return tuple(int(places[start]) for start in getattr(self.source, "starts", ()))

    def indices_at(self, positions: np.ndarray, seed: int, shuffle: bool) -> np.ndarray:
        """[B] positions -> [B] indices, as `Source.indices_at`."""
        steps, rows = np.divmod(np.asarray(positions, np.int64), self.batch_size)
        indices = np.empty_like(steps)
        for step in np.unique(steps).tolist():
            bucket, ordinal = place(step, self._shares)
            here = steps == step
            own = epoch_order(
                ordinal * self.batch_size + rows[here],
                self._counts[bucket],
                seed_of(seed, bucket),
                shuffle,
            )
            indices[here] = own + self.first_of(bucket)
        return indices

    def span(self, index: int) -> tuple[int, int]:
        """A corrupt clip is replaced by one of its bucket."""
        bucket = int(np.searchsorted(self._ends, index, side="right"))
        return self.first_of(bucket), self._ends[bucket]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.draw(index, np.random.default_rng(0))

    def draw(
        self, index: int, rng: np.random.Generator, met: list[Corruption] | None = None
    ) -> dict[str, Any]:
        """The example, drawn if the source draws."""
        bucket = int(np.searchsorted(self._ends, index, side="right"))
        example = read(self.source, int(self._order[index]), rng, met)
        return {**example, "bucket_samples": self.sizes[bucket]}

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Those of the source."""
        return self.source.class_names

    def describe(self, index: int) -> str:
        """Where a person finds the example."""
        return self.source.describe(int(self._order[index]))


class _Part:
    """A range of the examples of `Buckets`, of one length."""

    def __init__(self, buckets: Buckets, indices: range, size: int):
        self._buckets, self.indices, self._size = buckets, indices, size

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self._buckets[self.indices[index]], "bucket_samples": self._size}

    def describe(self, index: int) -> str:
        return self._buckets.describe(self.indices[index])
