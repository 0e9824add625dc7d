"""Attention biases that depend on how far apart two tokens are: T5's learned ones, and ALiBi.

In a row that several texts were packed into, two tokens of one text are as far apart as in a row of
their own, so neither needs to know the segments.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from encoders.layers.initializers import trunc_normal
from encoders.layers.lookup import lookup


class RelativeBias(nn.Module):
    """A learned number for each head and bucket of distances (T5, arXiv 1910.10683, section 2.1).

    Half of the buckets are for keys after the query. Of either half, one half is for one distance
    each, from 0 on, the other for distances that grow logarithmically up to `max_distance`, and the
    last for all beyond.

    Attributes:
      num_heads: H.
      num_buckets: rows of the table.
      max_distance: from which on all distances are alike.
    """

    num_heads: int
    num_buckets: int = 32
    max_distance: int = 128

    @nn.compact
    def __call__(self, length: int, places: jax.Array | None = None) -> jax.Array:
        """The bias of every query and key.

        Args:
          length: T.
          places: [B, T] int32, where the tokens stand; None for one after the other.

        Returns:
          [1 or B, H, T, T].
        """
        table = self.param("table", trunc_normal(0.02), (self.num_buckets, self.num_heads))
        buckets = _buckets(self.num_buckets // 2, self.max_distance)

        def look_up(offset: jax.Array) -> jax.Array:
            distance = jnp.asarray(buckets)[jnp.minimum(jnp.abs(offset), self.max_distance)]
            bucket = distance + jnp.where(offset > 0, self.num_buckets // 2, 0)
            return lookup(table, bucket)

        if places is None:
            return _by_diagonals(look_up(jnp.arange(1 - length, length)).T)[None]
        return look_up(places[:, None, :] - places[:, :, None]).transpose(0, 3, 1, 2)


def _buckets(count: int, max_distance: int) -> np.ndarray:
    """The bucket of each distance from 0 to max_distance: int32 [max_distance + 1]."""
    exact = count // 2
    distance = np.maximum(np.arange(max_distance + 1), 1)
    # The small number keeps distances that begin a bucket from falling into the one before.
    steps = np.log(distance / exact) / math.log(max_distance / exact) * (count - exact) + 1e-6
    large = np.minimum(exact + np.floor(steps), count - 1)
    return np.where(np.arange(max_distance + 1) < exact, np.arange(max_distance + 1), large).astype(
        np.int32
    )


def _by_diagonals(values: jax.Array) -> jax.Array:
    """values [H, 2T - 1] -> [H, T, T] whose entry (i, j) is values[T - 1 + j - i].

    By copies alone, so that the gradient is a sum and no scatter.
    """
    heads, length = values.shape[0], (values.shape[1] + 1) // 2
    rows = jnp.tile(jnp.pad(values, ((0, 0), (0, 1))), (1, length))
    # Each row is one shorter than what is repeated, so it begins one later than the row before.
    rows = rows[:, : length * (2 * length - 1)].reshape(heads, length, 2 * length - 1)
    return rows[:, :, length - 1 :]


def alibi(num_heads: int, length: int, places: jax.Array | None = None) -> jax.Array:
    """ALiBi for encoders: minus a slope per head times the distance (arXiv 2108.12409).

    Symmetric, as in MosaicBERT (arXiv 2312.17482).

    Args:
      num_heads: H.
      length: T.
      places: [B, T] int32, where the tokens stand; None for one after the other.

    Returns:
      float32 [1 or B, H, T, T].
    """
    places = jnp.arange(length)[None] if places is None else places
    distance = jnp.abs(places[:, None, :] - places[:, :, None]).astype(jnp.float32)
    return -jnp.asarray(alibi_slopes(num_heads))[:, None, None] * distance[:, None]


def alibi_slopes(num_heads: int) -> np.ndarray:
    """float32 [H]: 2^(-8 i / H) for i from 1, if the number of heads is a power of two.

    Otherwise those of the next smaller power of two, followed by every second one, from the first,
    of the next larger power, as the paper's code has it.
    """
    smaller = 2 ** int(math.log2(num_heads))
    slopes = 2.0 ** (-8 * np.arange(1, smaller + 1) / smaller)
    between = 2.0 ** (-8 * np.arange(1, 2 * smaller + 1, 2) / (2 * smaller))
    return np.concatenate([slopes, between[: num_heads - smaller]]).astype(np.float32)
