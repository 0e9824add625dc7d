"""From tokens to one vector."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

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
        """Pools tokens [B, T, D], real where mask [B, T], to [B, D]."""
        batch, _, width = tokens.shape
        probe = self.param("probe", weight_init(self.weight_init).probe, (1, width))
        query = jnp.broadcast_to(probe.astype(tokens.dtype), (batch, 1, width))
        shared = {"weight_init": self.weight_init}
        x = Attention(self.num_heads, name="attention", **shared)(query, tokens, mask=mask)
        y = LayerNorm(self.norm_eps, name="norm")(x)
        return (x + Mlp(self.mlp_dim, self.mlp, name="mlp", **shared)(y))[:, 0]


def attention_pool_flops(tokens: int, width: int, mlp_dim: int, mlp: str) -> float:
    """Forward FLOPs of AttentionPool; a multiply-add counts as two."""
    return attention_flops(1, tokens, width) + mlp_flops(1, width, mlp_dim, mlp)
