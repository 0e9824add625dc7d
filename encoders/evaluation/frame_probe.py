"""Linear probe of single frames of sound, such as of the phones that an aligner found in them."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from encoders.errors import ConfigError, DataError
from encoders.evaluation.features import Labelled, Split
from encoders.evaluation.frames import FrameFeature
from encoders.evaluation.linear_probe import LinearProbe


@dataclasses.dataclass(kw_only=True)
class FrameProbe(LinearProbe):
    """Multinomial logistic regression on frames: what is heard at a moment, and not in a clip.

    Classes are the units of clips, which the source 'units' adds to them: numbers of phones, where
    an aligner's result was written by `encoders.data.units.write_units`, or clusters. With
    feature='weighted_sum' the frames of all blocks are mixed as in `LinearProbe`. The penalty is
    chosen on whole clips of train: frames of one clip are too much alike to hold some of them out.

    Metrics and baselines as of `LinearProbe`; 'mfcc' are the 39 cepstra at the same moments.

    Attributes:
      feature: 'tokens', the final ones; the number of a layer; or 'weighted_sum'.
      target: 'units'.
      frames: that are taken of every clip at most, evenly spaced over it.
    """

    feature: FrameFeature = "weighted_sum"
    target: str = "units"
    baselines: tuple[Literal["random", "mfcc"], ...] = ()
    frames: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames < 1:
            raise ConfigError(
                f"evaluators.{self.label}.frames: expected a number from 1, got {self.frames}."
            )
        for section, source in (("train", self.train_source), ("test", self.test_source)):
            if getattr(source, "clusters", None) is None:
                raise ConfigError(
                    f"evaluators.{self.label}.{section}: needs clips with units, such as the "
                    f"source 'units' has, got {type(source).__name__}."
                )

    def held_out(self, train: Labelled) -> np.ndarray:
        clips = np.unique(train.rows)
        if len(clips) < 2:
            raise DataError(
                f"evaluators.{self.label}.train: needs at least 2 clips, to choose the penalty on "
                "one of them."
            )
        count = min(max(1, round(self.holdout * len(clips))), len(clips) - 1)
        chosen = np.random.default_rng(self.seed).choice(clips, count, replace=False)
        return np.isin(train.rows, chosen)

    def _split(self, source: Any, section: Any) -> Split:
        return dataclasses.replace(super()._split(source, section), frames=self.frames)
