"""Embeddings of images and of texts by two towers, for evaluators that compare them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from encoders.data.image_text import ImageTextPreprocessing
from encoders.errors import ConfigError
from encoders.evaluation.base import Evaluator, fingerprint
from encoders.evaluation.features import FeatureExtractor, Labelled, Split
from encoders.types import Encoded


class Texts:
    """Texts in memory, as a source."""

    def __init__(self, texts: Sequence[str]):
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, str]:
        return {"text": self.texts[index]}

    def describe(self, index: int) -> str:
        return f"text {index}, '{self.texts[index]}'"


@dataclasses.dataclass(frozen=True)
class _Side:
    """One tower with its projection, called as an encoder is whose pooled output is wanted."""

    towers: nn.Module
    method: str
    num_token_types = 0

    def apply(self, variables: Mapping[str, Any], *inputs: jax.Array, **named: Any) -> Encoded:
        vectors = self.towers.apply(variables, *inputs, **named, method=self.method)
        return Encoded(tokens=None, mask=None, pooled=vectors)


@dataclasses.dataclass(kw_only=True)
class PairEvaluator(Evaluator):
    """Base of evaluators of two towers.

    Texts are prepared as in training, by the preprocessing that travels with the weights.

    Attributes:
      extractor: where embeddings come from; shared by the evaluators of a run (supplied; None makes
        its own).
    """

    extractor: FeatureExtractor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.preprocessing, ImageTextPreprocessing):
            raise ConfigError(
                f"evaluators.{self.label}: compares images with texts, and needs an encoder of "
                "both; preprocessing.name 'image_text'."
            )
        if self.extractor is None:
            self.extractor = FeatureExtractor(self.preprocessing, self.mesh)

    def embed_images(self, module: nn.Module, variables: Mapping[str, Any]) -> Labelled:
        """Embeddings [N, E] of the images of `test`, with their labels and rows."""
        split = Split(self.test_source, fingerprint(self.test), self.batch_size, self.compute_dtype)
        extractor, side = self.extractor.part("image"), _Side(module, "embed_image")
        return extractor.encoder(side, variables, split, "pooled")

    def embed_texts(
        self, module: nn.Module, variables: Mapping[str, Any], texts: Sequence[str]
    ) -> np.ndarray:
        """Embeddings [M, E] of texts."""
        digest = hashlib.sha256("\0".join(texts).encode(errors="surrogatepass")).hexdigest()
        split = Split(Texts(texts), digest, self.batch_size, self.compute_dtype)
        extractor, side = self.extractor.part("text"), _Side(module, "embed_text")
        found = extractor.encoder(side, variables, split, "pooled")
        if len(found.features) < len(texts):
            missing = np.setdiff1d(np.arange(len(texts)), found.rows)
            raise ConfigError(
                f"evaluators.{self.label}: text '{texts[missing[0]]}' cannot be tokenised."
            )
        return found.features
