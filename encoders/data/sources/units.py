"""Clips with the clusters of their frames, which HuBERT learns to guess."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from encoders.config import build
from encoders.data.sources.base import CorruptExample, Source, lengths_of
from encoders.data.units import UnitStore
from encoders.errors import ConfigError, DataError


@dataclasses.dataclass(kw_only=True, eq=False)
class Units(Source):
    """Another source, with 'units' int32 [F], so many a second from the clip's beginning on.

    Attributes:
      source: config section of the other. Units are found by where a clip was, so that it may be a
        part of what was clustered.
      path: the directory that `tools.cluster` wrote. Clips that are not in it are corrupt.
      preprocessing: of the run (supplied).
    """

    source: Mapping[str, Any]
    path: str
    preprocessing: Any = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        from encoders.data.sources import SOURCES  # which holds this class too

        context = {} if self.preprocessing is None else {"preprocessing": self.preprocessing}
        self.clips = build(SOURCES, dict(self.source), "data.source.source", **context)
        self.store = UnitStore(self.path)
        expected = getattr(self.preprocessing, "units_per_second", None)
        if expected is not None and abs(expected - self.store.units_per_second) > 1e-6 * expected:
            raise ConfigError(
                f"preprocessing.units_per_second: '{self.path}' has "
                f"{self.store.units_per_second:g}, got {expected:g}."
            )
        if not any(self.clips.describe(i) in self.store for i in range(len(self.clips))):
            raise DataError(
                f"data source: none of the clips of '{self.path}' is in data.source.source; the "
                f"first is '{next(iter(self.store.names), '')}' there and "
                f"'{self.clips.describe(0)}' here."
            )
        super().__post_init__()

    @property
    def indivisible(self) -> str:
        """Why parts of it cannot be taken: what the other source says."""
        return self.clips.indivisible

    @property
    def clusters(self) -> int:
        """How many different units there are."""
        return self.store.clusters

    @property
    def starts(self) -> tuple[int, ...]:
        """The index of the first example of each source of a mixture, as `Mixture.starts`."""
        firsts = getattr(self.clips, "starts", ())
        places = self._permuted(np.arange(len(self)))
        numbers = np.searchsorted(firsts, places, side="right")
        return tuple(np.unique(numbers, return_index=True)[1].tolist()) if firsts else ()

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Those of the other source."""
        return self.clips.class_names

    def lengths(self, sample_rate: int) -> np.ndarray:
        """int64 [N] samples of each clip at a rate.

        Raises:
          ConfigError: the other source does not know them.
        """
        return lengths_of(self.clips, sample_rate)[self._permuted(np.arange(len(self)))]

    def _count(self) -> int:
        return len(self.clips)

    def _read(self, index: int) -> dict[str, Any]:
        units = self.store.get(self.clips.describe(index))
        if units is None:
            raise CorruptExample(f"no units in {self.path}")
        return {**self.clips[index], "units": units}

    def _describe(self, index: int) -> str:
        return self.clips.describe(index)
