"""Random erasing (Zhong et al., arXiv 1708.04896)."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np

from encoders.data.transforms.geometry import Example, decoded
from encoders.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class RandomErasing:
    """Overwrites a random rectangle, with a probability; put it last.

    Attributes:
      probability: of erasing.
      area: range of the rectangle's area as a fraction of the image's.
      ratio: range of its height / width, log-uniform.
      fill: 'pixel' is normal noise that has mean 0 and variance 1 after normalisation (clipped to
        what uint8 holds), 'color' one such colour, 'mean' the mean.
      mean: of the normalisation, per channel in [0, 1].
      std: of the normalisation, per channel.
    """

    probability: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 10 / 3)
    fill: Literal["pixel", "color", "mean"] = "pixel"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(
                f"random_erasing: expected 0 < low <= high, got area={self.area}, "
                f"ratio={self.ratio}."
            )

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        if rng.random() >= self.probability:
            return example
        image = decoded(example, None)
        height, width, channels = image.shape
        for _ in range(10):
            area = height * width * rng.uniform(*self.area)
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < h < height and 0 < w < width:
                break
        else:
            return example
        top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
        shape = {"pixel": (h, w, channels), "color": (channels,), "mean": ()}[self.fill]
        noise = rng.standard_normal(shape) if shape else 0.0
        value = np.asarray(self.mean[:channels]) + noise * np.asarray(self.std[:channels])
        image = image.copy()  # the source may keep the array
        image[top : top + h, left : left + w] = np.clip(np.rint(255 * value), 0, 255)
        return {**example, "image": image}
