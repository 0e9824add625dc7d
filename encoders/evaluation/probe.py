"""What the probes of frozen features have in common: splits, features, baselines."""

from __future__ import annotations

import abc
import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import numpy as np

from encoders.errors import ConfigError, DataError
from encoders.evaluation.bag_of_words import bag_of_words
from encoders.evaluation.base import Evaluator, fingerprint
from encoders.evaluation.features import Feature, FeatureExtractor, Labelled, Split, layers_of

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class Probe(Evaluator):
    """Fits something small to features of `train` and measures it on `test`.

    Attributes:
      train: section of the source that is fitted to.
      feature: 'pooled'; 'mean' or 'max' of the final tokens, or the 'first' of them; or the number
        of a layer, whose tokens are averaged; or several of these, side by side.
      layers: further layers to probe, in the same pass over the data; the accuracy of each is
        'layer{n}'.
      target: field of the examples that is guessed, a class. Clips whose 'speaker' is not known are
        left out.
      baselines: what to hold against the encoder, with the same probe on the same splits: 'random'
        (the same architecture with random weights); of images 'pixels' (raw, see
        `features.pixels`); of texts 'bag_of_words' (see there); of sounds 'mfcc' (means of their
        cepstra, see `hubert_mfcc`).
        Each is measured once in the life of the evaluator; its accuracy is the metric of that name.
      seed: of random weights and random splits.
      extractor: where features come from; shared by the evaluators of a run so that each pass over
        the data is made once (supplied; None makes its own).
    """

    train: Mapping[str, Any]
    feature: Feature = "pooled"
    layers: tuple[int, ...] = ()
    target: str = "label"
    baselines: tuple[Literal["pixels", "random", "bag_of_words", "mfcc"], ...] = ()
    seed: int = 0
    extractor: FeatureExtractor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for layer in layers_of((self.feature, *self.layers)):
            if layer < 0:
                raise ConfigError(
                    f"evaluators.{self.label}: layers are counted from 0, got {layer}."
                )
        self.train_source = self.open(self.train, "train")
        if self.extractor is None:
            self.extractor = FeatureExtractor(self.preprocessing, self.mesh)
        self._baselines: dict[str, float] = {}

    @property
    def sizes(self) -> dict[str, int]:
        return {"train": len(self.train_source), **super().sizes}

    @abc.abstractmethod
    def score(self, train: Labelled, test: Labelled, num_classes: int) -> dict[str, float]:
        """Fits to train, measures on test; one of the metrics is 'accuracy'."""

    def run(
        self, module: nn.Module, variables: Mapping[str, Any], *, step: int | None = None
    ) -> dict[str, float]:
        """Metrics of the encoder, 'chance' (the accuracy of always guessing train's most frequent
        class), 'layer{n}' of every other layer, and the accuracy of each baseline under its name.
        """
        asked = self.feature, *self.layers
        train, test = (
            self.extractor.encoder_features(module, variables, split, asked)
            for split in self._splits()
        )
        for section, (labelled, *_) in (("train", train), ("test", test)):
            unknown = (labelled.labels < 0).sum()
            if unknown and self.target == "speaker":
                logger.warning(
                    "evaluators.%s.%s: %d of %d examples have no known speaker and are left out.",
                    self.label, section, unknown, len(labelled.labels),
                )  # fmt: skip
        found = self._measure(train[0], test[0])
        for number, *pair in zip(self.layers, train[1:], test[1:], strict=True):
            found[f"layer{number}"] = self._measure(*pair)["accuracy"]
        for name in self.baselines:
            if name not in self._baselines:
                measured = self._measure(*self._baseline(name, module, variables))
                self._baselines[name] = measured["accuracy"]
        return {**found, **self._baselines}

    def _baseline(
        self, name: str, module: nn.Module, variables: Mapping[str, Any]
    ) -> tuple[Labelled, Labelled]:
        """Features of train and test that a baseline has."""
        extractor = self.extractor
        if name == "pixels":
            return tuple(extractor.pixels(split) for split in self._splits())
        if name == "mfcc":
            return tuple(extractor.cepstra(split) for split in self._splits())
        if name == "bag_of_words":
            return bag_of_words(*(extractor.ids(split) for split in self._splits()))
        return tuple(
            extractor.random(module, variables, split, self.feature, self.seed)
            for split in self._splits()
        )

    def _measure(self, train: Labelled, test: Labelled) -> dict[str, float]:
        if min(train.labels.max(), test.labels.max()) < 0:
            raise DataError(
                f"probes need labels; the examples of this source have no '{self.target}'."
            )
        train, test = self._known(train), self._known(test)
        low = min(train.labels.min(), test.labels.min())
        if low < 0:
            raise DataError(f"evaluators.{self.label}: labels must count from 0, found {low}.")
        num_classes = int(max(train.labels.max(), test.labels.max())) + 1
        if train.labels.min() == train.labels.max():
            raise DataError(
                f"evaluators.{self.label}.train: all {len(train.labels)} examples are of one class."
            )
        found = self.score(train, test, num_classes)
        most_frequent = np.bincount(train.labels).argmax()
        return {**found, "chance": float((test.labels == most_frequent).mean())}

    def _known(self, labelled: Labelled) -> Labelled:
        """Without the examples of unknown speakers, whose label is -1."""
        if self.target != "speaker" or labelled.labels.min() >= 0:
            return labelled
        known = labelled.labels >= 0
        rows = None if labelled.rows is None else labelled.rows[known]
        return labelled._replace(
            features=labelled.features[known], labels=labelled.labels[known], rows=rows
        )

    def _splits(self) -> tuple[Split, Split]:
        return self._split(self.train_source, self.train), self._split(self.test_source, self.test)

    def _split(self, source: Any, section: Mapping[str, Any]) -> Split:
        return Split(source, fingerprint(section), self.batch_size, self.compute_dtype, self.target)


def standardize(
    train: np.ndarray, *others: np.ndarray, one_scale: bool = False
) -> tuple[np.ndarray, ...]:
    """Centres and scales every column by its mean and standard deviation over `train` [N, ...].

    Columns that are constant but for rounding become 0. With `one_scale` all are divided by the
    same number, which makes their mean variance 1.
    """
    mean = train.mean(0, dtype=np.float64)
    std = np.sqrt(np.mean(np.square(train - mean, dtype=np.float64), 0))
    constant = std < 1e-6 * np.maximum(np.abs(mean), 1e-6)
    divisor = np.sqrt(np.mean(np.square(std))) if one_scale else std
    scale = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, divisor))
    return tuple(((x - mean) * scale).astype(np.float32) for x in (train, *others))


def held_out(labels: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Chooses a stratified part of the rows: bool [N], True for `fraction` of every class.

    A class of two or more gives at least one and keeps at least one.

    Raises:
      ConfigError: `fraction` is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"holdout: expected a fraction between 0 and 1, got {fraction}.")
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        chosen[rows[:count]] = True
    return chosen
