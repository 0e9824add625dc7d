"""From tokens to one vector."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError, nearest
from encoders.layers.attention import Attention, attention_flops
from encoders.layers.initializers import weight_init
from encoders.layers.mlp import Mlp, mlp_flops
from encoders.layers.norm import LayerNorm


def masked_mean(tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Mean over the real tokens, in float32.

    Args:
      tokens: [B, T, D].
      mask: [B, T] bool, True where a token is real; None if all are.

    Returns:
      [B, D] in the dtype of `tokens`.
    """
    wide = tokens.astype(jnp.float32)
    if mask is None:
        return wide.mean(1).astype(tokens.dtype)
    weight = mask.astype(jnp.float32)[..., None]
    return ((wide * weight).sum(1) / jnp.maximum(weight.sum(1), 1)).astype(tokens.dtype)


Pooling = Literal["cls", "max", "mean", "mean_sqrt", "weighted_mean", "last"]
POOLINGS = ("cls", "max", "mean", "mean_sqrt", "weighted_mean", "last")


def pool(tokens: jax.Array, mask: jax.Array, how: Pooling) -> jax.Array:
    """One vector per text from its real tokens, in float32; zeros where no token is real.

      cls            the first token
      max            the maximum of every feature
      mean           the mean
      mean_sqrt      the sum over the square root of the count
      weighted_mean  the mean with weights 1, 2, 3, ... from the first token on (SGPT, arXiv
                     2202.08904, equation 2)
      last           the last token

    Args:
      tokens: [B, T, D].
      mask: [B, T] bool, True where a token is real; padding may stand before or behind.
      how: one of POOLINGS.

    Returns:
      [B, D] in the dtype of `tokens`.

    Raises:
      ConfigError: `how` is none of these.
    """
    if how not in POOLINGS:
        raise ConfigError(f"pooling: unknown '{how}'.{nearest(how, POOLINGS)}")
    if how == "mean":
        return masked_mean(tokens, mask)
    length = tokens.shape[1]
    real = mask.any(1)[:, None]
    first = mask.argmax(1)[:, None]
    if how in ("cls", "last"):
        where = first if how == "cls" else length - 1 - mask[:, ::-1].argmax(1)[:, None]
        read = jnp.take_along_axis(tokens, where[..., None], axis=1)[:, 0]
        return jnp.where(real, read, 0)
    if how == "max":
        # The least number rather than minus infinity, whose gradient is none.
        low = jnp.finfo(tokens.dtype).min
        return jnp.where(real, jnp.where(mask[..., None], tokens, low).max(1), 0)
    weight = mask.astype(jnp.float32)
    if how == "weighted_mean":
        weight *= jnp.arange(1, length + 1) - first
    total = (tokens.astype(jnp.float32) * weight[..., None]).sum(1)
    count = jnp.maximum(weight.sum(1, keepdims=True), 1)
    return (total / (jnp.sqrt(count) if how == "mean_sqrt" else count)).astype(tokens.dtype)


def unit(vectors: jax.Array) -> jax.Array:
    """Vectors [..., D] scaled to length 1, in float32; a vector of zeros stays one."""
    wide = vectors.astype(jnp.float32)
    # Not of the norm, whose gradient at zero is not a number.
    square = jnp.square(wide).sum(-1, keepdims=True)
    return wide * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


class AttentionPool(nn.Module):
    """Multi-head attention pooling: a learned probe attends to the tokens, then a residual MLP.

    "MAP" of Scaling Vision Transformers (arXiv 2106.04560), SigLIP; timm's `AttentionPoolLatent`.

    Attributes:
      num_heads, mlp_dim, mlp, norm_eps, weight_init: as in a block.
    """

    num_heads: int
    mlp_dim: int
    mlp: str = "gelu"
    norm_eps: float = 1e-6
    weight_init: str = "trunc_normal"

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Pools tokens [B, T, D], real where mask [B, T], to [B, D]; [B, S, T] to [B, S, D]."""
        batch, _, width = tokens.shape
        sets = mask.shape[1] if mask is not None and mask.ndim == 3 else 1
        probe = self.param("probe", weight_init(self.weight_init).probe, (1, width))
        query = jnp.broadcast_to(probe.astype(tokens.dtype), (batch, sets, width))
        shared = {"weight_init": self.weight_init}
        x = Attention(self.num_heads, name="attention", **shared)(query, tokens, mask=mask)
        y = LayerNorm(self.norm_eps, name="norm")(x)
        x = x + Mlp(self.mlp_dim, self.mlp, name="mlp", **shared)(y)
        return x if mask is not None and mask.ndim == 3 else x[:, 0]


def attention_pool_flops(tokens: int, width: int, mlp_dim: int, mlp: str) -> float:
    """Forward FLOPs of AttentionPool; a multiply-add counts as two."""
    return attention_flops(1, tokens, width) + mlp_flops(1, width, mlp_dim, mlp)
