"""Images to rows of patch pixels and back."""

from __future__ import annotations

import jax
import numpy as np

from encoders.errors import ConfigError


def patch_grid(image_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of patches in an image of (height, width).

    Raises:
      ConfigError: the patches do not tile the image.
    """
    if min(patch_size) < 1:
        raise ConfigError(f"patch_size: expected sides from 1, got {patch_size}.")
    if image_size[0] % patch_size[0] or image_size[1] % patch_size[1]:
        raise ConfigError(
            f"image size {tuple(image_size)} is not divisible by the patch size {patch_size}."
        )
    return image_size[0] // patch_size[0], image_size[1] // patch_size[1]


def patchify(images: jax.Array, patch_size: tuple[int, int]) -> jax.Array:
    """Cuts images [B, H, W, C] into [B, gh*gw, ph*pw*C], both row-major, channels last.

    Raises:
      ConfigError: the patches do not tile the image.
    """
    batch, height, width, channels = images.shape
    (gh, gw), (ph, pw) = patch_grid((height, width), patch_size), patch_size
    x = images.reshape(batch, gh, ph, gw, pw, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, gh * gw, ph * pw * channels)


def strided_patches(
    images: jax.Array, patch_size: tuple[int, int], stride: tuple[int, int]
) -> jax.Array:
    """As `patchify`, of patches that begin every `stride` pixels and may overlap.

    What is left at the right and at the bottom is in none, as in strided convolutions.
    """
    rows, columns = (
        np.arange(count)[:, None] * step + np.arange(side)
        for count, step, side in zip(
            strided_grid(images.shape[1:3], patch_size, stride), stride, patch_size, strict=True
        )
    )
    x = images[:, rows][:, :, :, columns]  # [B, gh, ph, gw, pw, C]
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], -1)


def strided_grid(
    image_size: tuple[int, int], patch_size: tuple[int, int], stride: tuple[int, int]
) -> tuple[int, int]:
    """(rows, columns) of such patches.

    Raises:
      ConfigError: there are none.
    """
    grid = tuple(
        (side - patch) // step + 1
        for side, patch, step in zip(image_size, patch_size, stride, strict=True)
    )
    if min(grid) < 1:
        raise ConfigError(f"model.patch_size: no patch of {patch_size} in images of {image_size}.")
    return grid


def unpatchify(patches: jax.Array, patch_size: tuple[int, int], grid: tuple[int, int]) -> jax.Array:
    """The inverse of `patchify`: [B, gh*gw, ph*pw*C] to [B, H, W, C]."""
    (gh, gw), (ph, pw) = grid, patch_size
    x = patches.reshape(patches.shape[0], gh, gw, ph, pw, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(patches.shape[0], gh * ph, gw * pw, -1)
