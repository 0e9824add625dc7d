"""Images to rows of patch pixels and back."""

from __future__ import annotations

import jax

from encoders.errors import ConfigError


def patch_grid(image_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of patches in an image of (height, width).

    Raises:
      ConfigError: the patches do not tile the image.
    """
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


def unpatchify(patches: jax.Array, patch_size: tuple[int, int], grid: tuple[int, int]) -> jax.Array:
    """The inverse of `patchify`: [B, gh*gw, ph*pw*C] to [B, H, W, C]."""
    (gh, gw), (ph, pw) = grid, patch_size
    x = patches.reshape(patches.shape[0], gh, gw, ph, pw, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(patches.shape[0], gh * ph, gw * pw, -1)
