"""Zero-shot classification: the class whose description is nearest (CLIP, arXiv 2103.00020)."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from encoders.errors import ConfigError, DataError
from encoders.evaluation.embeddings import PairEvaluator
from encoders.evaluation.features import Labelled
from encoders.evaluation.knn import neighbours, unit

TEMPLATES = ("{}", "a picture of {}", "a photo of a {}", "an image that shows a {}")


@dataclasses.dataclass(kw_only=True)
class ZeroShot(PairEvaluator):
    """Classifies the images of `test` by the names of their classes, with nothing fitted.

    Every name is put into every template; the embeddings of a class have length 1, their mean is
    scaled to length 1 again, and an image is of the class with the greatest cosine (CLIP, section
    3.1.4).

    Metrics: 'accuracy', 'top5' (the class is among the five nearest), 'class_accuracy' (the mean of
    the classes' own accuracies) and 'chance', that of guessing.

    Attributes:
      classes: names of the labels 0, 1, ..., or a file with one on each line; None takes those of
        the data set.
      templates: sentences with '{}' for the name, or a file with one on each line.
    """

    classes: str | tuple[str, ...] | None = None
    templates: str | tuple[str, ...] = TEMPLATES

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"evaluators.{self.label}"
        names = self.test_source.class_names if self.classes is None else self.classes
        if names is None:
            raise ConfigError(f"{where}.classes: this data set has no class names; give some.")
        self._names = read_lines(names, f"{where}.classes")
        self._templates = read_lines(self.templates, f"{where}.templates")
        for template in self._templates:
            if "{}" not in template:
                raise ConfigError(
                    f"{where}.templates: expected '{{}}' for the class in each, got '{template}'."
                )

    def run(
        self, module: nn.Module, variables: Mapping[str, Any], *, step: int | None = None
    ) -> dict[str, float]:
        images = self.embed_images(module, variables)
        low, high = images.labels.min(), images.labels.max()
        if low < 0 or high >= len(self._names):
            raise DataError(
                f"evaluators.{self.label}: labels go from {low} to {high}, and there are "
                f"{len(self._names)} names of classes."
            )
        bank = Labelled(
            self.class_vectors(module, variables), np.arange(len(self._names), dtype=np.int32)
        )
        count = min(5, len(self._names))
        _, found = neighbours(bank, images.features, count, self.mesh)
        right = found == images.labels[:, None]
        sizes = np.bincount(images.labels)
        hits = np.bincount(images.labels, right[:, 0])
        return {
            "accuracy": float(right[:, 0].mean()),
            "top5": float(right.any(1).mean()),
            "class_accuracy": float((hits[sizes > 0] / sizes[sizes > 0]).mean()),
            "chance": 1 / len(self._names),
        }

    def class_vectors(self, module: nn.Module, variables: Mapping[str, Any]) -> np.ndarray:
        """[C, E] float32 of length 1, one vector for each class."""
        texts = [t.replace("{}", name) for name in self._names for t in self._templates]
        vectors = self.embed_texts(module, variables, texts)
        return unit(vectors.reshape(len(self._names), len(self._templates), -1).mean(1))


def read_lines(source: str | Sequence[str], where: str) -> tuple[str, ...]:
    """The lines of a file that are not empty, or the strings that a config lists.

    Raises:
      DataError: there is no such file, or it is no text.
      ConfigError: there are none, or one of a list is empty.
    """
    if isinstance(source, str):
        path = pathlib.Path(source).expanduser()
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{where}: cannot read '{source}' ({error}).") from error
        source = [line.strip() for line in lines if line.strip()]
    if not source or not all(line.strip() for line in source):
        raise ConfigError(f"{where}: expected one or more, and none empty, got {list(source)}.")
    return tuple(source)
