"""Several sources in fixed proportions."""

from __future__ import annotations

import bisect
import fractions
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from encoders.config import build
from encoders.data.sources.base import Corruption, Source, lengths_of, read
from encoders.errors import ConfigError


class Mixture:
    """Interleaves sources by weights: of any P consecutive positions, source k has P * w_k, to
    within one per source.

    Which source a position belongs to, and how many of its positions came before, are integer
    formulas of the position: nothing is drawn and nothing is remembered. Each source then runs
    through epochs of its own. As an ordinary source it is the sources one after the other, with as
    many examples as they have together.

    Args:
      sources: the sources, or their config sections.
      weights: positive numbers, scaled to sum 1; None weighs the sources by their sizes.
      preprocessing: for those of the sources that need one (supplied to those of text).
    """

    def __init__(
        self,
        sources: tuple,
        weights: tuple[float, ...] | None = None,
        preprocessing: Any = None,
    ):
        # The table holds this class too: a mixture may hold mixtures.
        from encoders.data.sources import SOURCES

        context = {} if preprocessing is None else {"preprocessing": preprocessing}
        self.sources: list[Source] = [
            source
            if hasattr(source, "indices_at")
            else build(SOURCES, source, f"sources[{number}]", **context)
            for number, source in enumerate(sources)
        ]
        if not self.sources:
            raise ConfigError("data source: a mixture needs at least one source.")
        sizes = [len(source) for source in self.sources]
        self._weighted = weights is not None
        if weights is None:
            weights = sizes
        if len(weights) != len(sizes) or min(weights) <= 0:
            raise ConfigError(
                f"data source: expected {len(sizes)} positive weights, one per source, got "
                f"{weights}."
            )
        self._shares = shares_of(weights)
        self._ends = list(itertools.accumulate(sizes))

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The class names that all the sources share, or None."""
        names = {source.class_names for source in self.sources}
        return names.pop() if len(names) == 1 else None

    @property
    def indivisible(self) -> str:
        """Why parts of it cannot be taken: what the first of its sources says that has a reason."""
        return next(filter(None, (source.indivisible for source in self.sources)), "")

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, start = self._component(index)
        return self.sources[number][int(index) - start]

    def draw(
        self, index: int, rng: np.random.Generator, met: list[Corruption] | None = None
    ) -> dict[str, Any]:
        """The example, from a source that draws if its source does."""
        number, start = self._component(index)
        return read(self.sources[number], int(index) - start, rng, met)

    def describe(self, index: int) -> str:
        """Where a person finds the example."""
        number, start = self._component(index)
        return self.sources[number].describe(int(index) - start)

    def lengths(self, sample_rate: int) -> np.ndarray:
        """int64 [N] samples of each clip at a rate, where the sources know that.

        Raises:
          ConfigError: one does not, or they have weights, which buckets would not keep.
        """
        if self._weighted:
            raise ConfigError(
                "preprocessing.bucket_samples: buckets take every clip as often as any other; "
                "leave out the weights of the mixture."
            )
        return np.concatenate([lengths_of(source, sample_rate) for source in self.sources])

    @property
    def clusters(self) -> int | None:
        """How many different units the sources have; None where one has none.

        Raises:
          ConfigError: they have other numbers of them, and so are not of one clustering.
        """
        found = {getattr(source, "clusters", None) for source in self.sources}
        if None in found:
            return None
        if len(found) > 1:
            raise ConfigError(
                f"data source: expected sources with units of one clustering, got units of "
                f"{' and '.join(map(str, sorted(found)))} clusters."
            )
        return found.pop()

    def span(self, index: int) -> tuple[int, int]:
        """A corrupt example is replaced from its own source, which keeps the proportions."""
        number, start = self._component(index)
        low, high = self.sources[number].span(int(index) - start)
        return start + low, start + high

    @property
    def starts(self) -> tuple[int, ...]:
        """The index of the first example of each source."""
        return tuple(end - len(s) for end, s in zip(self._ends, self.sources, strict=True))

    def _component(self, index: int) -> tuple[int, int]:
        number = bisect.bisect_right(self._ends, int(index))
        if not 0 <= index < self._ends[-1]:
            raise IndexError(f"index {index} of a mixture of {self._ends[-1]} examples")
        return number, self._ends[number] - len(self.sources[number])

    def indices_at(self, positions: np.ndarray, seed: int, shuffle: bool) -> np.ndarray:
        """[B] positions -> [B] indices, as `Source.indices_at`."""
        positions = np.asarray(positions, np.int64)
        components, ordinals = (
            np.array([place(int(position), self._shares) for position in positions], np.int64)
            .reshape(-1, 2)
            .T
        )
        indices = np.empty_like(positions)
        for number, source in enumerate(self.sources):
            here = components == number
            if here.any():
                own = source.indices_at(ordinals[here], seed_of(seed, number), shuffle)
                indices[here] = own + self._ends[number] - len(source)
        return indices


def shares_of(weights: Sequence[float]) -> list[fractions.Fraction]:
    """Of positive weights, the share that each has of what those before it leave, for `place`."""
    # Fractions of what was written ("0.3", not its binary neighbour): proportions are exact.
    parts = [fractions.Fraction(str(weight)) for weight in weights]
    return [part / sum(parts[number:]) for number, part in enumerate(parts)]


def place(position: int, shares: Sequence[fractions.Fraction]) -> tuple[int, int]:
    """The source that a position belongs to, and its rank among that source's positions.

    Source 0 takes the positions at which floor(p * share) grows; the others share what is left
    likewise (Bresenham's line, once per source).
    """
    for number, share in enumerate(shares):
        before = position * share.numerator // share.denominator
        if (position + 1) * share.numerator // share.denominator > before:
            return number, before
        position -= before
    raise AssertionError("the last source takes every position that is left")


def seed_of(seed: int, number: int) -> int:
    """A seed for each of the sources, or two of one size would run in the same order."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0])
