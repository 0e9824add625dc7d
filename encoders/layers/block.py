"""One transformer block: pre-norm, sequential or parallel, or post-norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from encoders.errors import ConfigError
from encoders.layers.attention import Attention, attention_flops
from encoders.layers.mlp import Mlp, mlp_flops
from encoders.layers.norm import LayerNorm


class Block(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)); or both from one norm at once.

    Post-norm is the first transformer's order: norm1(x + attention(x)), then norm2(x + mlp(x)).

    Attributes:
      num_heads: attention heads.
      mlp_dim: hidden size of the MLP.
      mlp: 'gelu', 'swiglu' or another kind of `Mlp`.
      qkv_bias, mlp_bias, norm_bias: which layers have biases.
      norm_eps: of the layer norms.
      qk_norm: layer norm of queries and keys.
      layer_scale: initial value of a learned factor per channel on each branch (arXiv 2103.17239),
        or None for no such factor.
      parallel: attention and MLP read the same norm and are added together (ViT-22B).
      dropout: rate on the branches' outputs and in the MLP; stream 'dropout'.
      weight_init: a convention of WEIGHT_INITS.
      post_norm: the norms come after the sums (arXiv 1706.03762), as in BERT.
      attention_dropout: rate on the attention's weights.
      mlp_dropout: rate after the MLP's activation, where it is not `dropout`.
      attention: makes the attention from the fields of `Attention`, such as a subclass of it.
      attention_norm: False leaves out norm1, for a first block after a norm (ModernBERT).
    """

    num_heads: int
    mlp_dim: int
    mlp: str = "gelu"
    qkv_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True
    norm_eps: float = 1e-6
    qk_norm: bool = False
    layer_scale: float | None = None
    parallel: bool = False
    dropout: float = 0.0
    weight_init: str = "trunc_normal"
    post_norm: bool = False
    attention_dropout: float = 0.0
    mlp_dropout: float | None = None
    attention: Callable[..., nn.Module] = Attention
    attention_norm: bool = True

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        branch_scale: jax.Array | None = None,
        train: bool = False,
        **context: Any,
    ) -> jax.Array:
        """Applies the block.

        Args:
          x: [B, T, D].
          branch_scale: [2, B] what each example's attention and MLP branch is multiplied with (drop
            path: zero where it is dropped).
          train: whether dropout is on.
          **context: what the attention is given besides: mask, rotary, bias, ...

        Returns:
          [B, T, D].

        Raises:
          ConfigError: the block is both parallel and post-norm.
        """
        if self.parallel and self.post_norm:
            raise ConfigError("parallel: a block that is parallel has its norm first.")

        def norm(name: str) -> LayerNorm:
            return LayerNorm(self.norm_eps, self.norm_bias, name=name)

        def branch(y: jax.Array, index: int) -> jax.Array:
            if self.layer_scale is not None:
                init = nn.initializers.constant(self.layer_scale)
                y = y * self.param(f"layer_scale{index}", init, (x.shape[-1],)).astype(y.dtype)
            if branch_scale is not None:
                y = y * branch_scale[index - 1, :, None, None].astype(y.dtype)
            return y

        attention = self.attention(
            num_heads=self.num_heads,
            qkv_bias=self.qkv_bias,
            qk_norm=self.qk_norm,
            norm_eps=self.norm_eps,
            norm_bias=self.norm_bias,
            dropout=self.dropout,
            weight_init=self.weight_init,
            attention_dropout=self.attention_dropout,
            name="attention",
        )
        mlp = Mlp(
            self.mlp_dim,
            self.mlp,
            self.mlp_bias,
            self.dropout,
            self.weight_init,
            self.mlp_dropout,
            name="mlp",
        )
        if self.post_norm:
            x = norm("norm1")(x + branch(attention(x, train=train, **context), 1))
            return norm("norm2")(x + branch(mlp(x, train=train), 2))
        y = norm("norm1")(x) if self.attention_norm else x
        attended = branch(attention(y, train=train, **context), 1)
        if self.parallel:
            return x + attended + branch(mlp(y, train=train), 2)
        x = x + attended
        return x + branch(mlp(norm("norm2")(x), train=train), 2)


def block_flops(tokens: int, width: int, mlp_dim: int, mlp: str) -> float:
    """Forward FLOPs of one Block on one example; a multiply-add counts as two."""
    return attention_flops(tokens, tokens, width) + mlp_flops(tokens, width, mlp_dim, mlp)
