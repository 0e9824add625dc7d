"""Disentangled attention of DeBERTa (arXiv 2006.03654, section 3) as version 3 has it.

A token's score for another is the sum of three products, over sqrt(3 d): content with content,
content with the key of their relative position, and content with the query of it. Relative
positions are rows of one table for all layers and go through the layer's own projections; distant
ones share rows, in buckets that grow with the distance.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from encoders.errors import ConfigError
from encoders.layers.attention import Attention, dot_product_attention
from encoders.layers.dropout import Dropout
from encoders.layers.initializers import weight_init
from encoders.layers.linear import Linear


def log_buckets(distance: np.ndarray, buckets: int, max_distance: int) -> np.ndarray:
    """Buckets of signed distances: themselves up to half of `buckets`, then ever wider ones.

    sign(r) ceil(log(|r| / m) / log((max_distance - 1) / m) (m - 1)) + m, with m = buckets / 2, for
    |r| > m, as in the code released with versions 2 and 3. In float32, as in transformers: a
    rounding more or less would move a token to the next bucket.

    Args:
      distance: any shape, integers, query's position - key's.
      buckets: S; the bucket of distance max_distance - 1 is S - 1.
      max_distance: in tokens; more than m + 1.

    Returns:
      int32 of the same shape; beyond max_distance it is S or more.
    """
    middle = buckets // 2
    size = np.maximum(np.abs(distance), 1).astype(np.float32)
    scale = np.log(np.float32((max_distance - 1) / middle))
    far = np.ceil(np.log(size / np.float32(middle)) / scale * np.float32(middle - 1)) + middle
    return np.where(size <= middle, distance, np.sign(distance) * far).astype(np.int32)


def relative_rows(length: int, buckets: int, max_distance: int) -> tuple[slice, np.ndarray]:
    """Which rows of the table [2 S, D] of relative positions a text of that many tokens uses.

    Returns:
      The slice of the table, and for every distance from -(T - 1) to T - 1 its row in that slice,
      int32 [2 T - 1].
    """
    distance = np.arange(1 - length, length)
    rows = np.clip(log_buckets(distance, buckets, max_distance) + buckets, 0, 2 * buckets - 1)
    return slice(int(rows[0]), int(rows[-1]) + 1), rows - rows[0]


def relative_scores(x: jax.Array, position: jax.Array, chunk: int = 128) -> jax.Array:
    """Products of x [B, T, H, d] with positions: y[b, h, r, c] = x[b, r, h] . position[c - r, h].

    Every row of scores reads the positions from one place earlier than the row above. So the rows
    are multiplied with all positions that any of them reads, and the products then shifted, which
    is a matter of shapes: a gather of [T, T] indices would have a scatter of as many as its
    gradient. By chunks of rows few products are made in vain.

    Args:
      x: queries or keys.
      position: [T + K - 1, H, d], of c - r from -(T - 1) on; K is T but where there is a memory.
      chunk: C, rows that are multiplied with K + C - 1 positions; a T that it does not divide is
        one chunk.

    Returns:
      float32 [B, H, T, K].
    """
    batch, length, heads, dim = x.shape
    keys = position.shape[0] - length + 1
    chunk = length if length % chunk else chunk
    starts = range(length - chunk, -1, -chunk)
    position = jnp.stack([position[start : start + keys + chunk - 1] for start in starts])
    x = x.reshape(batch, len(starts), chunk, heads, dim)
    y = jnp.einsum("bnrhd,nshd->bhnrs", x, position, preferred_element_type=jnp.float32)
    return _shift(y, keys).reshape(batch, heads, length, keys)


def _shift(x: jax.Array, keys: int) -> jax.Array:
    """x [..., C, K + C - 1] -> [..., C, K] with y[r, c] = x[r, c - r + C - 1]."""
    *batch, chunk, columns = x.shape
    if chunk == 1:
        return x
    flat = x.reshape(*batch, chunk * columns)
    flat = flat[..., chunk - 1 : chunk - 1 + chunk * (columns - 1)]
    return flat.reshape(*batch, chunk, columns - 1)[..., :keys]


class DisentangledAttention(Attention):
    """Multi-head attention with content and relative positions apart; attributes as `Attention`.

    The projections of queries and keys serve positions as well (`share_att_key` in the authors'
    code). All scores are float32: in float16 they overflow.
    """

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array | None = None,
        *,
        relative: tuple[jax.Array, jax.Array],
        mask: jax.Array | None = None,
        segments: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Attends.

        Args:
          x: [B, T, D] where the queries come from.
          memory: [B, T, D] where keys and values come from; None means x.
          relative: [R, D] rows of the table of relative positions, and [2 T - 1] int32, the row of
            every distance (query's position - key's) from -(T - 1) on; see `relative_rows`.
          mask: [B, T] bool, True where a key is real, or [B, T, T], True where a query may see it.
          segments: [B, T] int32, as of `Attention`; a distance in a row is one in a segment.
          train: whether dropout is on.

        Returns:
          [B, T, D].

        Raises:
          ConfigError: num_heads does not divide D.
        """
        width = x.shape[-1]
        if width % self.num_heads:
            raise ConfigError(f"num_heads: {self.num_heads} does not divide the width {width}.")
        init = weight_init(self.weight_init)

        def linear(name: str) -> Linear:
            return Linear(width, self.qkv_bias, init.qkv, name=name)

        def heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:-1], self.num_heads, width // self.num_heads)

        project_query, project_key = linear("query"), linear("key")
        memory = x if memory is None else memory
        query, key = heads(project_query(x)), heads(project_key(memory))
        value = heads(linear("value")(memory))

        table, rows = relative
        table = Dropout(self.dropout, name="drop_relative")(table, train=train)
        scale = 1 / math.sqrt(3 * query.shape[-1])
        # From key to key the distance of a query falls; from query to query that of a key rises.
        bias = relative_scores(query * scale, heads(project_key(table))[rows[::-1]])
        of_keys = relative_scores(key, heads(project_query(table) * scale)[rows])
        bias = bias + of_keys.swapaxes(-1, -2)

        drop = None
        if train and self.attention_dropout:
            drop = Dropout(self.attention_dropout, name="drop_weights")
        y = dot_product_attention(
            query, key, value, mask, drop, bias, scale=scale, segments=segments
        )
        y = Linear(width, self.out_bias, init.kernel, name="out")(y.reshape(x.shape))
        return Dropout(self.dropout)(y, train=train)


def disentangled_flops(length: int, rows: int, width: int) -> float:
    """Forward FLOPs of one DisentangledAttention on top of those of an Attention.

    The two products with relative positions, each of `rows` that differ. Their projections are of
    the table, whatever the batch, and count as nothing.
    """
    return 4.0 * length * rows * width
