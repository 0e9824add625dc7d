"""The Conformer's block (Gulati et al., arXiv 2005.08100): attention and convolution in turn."""

from __future__ import annotations

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError, nearest
from encoders.layers.attention import Attention, attention_flops
from encoders.layers.dropout import Dropout
from encoders.layers.initializers import trunc_normal, weight_init
from encoders.layers.linear import Linear
from encoders.layers.mlp import Mlp, mlp_flops
from encoders.layers.norm import BatchNorm, LayerNorm
from encoders.layers.two_stream import distance_scores

ConvNorm = Literal["layer", "batch"]


class RelativeAttention(Attention):
    """softmax of ((q + u)·k + (q + v)·r) / sqrt(d) (arXiv 1901.02860, section 3.3).

    r is the projected encoding of the distance from a key to a query; u and v are learned for every
    head. Attributes as of `Attention`.
    """

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        distances: jax.Array,
        mask: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Attends.

        Args:
          x: [B, T, D].
          distances: [2 T - 1, D], encodings of T - 1, ..., 1 - T (see `distance_encodings`).
          mask: [B, T] bool, True where a key is real.
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
        per_head = (self.num_heads, width // self.num_heads)

        def project(source: jax.Array, name: str, bias: bool = True) -> jax.Array:
            y = Linear(width, bias, init.qkv, name=name)(source)
            return y.reshape(*y.shape[:-1], *per_head)

        query, key, value = (project(x, name, self.qkv_bias) for name in ("query", "key", "value"))
        positions = project(distances, "position", False)
        content = self.param("content_bias", trunc_normal(0.02), per_head)
        place = self.param("position_bias", trunc_normal(0.02), per_head)
        bias = distance_scores(query + place, positions, x.shape[1]) / math.sqrt(per_head[1])
        drop = None
        if train and self.attention_dropout:
            drop = Dropout(self.attention_dropout, name="drop_weights")
        y = self._attend(query + content, key, value, drop, mask=mask, bias=bias)
        y = Linear(width, self.out_bias, init.kernel, name="out")(y.reshape(x.shape))
        return Dropout(self.dropout)(y, train=train)


class ConvModule(nn.Module):
    """Gate, depthwise convolution over time, norm, Swish and projection (section 2.2).

    Attributes:
      kernel: frames that the convolution sees.
      norm: behind the convolution: 'batch' as in the paper, or 'layer', which makes no example
        depend on others.
      norm_eps: of a layer norm.
    """

    kernel: int
    norm: ConvNorm = "layer"
    norm_eps: float = 1e-5

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Maps x [B, T, D], of which mask [B, T] is real, to [B, T, D].

        Raises:
          ConfigError: there is no such norm.
        """
        width, init = x.shape[-1], trunc_normal(0.02)
        value, gate = jnp.split(Linear(2 * width, False, init, name="pointwise1")(x), 2, axis=-1)
        y = value * jax.nn.sigmoid(gate)
        if mask is not None:
            y = jnp.where(mask[..., None], y, 0)
        y = DepthwiseConv(self.kernel, name="depthwise")(y)
        if self.norm == "batch":
            y = BatchNorm(name="norm")(y, mask=mask, train=train)
        elif self.norm == "layer":
            y = LayerNorm(self.norm_eps, name="norm")(y)
        else:
            hint = nearest(self.norm, ("batch", "layer"))
            raise ConfigError(f"model.conv_norm: unknown '{self.norm}'.{hint}")
        return Linear(width, False, init, name="pointwise2")(jax.nn.silu(y))


class DepthwiseConv(nn.Module):
    """A convolution over time of every channel on its own, with kernel [k, D].

    With zeros around the row, one more behind it where k is even. As a sum of k shifted products,
    which XLA fuses: a grouped convolution's gradient is slow on GPUs.

    Attributes:
      taps: k.
    """

    taps: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [B, T, D] to [B, T, D]."""
        init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform", in_axis=0, out_axis=1)
        kernel = self.param("kernel", init, (self.taps, x.shape[-1]))
        length = x.shape[1]
        x = jnp.pad(x, ((0, 0), ((self.taps - 1) // 2, self.taps // 2), (0, 0)))
        return sum(x[:, i : i + length] * kernel[i] for i in range(self.taps))


class ConformerBlock(nn.Module):
    """Half an MLP, attention, convolution, half an MLP, each added to what comes in; then a norm.

    Attributes:
      num_heads, mlp_dim: of attention and MLPs.
      kernel, conv_norm: see `ConvModule`.
      relative: attention is `RelativeAttention`; else the plain one, which may be given `rotary`.
      norm_eps: of the layer norms.
      dropout: rate on the branches' outputs and in the MLPs; stream 'dropout'.
      attention_dropout: rate on the attention's weights.
      attention_kernel: see `Attention`.
    """

    num_heads: int
    mlp_dim: int
    kernel: int
    conv_norm: ConvNorm = "layer"
    relative: bool = True
    norm_eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0
    attention_kernel: str = "plain"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        branch_scale: jax.Array | None = None,
        mask: jax.Array | None = None,
        train: bool = False,
        **places: jax.Array,
    ) -> jax.Array:
        """Applies the block.

        Args:
          x: [B, T, D].
          branch_scale: [2, B] what attention and convolution, and the MLPs, are multiplied with.
          mask: [B, T] bool, which frames are real.
          train: whether dropout is on, and batch norm uses the batch's statistics.
          **places: `distances` or `rotary`, what the attention is given besides.

        Returns:
          [B, T, D].
        """

        def norm(name: str) -> LayerNorm:
            return LayerNorm(self.norm_eps, name=name)

        def scaled(y: jax.Array, index: int, factor: float = 1.0) -> jax.Array:
            if branch_scale is None:
                return y if factor == 1 else y * factor
            return y * (factor * branch_scale[index, :, None, None]).astype(y.dtype)

        def half_mlp(x: jax.Array, which: str) -> jax.Array:
            # By a name that ends with 'mlp' it is split as those of other blocks (TENSOR_RULES).
            mlp = Mlp(self.mlp_dim, "silu", dropout=self.dropout, name=f"{which}_mlp")
            return x + scaled(mlp(norm(f"norm_{which}_mlp")(x), train=train), 1, 0.5)

        x = half_mlp(x, "first")
        attention = (RelativeAttention if self.relative else Attention)(
            self.num_heads,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            kernel=self.attention_kernel,
            name="attention",
        )
        y = attention(norm("norm_attention")(x), mask=mask, train=train, **places)
        x = x + scaled(y, 0)
        conv = ConvModule(self.kernel, self.conv_norm, self.norm_eps, name="conv")
        y = conv(norm("norm_conv")(x), mask=mask, train=train)
        x = x + scaled(Dropout(self.dropout)(y, train=train), 0)
        return norm("norm")(half_mlp(x, "second"))


def conformer_flops(tokens: int, width: int, mlp_dim: int, kernel: int, relative: bool) -> float:
    """Forward FLOPs of a block on one example; a multiply-add counts as two.

    The projection of the distances, one for the whole batch, is left out.
    """
    total = 2 * mlp_flops(tokens, width, mlp_dim, "silu") + attention_flops(tokens, tokens, width)
    total += 2.0 * tokens * (3 * width * width + kernel * width)
    return total + (2.0 * tokens * tokens * width if relative else 0.0)
