"""Images at their own aspect ratio, as patches (NaFlex of SigLIP 2, arXiv 2502.14786).

Each in a row of its own, or several packed into one (NaViT, 2307.06304).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

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
        image = decoded(example, None)
        grid = native_grid(image.shape[:2], self.patch_size, self.max_patches)
        cut = _patches(image, grid, self.patch_size, self.interpolation)
        patches = np.zeros((self.max_patches, cut.shape[1]), np.uint8)
        patches[: len(cut)] = cut
        return {**example, "image": patches, "shapes": np.array(grid, np.int32)}


@dataclasses.dataclass(frozen=True)
class PackPatches:
    """Packs the patches of several images, which follow one another in a batch, into one row.

    The images of a row are scaled alike, as far as fits: what is the larger image has more patches,
    and hardly any of a row is padding. How many share a row is fixed, so a batch has as many
    examples as its config says, and the same ones as without packing.

    Of an example by itself it decodes the image; other transforms may follow. A row has 'image'
    uint8 [row_patches, patch_size^2 * C], zeros behind the last patch, 'shapes' int32 [images, 2],
    and of every other field those of its examples, [images, ...].

    Attributes:
      images: how many share a row.
      row_patches: patches of a row.
      patch_size: height and width of a patch in pixels.
      max_patches: the most that one image may have.
      channels: of the images.
      interpolation: filter, antialiased.
    """

    images: int
    row_patches: int
    patch_size: int
    max_patches: int
    channels: int = 3
    interpolation: Interpolation = "bilinear"

    varying = ("image",)  # not a field: what differs in shape from example to example

    def __post_init__(self) -> None:
        if min(self.patch_size, self.max_patches, self.images) < 1:
            raise ConfigError(
                f"pack_patches: expected patch_size, max_patches and images from 1, got "
                f"{self.patch_size}, {self.max_patches} and {self.images}."
            )
        if not self.images <= self.row_patches <= self.images * self.max_patches:
            raise ConfigError(
                f"pack_patches.row_patches: {self.images} images of up to {self.max_patches} "
                f"patches take from {self.images} to {self.images * self.max_patches}, got "
                f"{self.row_patches}."
            )

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        del rng
        return {**example, "image": decoded(example, self.channels)}

    def pack(self, examples: Sequence[Example]) -> Example:
        """The row of `images` examples, whose fields are arrays."""
        images = [example["image"] for example in examples]
        sizes = [image.shape[:2] for image in images]
        grids = native_grids(sizes, self.patch_size, self.row_patches, self.max_patches)
        row = self._row(1)
        row["shapes"][0] = grids
        first = 0
        for image, grid in zip(images, grids, strict=True):
            cut = _patches(image, grid, self.patch_size, self.interpolation)
            row["image"][0, first : first + len(cut)] = cut
            first += len(cut)
        others = examples[0].keys() - row.keys()
        return {name: field[0] for name, field in row.items()} | {
            name: np.stack([example[name] for example in examples]) for name in sorted(others)
        }

    def example_rows(self, batch: Example) -> Example:
        """Rows [R, ...] with the shapes and types of packed ones, for a batch of zeros.

        Args:
          batch: field -> [R * images, ...], of examples by themselves.
        """
        rows = len(batch["row"]) // self.images
        packed = self._row(rows)
        packed["row"] = np.arange(rows, dtype=np.int32)
        return {
            name: packed[name] if name in packed else field.reshape(rows, -1, *field.shape[1:])
            for name, field in batch.items()
        }

    def input_size(self, size: tuple[tuple[int, int], int]) -> tuple[tuple[int, int], int]:
        """What FLOPs are counted for, of a pair whose image has its mean share of a row."""
        share = self.row_patches // self.images
        return (self.patch_size, self.patch_size * share), size[1]

    def _row(self, rows: int) -> Example:
        pixels = self.patch_size**2 * self.channels
        return {
            "image": np.zeros((rows, self.row_patches, pixels), np.uint8),
            "shapes": np.ones((rows, self.images, 2), np.int32),
        }


def _patches(
    image: np.ndarray, grid: tuple[int, int], patch: int, interpolation: Interpolation
) -> np.ndarray:
    """uint8 [rows * columns, patch^2 * C] of an image that is resized to that grid of patches."""
    rows, columns = grid
    image = images.resize(image, (rows * patch, columns * patch), interpolation)
    cut = image.reshape(rows, patch, columns, patch, -1).transpose(0, 2, 1, 3, 4)
    return cut.reshape(rows * columns, -1)


def native_grid(size: tuple[int, int], patch: int, most: int) -> tuple[int, int]:
    """Rows and columns of patches of an image (height, width) at about its own aspect ratio.

    Both sides are scaled alike, to the largest scale at which they, rounded up to whole patches,
    are no more than `most`; it is found by bisection, to 1e-5, as transformers does.
    """
    return _grid(size, patch, _largest_scale([size], patch, most, [math.inf]))


def native_grids(
    sizes: Sequence[tuple[int, int]], patch: int, most: int, each: int
) -> list[tuple[int, int]]:
    """The grids of images that have `most` patches together, and each of them at most `each`.

    As `native_grid`, with one scale for all but those that have `each` at a smaller one.
    """
    limits = [_largest_scale([size], patch, each, [math.inf]) for size in sizes]
    scale = _largest_scale(sizes, patch, most, limits)
    return [_grid(s, patch, min(scale, limit)) for s, limit in zip(sizes, limits, strict=True)]


def _grid(size: tuple[int, int], patch: int, scale: float) -> tuple[int, int]:
    height, width = (max(1, math.ceil(side * scale / patch)) for side in size)
    return height, width


def _largest_scale(
    sizes: Sequence[tuple[int, int]], patch: int, most: int, limits: Sequence[float]
) -> float:
    """The largest scale at which images, each scaled up to its limit, are within `most` patches."""
    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        scales = (min(middle, limit) for limit in limits)
        grids = (_grid(size, patch, scale) for size, scale in zip(sizes, scales, strict=True))
        fits = sum(map(math.prod, grids)) <= most
        low, high = (middle, high) if fits else (low, middle)
    return low
