"""Attention by relative positions and token types, of one stream of tokens or of two.

Transformer-XL's (arXiv 1901.02860, section 3.3) as XLNet has it (arXiv 1906.08237, sections 2.3 to
2.5). Both streams are one row of tokens: the T of the content stream, then the M of the query
stream. All of them ask; keys and values are the content stream's alone, so that a token of the
query stream, which knows its place but not its word, is seen by nobody.
"""

from __future__ import annotations

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError
from encoders.layers.attention import Attention, dot_product_attention
from encoders.layers.disentangled import relative_scores
from encoders.layers.dropout import Dropout
from encoders.layers.initializers import trunc_normal, weight_init
from encoders.layers.linear import Linear


@flax.struct.dataclass
class Relation:
    """How T + M queries stand to K keys, in every layer alike.

    The keys are those of the memory, if there is one, and then the T tokens.

    Attributes:
      distances: [K + T - 1, D] encodings of the distances K - 1, ..., 1 - T from a key to a query.
      mirrored: [K + T - 1, D] encodings of the negative ones; None where no row needs them.
      backward: [B] bool, which rows run backwards and take `mirrored`; None where it is None.
      targets: [B, M] int32, the places of the query stream's tokens; None where there is no such
        stream.
      strange: [B, T + M, K] bool, True where query and key are of different token types; None
        where all are of one.
    """

    distances: jax.Array
    mirrored: jax.Array | None = None
    backward: jax.Array | None = None
    targets: jax.Array | None = None
    strange: jax.Array | None = None


def distance_encodings(keys: int, length: int, width: int, clamp: int | None) -> jax.Array:
    """float32 [keys + length - 1, width]: [sin(x w), cos(x w)] of the distances of `Relation`.

    w = 10000^(-2i / D) for D/2 whole numbers i from 0; distances are cut at ±clamp.

    Raises:
      ConfigError: the width is odd.
    """
    if width % 2:
        raise ConfigError(f"positions: relative encodings need an even width, got {width}.")
    distance = jnp.arange(keys - 1, -length, -1, dtype=jnp.float32)
    if clamp is not None:
        distance = jnp.clip(distance, -clamp, clamp)
    omega = 10000.0 ** -(jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = distance[:, None] * omega
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def mirror(encodings: jax.Array) -> jax.Array:
    """Encodings [P, D] of the negative distances."""
    sin, cos = jnp.split(encodings, 2, axis=1)
    return jnp.concatenate([-sin, cos], axis=1)


class TwoStreamAttention(Attention):
    """softmax of ((q + u)·k + (q + v)·r + (q + w)·s) / sqrt(d), without biases on any projection.

    k is the key, r the projected encoding of its distance, s one of two learned vectors, for keys
    of the query's own token type and for others; u, v and w are learned for every head. Attributes
    are those of `Attention`, of which qkv_bias and qk_norm have no meaning here.
    """

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array | None = None,
        *,
        relation: Relation,
        mask: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Attends.

        Args:
          x: [B, T + M, D], the content stream and behind it the query stream.
          memory: [B, K - T, D], what else there are keys and values of, before x.
          relation: of the queries to the keys.
          mask: [B, T + M, K] bool, True where a query may see a key; None for all.
          train: whether dropout is on.

        Returns:
          [B, T + M, D].

        Raises:
          ConfigError: num_heads does not divide D.
        """
        width = x.shape[-1]
        if width % self.num_heads:
            raise ConfigError(f"num_heads: {self.num_heads} does not divide the width {width}.")
        init = weight_init(self.weight_init)
        per_head = (self.num_heads, width // self.num_heads)

        def project(source: jax.Array, name: str) -> jax.Array:
            y = Linear(width, False, init.qkv, name=name)(source)
            return y.reshape(*y.shape[:-1], *per_head)

        def offset(name: str) -> jax.Array:
            return self.param(name, trunc_normal(0.02), per_head)

        length = x.shape[1] - (0 if relation.targets is None else relation.targets.shape[1])
        source = x[:, :length]
        if memory is not None:
            source = jnp.concatenate([memory.astype(x.dtype), source], axis=1)
        query, key, value = project(x, "query"), project(source, "key"), project(source, "value")
        encodings = Linear(width, False, init.qkv, name="position")
        positions = encodings(relation.distances).reshape(-1, *per_head)
        if relation.backward is not None:
            mirrored = encodings(relation.mirrored).reshape(positions.shape)
            positions = jnp.where(relation.backward[:, None, None, None], mirrored, positions)
        scores = distance_scores(
            query + offset("position_bias"), positions, length, relation.targets
        )
        segments = self.param("segments", trunc_normal(0.02), (2, *per_head))
        segment_bias = offset("segment_bias")
        if relation.strange is not None:
            own, other = jnp.einsum(
                "bqhd,shd->sbhq",
                query + segment_bias,
                segments,
                preferred_element_type=jnp.float32,
            )[..., None]
            scores = scores + jnp.where(relation.strange[:, None], other, own)
        drop = None
        if train and self.attention_dropout:
            drop = Dropout(self.attention_dropout, name="drop_weights")
        scores = scores / math.sqrt(per_head[1])
        y = dot_product_attention(query + offset("content_bias"), key, value, mask, drop, scores)
        if mask is not None and relation.targets is not None:
            # The first token of an order may see nothing. It then gets nothing, rather than the
            # mean of all values, its own word's among them.
            y = jnp.where(mask.any(-1)[..., None, None], y, 0)
        y = Linear(width, False, init.kernel, name="out")(y.reshape(x.shape))
        return Dropout(self.dropout)(y, train=train)


def distance_scores(
    query: jax.Array, positions: jax.Array, length: int, targets: jax.Array | None = None
) -> jax.Array:
    """Products of queries with the encodings of the distances from them to all keys.

    Args:
      query: [B, T + M, H, d].
      positions: [K + T - 1, H, d], or [B, K + T - 1, H, d], of the distances K - 1, ..., 1 - T.
      length: T, of which the first is at distance K - T from the first key.
      targets: [B, M] int32 the places, from 0 to T - 1, of the other queries.

    Returns:
      float32 [B, H, T + M, K].
    """
    content, asking = query[:, :length], query[:, length:]
    if positions.ndim == 3:
        scores, places = relative_scores(content, positions), "phd"
    else:
        each = jax.vmap(lambda x, position: relative_scores(x[None], position)[0])
        scores, places = each(content, positions), "bphd"
    if targets is None:
        return scores
    asked = jnp.einsum(
        f"bqhd,{places}->bqhp", asking, positions, preferred_element_type=jnp.float32
    )
    keys = scores.shape[-1]

    def cut(row: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(row, start, keys, axis=1)

    asked = jax.vmap(jax.vmap(cut))(asked, length - 1 - targets)
    return jnp.concatenate([scores, asked.swapaxes(1, 2)], axis=2)


def two_stream_flops(length: int, targets: int, keys: int, width: int) -> float:
    """Forward FLOPs of one TwoStreamAttention on T + M queries and K keys of one example.

    A multiply-add counts as two. The projection of the distances' encodings is left out: it is one
    for the whole batch.
    """
    queries = length + targets
    projections = 4.0 * (queries + keys) * width * width
    # Weighted values, and products with keys, distances and the two token types.
    return projections + 2.0 * queries * (3 * keys + 2) * width
