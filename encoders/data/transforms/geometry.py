"""Decoding, resizing, cropping and flipping."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from encoders.data import images
from encoders.data.images import Interpolation
from encoders.data.sources.base import CorruptExample
from encoders.errors import ConfigError

Example = dict[str, Any]

# How much larger than the result a JPEG stays when it is shrunk while decoding: at 2, photographs
# differ from full decoding by less than one grey level of 255 on average; at 1, by up to three.
_MARGIN = 2.0


def image_of(example: Example) -> Any:
    """The image of an example; raises CorruptExample where it has none."""
    try:
        return example["image"]
    except KeyError:
        raise CorruptExample(f"no field 'image', only {sorted(example)}") from None


def decoded(example: Example, channels: int | None) -> np.ndarray:
    """uint8 [H, W, C] of a file or of pixels; `channels` None keeps an array's own."""
    image = image_of(example)
    if isinstance(image, bytes):
        return images.decode(image, 3 if channels is None else channels)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        raise CorruptExample(
            f"expected uint8 pixels or an encoded file, got {type(image).__name__}"
        )
    return images.to_channels(
        image, channels if channels else image.shape[-1] if image.ndim == 3 else 1
    )


@dataclasses.dataclass(frozen=True)
class Decode:
    """Encoded file -> uint8 [H, W, channels]; arrays pass through with their channels converted."""

    channels: int = 3

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        del rng
        return {**example, "image": decoded(example, self.channels)}


@dataclasses.dataclass(frozen=True)
class Resize:
    """Resizes so that the image just covers `image_size`, keeping its aspect ratio, or exactly to
    it.

    Attributes:
      image_size: (height, width).
      interpolation: filter, antialiased.
      keep_aspect: False distorts to exactly `image_size`.
    """

    image_size: tuple[int, int]
    interpolation: Interpolation = "bicubic"
    keep_aspect: bool = True

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        del rng
        image = decoded(example, None)
        size = self.image_size
        if self.keep_aspect:
            size = covering_size(image.shape[:2], size)
        return {**example, "image": images.resize(image, size, self.interpolation)}


def covering_size(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The smallest (height, width) of the same aspect ratio as `size` that covers `target`.

    The longer side is rounded down, as torchvision does.
    """
    (height, width), (to_height, to_width) = size, target
    if to_height * width >= to_width * height:
        return to_height, max(to_width, to_height * width // height)
    return max(to_height, to_width * height // width), to_width


@dataclasses.dataclass(frozen=True)
class CenterCrop:
    """The middle `image_size` of the image; a smaller image is padded with zeros."""

    image_size: tuple[int, int]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        del rng
        image = decoded(example, None)
        height, width = self.image_size
        image = pad_to(image, self.image_size)
        # round() is half-to-even, as in torchvision
        top, left = round((image.shape[0] - height) / 2), round((image.shape[1] - width) / 2)
        return {**example, "image": image[top : top + height, left : left + width]}


def pad_to(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pads [H, W, C] with zeros to at least `size`; the odd pixel goes below and right."""
    height, width = image.shape[:2]
    missing = max(0, size[0] - height), max(0, size[1] - width)
    return add_border(image, *missing) if any(missing) else image


def add_border(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Zeros around [H, W, C]: [H + rows, W + columns, C] with the image in the middle."""
    height, width, channels = image.shape
    padded = np.zeros((height + rows, width + columns, channels), image.dtype)
    top, left = rows // 2, columns // 2
    padded[top : top + height, left : left + width] = image
    return padded


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the image, resized to `image_size` (Szegedy et al., arXiv 1409.4842,
    section 6).

    Area and aspect ratio are drawn as torchvision draws them: area uniform, ratio log-uniform, ten
    tries, then the central crop of the nearest admissible ratio.

    Attributes:
      image_size: (height, width) of the result.
      scale: range of the crop's area as a fraction of the image's.
      ratio: range of the crop's width / height.
      interpolation: filter, antialiased.
      channels: channels of the result when the example is still an encoded file.
    """

    image_size: tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bicubic"
    channels: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(
                f"random_resized_crop: expected 0 < low <= high, got scale={self.scale}, "
                f"ratio={self.ratio}."
            )

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        image = image_of(example)
        if isinstance(image, bytes):
            return {**example, "image": self._decode_and_crop(image, rng)}
        image = decoded(example, self.channels)
        box = self.sample(image.shape[:2], rng)
        return {**example, "image": images.resize(image, self.image_size, self.interpolation, box)}

    def _decode_and_crop(self, data: bytes, rng: np.random.Generator) -> np.ndarray:
        # The crop is drawn from the header, so that a large one can be decoded at a fraction of
        # its size.
        size = images.size_of(data)
        box = self.sample(size, rng)
        zoom = min((box[2] - box[0]) / self.image_size[0], (box[3] - box[1]) / self.image_size[1])
        reduction = next((r for r in images.REDUCTIONS if zoom >= r * _MARGIN), 1)
        image = images.decode(data, self.channels, reduction)
        if image.shape[:2] != size:
            box = tuple(edge / reduction for edge in box)
        return images.resize(image, self.image_size, self.interpolation, box)

    def sample(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Draws (top, left, bottom, right) inside an image of (height, width)."""
        height, width = size
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(rng.integers(0, height - h + 1))
                left = int(rng.integers(0, width - w + 1))
                return top, left, top + h, left + w
        w, h = width, height
        if width / height < self.ratio[0]:
            h = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            w = round(height * self.ratio[1])
        top, left = (height - h) // 2, (width - w) // 2
        return top, left, top + h, left + w


@dataclasses.dataclass(frozen=True)
class Pad:
    """Zeros on every side, `padding` pixels of them."""

    padding: int

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ConfigError(f"pad.padding: expected pixels from 0, got {self.padding}.")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        del rng
        border = 2 * self.padding
        return {**example, "image": add_border(decoded(example, None), border, border)}


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A random `image_size` window of the image; a smaller image is padded with zeros."""

    image_size: tuple[int, int]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        image = pad_to(decoded(example, None), self.image_size)
        height, width = self.image_size
        top = int(rng.integers(0, image.shape[0] - height + 1))
        left = int(rng.integers(0, image.shape[1] - width + 1))
        return {**example, "image": image[top : top + height, left : left + width]}


@dataclasses.dataclass(frozen=True)
class RandomFlip:
    """Mirrors the image left to right with a probability."""

    probability: float = 0.5

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        if rng.random() >= self.probability:
            return example
        return {**example, "image": decoded(example, None)[:, ::-1]}
