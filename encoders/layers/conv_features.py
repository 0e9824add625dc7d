"""Convolutions from samples to frames, the front end of wav2vec 2.0 (arXiv 2006.11477, section 2).

Nothing of padding reaches a real frame, so a batch gives what its clips give one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError
from encoders.layers.dropout import Dropout
from encoders.layers.linear import Linear
from encoders.layers.mlp import gelu
from encoders.layers.norm import LayerNorm


def strided_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """A convolution without padding that takes steps of more than half its kernel.

    As one or two matrix products of rows that lie `stride` places apart: their gradients are such
    products too, where those of a strided convolution are slow (on CPUs by an order of magnitude).

    Args:
      x: [B, T, C].
      kernel: [k, C, D], with stride <= k <= 2 stride.
      stride: places from one window to the next.

    Returns:
      [B, (T - k) // stride + 1, D] in the promoted dtype.

    Raises:
      ConfigError: kernel and stride are not so.
    """
    size, channels, features = kernel.shape
    if not stride <= size <= 2 * stride:
        raise ConfigError(
            f"strided_conv: expected a kernel of {stride} to {2 * stride} for stride {stride}, "
            f"got {size}."
        )
    batch, frames = x.shape[0], (x.shape[1] - size) // stride + 1

    def product(first: int, count: int) -> jax.Array:
        """What the kernel's places from `first` on give, `count` of them."""
        missing = first + frames * stride - x.shape[1]
        rows = jnp.pad(x[:, first:], ((0, 0), (0, max(missing, 0)), (0, 0)))
        rows = rows[:, : frames * stride].reshape(batch, frames, stride, channels)[:, :, :count]
        weight = kernel[first : first + count].reshape(count * channels, features)
        return jnp.dot(rows.reshape(batch * frames, count * channels), weight)

    y = product(0, stride)
    if size > stride:
        y = y + product(stride, size - stride)
    return y.reshape(batch, frames, features)


def num_frames(samples: Any, kernels: Sequence[int], strides: Sequence[int]) -> Any:
    """Windows that fit: of an int or an array, in the same kind; 0 where not one does."""
    for kernel, stride in zip(kernels, strides, strict=True):
        samples = (samples >= kernel) * ((samples - kernel) // stride + 1)
    return samples


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Samples that one frame is computed from."""
    field, step = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * step
        step *= stride
    return field


class StridedConv(nn.Module):
    """`strided_conv` with kernel [k, C, features] and maybe a bias, in the kernel's dtype.

    Attributes:
      features: channels of the output.
      kernel, stride: see `strided_conv`.
      use_bias: whether there is a bias.
      wide: computes in float32, for samples, which 16 bits would make noisy.
    """

    features: int
    kernel: int
    stride: int
    use_bias: bool = False
    wide: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [B, T, C] to [B, T', features]."""
        shape = (self.kernel, x.shape[-1], self.features)
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        kernel = self.param("kernel", init, shape)
        dtype = jnp.float32 if self.wide else kernel.dtype
        y = strided_conv(x.astype(dtype), kernel.astype(dtype), self.stride)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,))
        return y.astype(kernel.dtype)


class ChannelNorm(nn.Module):
    """Normalises every channel over the real frames of a clip, in float32.

    Group norm with as many groups as channels. Public PyTorch code takes padding into mean and
    variance, so that a clip's features depend on what it is batched with; here they do not.

    Attributes:
      eps: added to the variance.
    """

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Returns x [B, T, C] normalised, in x's dtype; mask [B, T] bool, None if all are real."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        mean, inverse = moments(x.astype(jnp.float32), mask, self.eps)
        scale = scale.astype(jnp.float32) * inverse
        return (x * scale + (bias - mean * scale)).astype(x.dtype)


def moments(x: jax.Array, mask: jax.Array | None, eps: float) -> tuple[jax.Array, jax.Array]:
    """Mean and 1 / sqrt(variance + eps) over time, both [B, 1, C], of float32 x [B, T, C]."""
    weight = jnp.ones(x.shape[:2], x.dtype) if mask is None else mask.astype(x.dtype)
    count = jnp.maximum(weight.sum(1), 1)[:, None, None]
    weight = weight[..., None]
    mean = (x * weight).sum(1, keepdims=True) / count
    variance = (jnp.square(x - mean) * weight).sum(1, keepdims=True) / count
    return mean, jax.lax.rsqrt(variance + eps)


def normalized_waveform(
    waveform: jax.Array, mask: jax.Array | None, eps: float = 1e-7
) -> jax.Array:
    """Clips [B, S] with mean 0 and variance 1 over their real samples, and zeros behind them."""
    wide = waveform.astype(jnp.float32)[..., None]
    mean, inverse = moments(wide, mask, eps)
    y = ((wide - mean) * inverse)[..., 0]
    return y if mask is None else jnp.where(mask, y, 0)


class ConvFeatures(nn.Module):
    """Strided convolutions with norms and GELU: samples to frames.

    Attributes:
      dim: C, channels of every layer.
      kernels, strides: of the layers, from the samples on.
      norm: 'group' normalises the first layer's channels over time (`ChannelNorm`), 'layer' every
        frame of every layer over its channels.
      use_bias: whether the convolutions have biases.
    """

    dim: int
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    norm: Literal["group", "layer"]
    use_bias: bool

    @nn.compact
    def __call__(self, waveform: jax.Array, lengths: jax.Array | None = None) -> jax.Array:
        """Maps a waveform [B, S] with `lengths` [B] real samples, None if all, to [B, T, C]."""
        x = waveform.astype(jnp.float32)[..., None]
        for layer, (kernel, stride) in enumerate(zip(self.kernels, self.strides, strict=True)):
            options = {"use_bias": self.use_bias, "wide": layer == 0, "name": f"conv_{layer}"}
            x = StridedConv(self.dim, kernel, stride, **options)(x)
            if self.norm == "layer":
                x = LayerNorm(1e-5, name=f"norm_{layer}")(x)
            elif layer == 0:
                mask = None
                if lengths is not None:
                    real = num_frames(lengths, self.kernels[:1], self.strides[:1])
                    mask = jnp.arange(x.shape[1]) < real[:, None]
                x = ChannelNorm(name="norm_0")(x, mask)
            x = gelu(x)
        return x


def conv_features_flops(
    samples: int, dim: int, kernels: Sequence[int], strides: Sequence[int]
) -> float:
    """Forward FLOPs of ConvFeatures on one clip; a multiply-add counts as two."""
    total, channels = 0.0, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        samples = num_frames(samples, (kernel,), (stride,))
        total += 2.0 * samples * kernel * channels * dim
        channels = dim
    return total


class FeatureProjection(nn.Module):
    """From features to the width of the blocks, with some frames or channels masked.

    Attributes:
      width: D.
      dropout: rate on the projected features; stream 'dropout'.
    """

    width: int
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        features: jax.Array,
        masked: jax.Array | None = None,
        masked_channels: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """Projects.

        Args:
          features: [B, T, C].
          masked: [B, T] bool, frames that are replaced by the learnt 'mask_embedding', or None.
          masked_channels: [B, D] bool, channels that are zero in all frames, or None.
          train: whether dropout is on.

        Returns:
          [B, T, D].
        """
        limit = 1 / math.sqrt(features.shape[-1])
        uniform = nn.initializers.uniform(2 * limit)

        def around_zero(*arguments: Any) -> jax.Array:  # PyTorch's linear layer
            return uniform(*arguments) - limit

        x = Linear(self.width, True, around_zero, around_zero, name="linear")(features)
        x = Dropout(self.dropout)(x, train=train)
        # There whether it is used or not: weights of all uses have one form.
        embedding = self.param("mask_embedding", nn.initializers.uniform(1.0), (self.width,))
        if masked is not None:
            x = jnp.where(masked[..., None], embedding.astype(x.dtype), x)
        if masked_channels is not None:
            x = jnp.where(masked_channels[:, None, :], 0, x)
        return x
