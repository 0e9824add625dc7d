"""Mixup and cutmix of a batch with itself, on device.

One draw serves the whole step, and an example's partner is the one half a batch further. So long as
a micro-batch is every k-th row of the batch, half of it further is the same example: micro-batches
and devices change nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from encoders.errors import ConfigError


def mix_weights(
    key: jax.Array, image_size: tuple[int, int], mixup: float, cutmix: float
) -> jax.Array:
    """How much of itself an image keeps at every pixel: [H, W, 1] from 0 to 1.

    Constant for mixup (arXiv 1710.09412); for cutmix (arXiv 1905.04899, algorithm 1) 0 in a box of
    the image's shape whose area is a Beta draw, centred anywhere and cut at the border, 1 outside.
    The mean is the example's share in its label.

    Args:
      key: of this step.
      image_size: (H, W).
      mixup, cutmix: alpha of each Beta distribution, 0 for off; if both are on a coin decides.
    """
    height, width = image_size
    toss, share_key, row_key, column_key = jax.random.split(key, 4)
    use_cutmix = jax.random.bernoulli(toss, 0.5) if mixup and cutmix else jnp.bool_(cutmix > 0)
    alpha = jnp.where(use_cutmix, cutmix, mixup)
    share = jax.random.beta(share_key, alpha, alpha)

    side = jnp.sqrt(1 - share)

    def inside(key: jax.Array, length: int) -> jax.Array:
        half = jnp.floor(length * side) // 2
        centre = jax.random.randint(key, (), 0, length)
        place = jnp.arange(length)
        return (place >= centre - half) & (place < centre + half)

    box = inside(row_key, height)[:, None] & inside(column_key, width)[None, :]
    return jnp.where(use_cutmix, 1.0 - box, share)[..., None]


def mix_images(images: jax.Array, weights: jax.Array) -> jax.Array:
    """Mixes images [B, H, W, C] with their partners half a batch further, by weights [H, W, 1].

    Raises:
      ConfigError: the batch is odd, so that there is no half.
    """
    batch = images.shape[0]
    if batch % 2:
        raise ConfigError(f"objective: mixup and cutmix need an even (micro-)batch, got {batch}.")
    weights = weights.astype(images.dtype)
    return weights * images + (1 - weights) * jnp.roll(images, batch // 2, axis=0)
