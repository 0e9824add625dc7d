"""Images at their own aspect ratio, as patches (NaFlex of SigLIP 2, arXiv 2502.14786)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from encoders.data import images
from encoders.data.images import Interpolation
from encoders.data.transforms.geometry import Example, decoded
from encoders.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class ToPatches:
    """Resizes an image to as many whole patches as there may be, and cuts it into them.

    'image' becomes uint8 [max_patches, patch_size^2 * C], row after row of patches, channels last,
    zeros behind them; 'shapes' int32 [2] says how many rows and columns they are.

    Attributes:
      patch_size: height and width of a patch in pixels.
      max_patches: how many there may be.
      interpolation: filter, antialiased.
    """

    patch_size: int
    max_patches: int
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if min(self.patch_size, self.max_patches) < 1:
            raise ConfigError(
                f"to_patches: expected patch_size and max_patches from 1, got {self.patch_size} "
                f"and {self.max_patches}."
            )

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        del rng
        image, patch = decoded(example, None), self.patch_size
        rows, columns = native_grid(image.shape[:2], patch, self.max_patches)
        image = images.resize(image, (rows * patch, columns * patch), self.interpolation)
        cut = image.reshape(rows, patch, columns, patch, -1).transpose(0, 2, 1, 3, 4)
        patches = np.zeros((self.max_patches, cut[0, 0].size), np.uint8)
        patches[: rows * columns] = cut.reshape(rows * columns, -1)
        shapes = np.array([rows, columns], np.int32)
        return {**example, "image": patches, "shapes": shapes}


def native_grid(size: tuple[int, int], patch: int, most: int) -> tuple[int, int]:
    """Rows and columns of patches of an image (height, width) at about its own aspect ratio.

    Both sides are scaled alike, to the largest scale at which they, rounded up to whole patches,
    are no more than `most`; it is found by bisection, to 1e-5, as transformers does.
    """

    def grid(scale: float) -> tuple[int, int]:
        return tuple(max(1, math.ceil(side * scale / patch)) for side in size)

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        fits = math.prod(grid(middle)) <= most
        low, high = (middle, high) if fits else (low, middle)
    return grid(low)
