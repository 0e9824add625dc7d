"""Retrieval across modalities: which captions an image finds, and which images a caption finds."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from encoders.data import CorruptExample
from encoders.errors import ConfigError, DataError
from encoders.evaluation.contact_sheet import contact_sheet, save_picture
from encoders.evaluation.embeddings import PairEvaluator
from encoders.evaluation.features import Labelled
from encoders.evaluation.knn import neighbours

logger = logging.getLogger(__name__)

COLUMNS = 5  # images beside a text in the picture


@dataclasses.dataclass(kw_only=True)
class ImageTextRetrieval(PairEvaluator):
    """Ranks all captions of `test` for every image, and all images for every caption.

    Metrics, for every k: 'image_to_text@{k}', the share of images with a caption of their own among
    the first k, 'text_to_image@{k}', the share of captions with their image among the first k, and
    of both what chance would give, 'chance_image_to_text@{k}' and 'chance_text_to_image@{k}'. Of
    equally similar ones the first in the data set comes first.

    Picture: directory/pictures/{label}_{step}.png, captions with the images they find, nearest
    first, their own framed. Written by the first process only.

    Attributes:
      k: how many of the nearest count.
      captions: of an image's captions only the first so many; None for all.
      text: field with the caption, or the list of them.
      examples: captions in the picture, spread over the data set; 0 for no picture.
    """

    k: tuple[int, ...] = (1, 5, 10)
    captions: int | None = None
    text: str = "text"
    examples: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"evaluators.{self.label}"
        if not self.k or min(self.k) < 1:
            raise ConfigError(f"{where}.k: expected numbers from 1, got {self.k}.")
        if self.captions is not None and self.captions < 1:
            raise ConfigError(f"{where}.captions: expected a number from 1, got {self.captions}.")
        self._read: tuple[list[str], np.ndarray] | None = None

    def run(
        self, module: nn.Module, variables: Mapping[str, Any], *, step: int | None = None
    ) -> dict[str, float]:
        if self._read is None:
            self._read = self._read_captions()
        texts, rows = self._read
        images = self.embed_images(module, variables)
        vectors = self.embed_texts(module, variables, texts)
        place = np.full(len(self.test_source), -1)  # of a row among the images that could be read
        place[images.rows] = np.arange(len(images.rows))
        usable = place[rows] >= 0
        # A caption is named by the place of its image, and so is an image.
        owners, vectors = place[rows[usable]].astype(np.int32), vectors[usable]
        if len(owners) == 0:
            raise DataError(f"evaluators.{self.label}.test: no image that is readable has a text.")
        captioned = np.unique(owners)
        of_images = Labelled(images.features[captioned], captioned.astype(np.int32))
        of_texts = Labelled(vectors, owners)
        most = max(self.k)
        _, by_image = neighbours(of_texts, of_images.features, min(most, len(owners)), self.mesh)
        _, by_text = neighbours(of_images, vectors, min(most, len(captioned)), self.mesh)
        found = self._scores(by_image == captioned[:, None], by_text == owners[:, None], owners)
        if self.directory is not None and self.examples and jax.process_index() == 0:
            kept = [text for text, use in zip(texts, usable, strict=True) if use]
            self._draw(kept, owners, by_text, images.rows, step)
        return found

    def _scores(
        self, own_text: np.ndarray, own_image: np.ndarray, owners: np.ndarray
    ) -> dict[str, float]:
        """Metrics from which of the nearest are one's own, [N, K] and [M, K]."""
        sizes = np.bincount(owners)
        found, chance = {}, {}
        for k in self.k:
            found[f"image_to_text@{k}"] = float(own_text[:, :k].any(1).mean())
            found[f"text_to_image@{k}"] = float(own_image[:, :k].any(1).mean())
            chance[f"chance_image_to_text@{k}"] = _chance(sizes[sizes > 0], len(owners), k)
            chance[f"chance_text_to_image@{k}"] = min(1.0, k / len(own_text))
        return {**found, **chance}

    def _read_captions(self) -> tuple[list[str], np.ndarray]:
        """M captions, and the row [M] int64 that each is of."""
        texts, rows, without = [], [], 0
        for row in range(len(self.test_source)):
            try:
                example = self.test_source[row]
            except CorruptExample:
                continue  # named and left out where its image is read
            found = example.get(self.text)
            found = [found] if isinstance(found, str) else list(found or ())
            found = [text for text in found if isinstance(text, str) and text.strip()]
            without += not found
            for text in found[: self.captions]:
                texts.append(text)
                rows.append(row)
        where = f"evaluators.{self.label}.test"
        if not texts:
            raise DataError(f"{where}: no example has a caption in field '{self.text}'.")
        if without:
            logger.warning("%s: %d images without a caption are left out", where, without)
        return texts, np.array(rows)

    def _draw(
        self,
        texts: list[str],
        owners: np.ndarray,
        by_text: np.ndarray,
        rows: np.ndarray,
        step: int | None,
    ) -> None:
        chosen = np.unique(np.linspace(0, len(texts) - 1, self.examples).astype(int))
        lines = []
        for number in chosen:
            places = by_text[number, :COLUMNS]
            tiles = [(self._image(int(rows[p])), bool(p == owners[number])) for p in places]
            lines.append((texts[number], tiles))
        save_picture(contact_sheet(lines), pathlib.Path(self.directory), self.label, step)

    def _image(self, row: int) -> np.ndarray:
        """uint8 [H, W, C] as the encoder sees it."""
        source = getattr(self.test_source, "pictured", self.test_source)
        example = {"image": source[row]["image"]}
        for transform in self.preprocessing.image.picture_transforms():
            example = transform(example, np.random.default_rng(0))
        return example["image"]


def _chance(sizes: np.ndarray, total: int, k: int) -> float:
    """The share of images with an own caption among k of `total` that are drawn by lot.

    Args:
      sizes: captions of each image, [N].
      total: captions of all.
      k: how many are drawn.
    """
    others, missed = total - sizes, np.ones(len(sizes))
    for drawn in range(min(k, total)):
        missed *= np.maximum(others - drawn, 0) / (total - drawn)
    return float(1 - missed.mean())
