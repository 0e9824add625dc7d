"""Images at their own aspect ratio, as rows of patches of one length (NaFlex).

NaViT (arXiv 2307.06304) packs the patches of several images into a row; the NaFlex of SigLIP 2
(2502.14786) has one image in a row, and padding behind it. Shapes are static either way: only which
patches are whose differs, and that is data.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Layout(NamedTuple):
    """Whose patches a row holds.

    Attributes:
      segments: [B, N] int32, the number of a patch's image in its row, from 1; 0 for padding.
      places: [B, N, 2] int32, row and column of a patch on its image's grid.
      sizes: [B, N, 2] int32, rows and columns of that grid; 1 for padding.
    """

    segments: jax.Array
    places: jax.Array
    sizes: jax.Array


def layout(shapes: jax.Array, length: int) -> Layout:
    """The layout of rows that hold images one after another.

    Args:
      shapes: [B, S, 2] int32, rows and columns of patches of each of up to S images; (0, 0) for
        none. What is beyond the row's length is cut off.
      length: N.
    """
    counts = shapes.prod(-1)
    ends = jnp.cumsum(counts, axis=-1)
    index = jnp.arange(length)[None]
    image = (index[..., None] >= ends[:, None]).sum(-1)
    real = image < shapes.shape[1]
    image = jnp.minimum(image, shapes.shape[1] - 1)
    first = jnp.take_along_axis(ends - counts, image, axis=1)
    sizes = jnp.take_along_axis(shapes, image[..., None], axis=1)
    sizes = jnp.where(real[..., None], sizes, 1)
    inside = jnp.where(real, index - first, 0)
    places = jnp.stack([inside // sizes[..., 1], inside % sizes[..., 1]], axis=-1)
    return Layout(jnp.where(real, image + 1, 0), places, sizes)


def of_each(segments: jax.Array, images: int) -> jax.Array:
    """[B, N] segments -> [B, S, N] bool, which patches are those of each of S images."""
    return segments[:, None] == jnp.arange(1, images + 1)[:, None]
