"""Multi-head attention over a set of tokens, never causal."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from encoders.errors import ConfigError, nearest
from encoders.layers.dropout import Dropout
from encoders.layers.fused_attention import fits, fused_attention
from encoders.layers.initializers import weight_init
from encoders.layers.linear import Linear
from encoders.layers.norm import LayerNorm
from encoders.layers.position import rotate

KERNELS = ("plain", "fused")


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    drop: Callable[[jax.Array], jax.Array] | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
    segments: jax.Array | None = None,
) -> jax.Array:
    """softmax(scale query key^T + bias) value, with the softmax in float32.

    Args:
      query: [B, Q, H, d].
      key: [B, T, H, d].
      value: [B, T, H, d].
      mask: [B, T] bool, True where a key may be attended to, or [B, Q, T], by which query; None
        lets all be. Where none may be, as for padding, all are alike: nothing becomes NaN.
      drop: dropout of the weights [B, H, Q, T], or None.
      bias: [1 or B, H, Q, T] what is added to the scores, or None.
      scale: of the products; None for 1 / sqrt(d).
      segments: [B, T] int32, 0 for padding: only tokens of one segment attend to each other, as in
        rows that several texts were packed into. Needs Q = T.

    Returns:
      [B, Q, H, d] in value's dtype.
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = jnp.einsum("bqhd,bkhd->bhqk", query * scale, key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias.astype(scores.dtype)
    allowed = visible(mask, segments)
    if allowed is not None:
        scores = jnp.where(allowed, scores, jnp.finfo(scores.dtype).min)
    weights = _softmax(scores, value.dtype)
    weights = checkpoint_name(weights, "attention_weights")
    if drop is not None:
        weights = drop(weights)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def same_segment(segments: jax.Array) -> jax.Array:
    """[B, T] segments, 0 for padding -> [B, T, T] bool: who may attend to whom in a packed row."""
    return (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None, :]


def visible(mask: jax.Array | None, segments: jax.Array | None) -> jax.Array | None:
    """Which keys a query may attend to: bool that broadcasts to [B, H, Q, T], or None for all.

    Args:
      mask: [B, T] or [B, Q, T] bool, or None.
      segments: [B, T] int32, or None.
    """
    if mask is not None:
        mask = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
    if segments is None:
        return mask
    same = same_segment(segments)[:, None]
    return same if mask is None else same & mask


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _softmax(scores: jax.Array, dtype: Any) -> jax.Array:
    """Softmax of float32 scores [..., T] as `dtype`; keeps nothing but its result.

    jax.nn.softmax keeps float32 arrays of the scores' size, which are most of a block's memory.
    """
    powers = jnp.exp(scores - scores.max(-1, keepdims=True))
    return (powers / powers.sum(-1, keepdims=True)).astype(dtype)


def _softmax_forward(scores: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    weights = _softmax(scores, dtype)
    return weights, weights


def _softmax_backward(dtype: Any, weights: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    y, gradient = weights.astype(jnp.float32), gradient.astype(jnp.float32)
    return (y * (gradient - (y * gradient).sum(-1, keepdims=True)),)


_softmax.defvjp(_softmax_forward, _softmax_backward)


class Attention(nn.Module):
    """Multi-head attention of x to itself, or of x to a memory.

    Attributes:
      num_heads: heads; must divide the width.
      qkv_bias: whether query, key and value have biases.
      qk_norm: layer norm of every head's queries and keys before the product (arXiv 2302.05442).
      norm_eps, norm_bias: of that norm.
      dropout: rate on the output; stream 'dropout'.
      weight_init: a convention of WEIGHT_INITS.
      attention_dropout: rate on the weights, after the softmax.
      kernel: 'plain', or 'fused' for one kernel where there is one (`layers.fused_attention`).
      out_bias: whether the output has a bias.
      key_bias: whether the key has one, where queries and values have: it changes nothing.
    """

    num_heads: int
    qkv_bias: bool = True
    qk_norm: bool = False
    norm_eps: float = 1e-6
    norm_bias: bool = True
    dropout: float = 0.0
    weight_init: str = "trunc_normal"
    attention_dropout: float = 0.0
    kernel: str = "plain"
    out_bias: bool = True
    key_bias: bool = True

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        rotary: tuple[jax.Array, jax.Array] | None = None,
        bias: jax.Array | None = None,
        segments: jax.Array | None = None,
        train: bool = False,
        **context: Any,
    ) -> jax.Array:
        """Attends.

        Args:
          x: [B, Q, D] where the queries come from.
          memory: [B, T, D] where keys and values come from; None means x.
          mask: [B, T] bool, True where a key is real, or [B, Q, T], True where a query may see it.
          rotary: (sin, cos), each [T, d] or [B, T, d], that turn queries and keys.
          bias: [1 or B, H, Q, T] what is added to the scores.
          segments: [B, T] int32, of self-attention in packed rows; see `dot_product_attention`.
          train: whether dropout is on.
          **context: what `_attend` of a subclass is given besides.

        Returns:
          [B, Q, D].

        Raises:
          ConfigError: num_heads does not divide D; there is no such kernel, or not with dropout.
        """
        width = x.shape[-1]
        if width % self.num_heads:
            raise ConfigError(f"num_heads: {self.num_heads} does not divide the width {width}.")
        init = weight_init(self.weight_init)
        memory = x if memory is None else memory

        def project(source: jax.Array, name: str, bias: bool = True) -> jax.Array:
            y = Linear(width, self.qkv_bias and bias, init.qkv, name=name)(source)
            return y.reshape(*y.shape[:-1], self.num_heads, width // self.num_heads)

        query, key = project(x, "query"), project(memory, "key", self.key_bias)
        value = project(memory, "value")
        if self.qk_norm:
            query = LayerNorm(self.norm_eps, self.norm_bias, name="query_norm")(query)
            key = LayerNorm(self.norm_eps, self.norm_bias, name="key_norm")(key)
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        drop = None
        if train and self.attention_dropout:
            drop = Dropout(self.attention_dropout, name="drop_weights")
        seen = {"mask": mask, "segments": segments, "bias": bias, **context}
        y = self._attend(query, key, value, drop, **seen)
        y = Linear(width, self.out_bias, init.kernel, name="out")(y.reshape(x.shape))
        return Dropout(self.dropout)(y, train=train)

    def _attend(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        drop: Callable[[jax.Array], jax.Array] | None,
        *,
        mask: jax.Array | None = None,
        segments: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        """Arguments and result as of `dot_product_attention`, by the kernel that is asked for."""
        if self.kernel not in KERNELS:
            raise ConfigError(
                f"attention_kernel: unknown '{self.kernel}'.{nearest(self.kernel, KERNELS)}"
            )
        if self.kernel == "fused" and fits(query):
            if drop is not None:
                raise ConfigError(
                    "attention_kernel: 'fused' has no dropout of the weights; set "
                    "attention_dropout to 0, or use 'plain'."
                )
            return fused_attention(query, key, value, visible(mask, segments), bias)
        return dot_product_attention(query, key, value, mask, drop, bias, segments=segments)


def attention_flops(queries: int, keys: int, width: int) -> float:
    """Forward FLOPs of one Attention; a multiply-add counts as two.

    Projections of the queries (query, out) and keys (key, value), and the two non-causal products.
    """
    return 4.0 * (queries + keys) * width * width + 4.0 * queries * keys * width
