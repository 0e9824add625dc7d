"""Changes of brightness, contrast, saturation and hue, and loss of colour."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image, ImageEnhance

from encoders.data import images
from encoders.data.transforms.geometry import Example, decoded
from encoders.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Scales brightness, contrast and saturation and turns the hue, in random order, as
    torchvision does.

    Attributes:
      brightness: b scales by a factor uniform in [max(0, 1 - b), 1 + b]; 0 leaves it.
      contrast: likewise, around the mean luminance.
      saturation: likewise, around grey; without effect on one channel.
      hue: turns by a fraction of the colour circle uniform in [-hue, hue], hue at most 0.5.
      probability: of jittering at all.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        if min(self.brightness, self.contrast, self.saturation, self.hue) < 0 or self.hue > 0.5:
            raise ConfigError(
                f"color_jitter: expected strengths from 0 and hue to 0.5, got {self}."
            )

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        if rng.random() >= self.probability:
            return example
        image = images.to_pillow(decoded(example, None))
        for step in rng.permutation(4):
            if step == 3:
                if self.hue and image.mode == "RGB":
                    image = turn_hue(image, rng.uniform(-self.hue, self.hue))
                continue
            strength = (self.brightness, self.contrast, self.saturation)[step]
            if strength:
                factor = rng.uniform(max(0.0, 1.0 - strength), 1.0 + strength)
                enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[step]
                image = enhance(image).enhance(factor)
        return {**example, "image": images.from_pillow(image)}


def turn_hue(image: Image.Image, turn: float) -> Image.Image:
    """Turns the hue of an RGB image by a fraction of the colour circle."""
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.array(hue).astype(np.int16) + int(turn * 255)) % 256
    hue = Image.fromarray(turned.astype(np.uint8))
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


@dataclasses.dataclass(frozen=True)
class RandomGrayscale:
    """Replaces the colours by their luminance, in all channels, with a probability."""

    probability: float = 0.2

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        if rng.random() >= self.probability:
            return example
        image = decoded(example, None)
        return {
            **example,
            "image": images.to_channels(images.to_channels(image, 1), image.shape[2]),
        }
