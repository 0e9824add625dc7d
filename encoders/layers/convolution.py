"""Convolutions of images, and what convolutional encoders share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError
from encoders.layers.initializers import Initializer
from encoders.layers.stack import resolve_layers
from encoders.types import Encoded

Padding = Literal["same", "alike", "late", "none"]
# Keras and PyTorch draw from a normal of variance 2 / fan; of which fan, they differ.
HE = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


@dataclasses.dataclass(frozen=True)
class ConvSize:
    """What others ask of a convolutional encoder: width of its vectors, number of its stages."""

    width: int
    depth: int


class Conv(nn.Module):
    """A convolution without bias, with kernel [k, k, C / groups, features], in the kernel's dtype.

    Attributes:
      features: channels of the output.
      kernel: k, its side.
      stride: of both axes.
      padding: zeros around the image: 'same' as TensorFlow, so that the output has 1 / stride of
        the size rounded up, the odd zero at the end; 'alike', k // 2 on every side, as PyTorch's
        networks; 'late', as 'same' does where sizes are even, whatever they are; or 'none'.
      depthwise: every channel has a kernel of its own and sees no other.
    """

    features: int
    kernel: int
    stride: int = 1
    padding: Padding = "alike"
    depthwise: bool = False
    kernel_init: Initializer = HE

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [B, H, W, C] to [B, H', W', features]."""
        groups = x.shape[-1] if self.depthwise else 1
        shape = (self.kernel, self.kernel, x.shape[-1] // groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        half = self.kernel // 2
        zeros = {
            "same": "SAME",
            "alike": [(half, half)] * 2,
            "late": [(half - (self.stride > 1), half)] * 2,
            "none": "VALID",
        }
        return jax.lax.conv_general_dilated(
            x.astype(kernel.dtype),
            kernel,
            (self.stride, self.stride),
            zeros[self.padding],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )


class Conv1D(nn.Module):
    """A convolution over time, with kernel [k, C, features], in the kernel's dtype.

    Attributes:
      features: channels of the output.
      kernel: k, in steps of time.
      stride: of the output.
      padding: zeros before and behind.
      use_bias: whether there is a bias.
      kernel_init: initialiser.
    """

    features: int
    kernel: int
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    use_bias: bool = True
    kernel_init: Initializer = HE

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [B, T, C] to [B, T', features]."""
        shape = (self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        y = jax.lax.conv_general_dilated(
            x.astype(kernel.dtype),
            kernel,
            (self.stride,),
            [self.padding],
            dimension_numbers=("NTC", "TIO", "NTC"),
        )
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,))
        return y


def average_pool(x: jax.Array, side: int) -> jax.Array:
    """Means of squares: [B, H, W, C] -> [B, H // side, W // side, C]; what fills none is cut."""
    height, width = x.shape[1] // side, x.shape[2] // side
    x = x[:, : height * side, : width * side]
    parts = x.reshape(x.shape[0], height, side, width, side, x.shape[-1])
    return parts.mean((2, 4), dtype=jnp.float32).astype(x.dtype)


def max_pool(x: jax.Array) -> jax.Array:
    """Largest values of 3 x 3 pixels, every other one, as ResNets have it after the stem."""
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def mean_of(x: jax.Array) -> jax.Array:
    """[B, h, w, C] -> [B, C]."""
    return x.mean((1, 2), dtype=jnp.float32).astype(x.dtype)


def drop_branch(module: nn.Module, y: jax.Array, rate: float, train: bool) -> jax.Array:
    """Stochastic depth (arXiv 1603.09382): a branch [B, ...] is zero for some of the examples."""
    if not train or not rate:
        return y
    kept = jax.random.bernoulli(module.make_rng("dropout"), 1 - rate, (y.shape[0], 1, 1, 1))
    return y * (kept / (1 - rate)).astype(y.dtype)


def output_size(image_size: tuple[int, int], stride: int) -> tuple[int, int]:
    """(height, width) after padding that keeps sizes: divided and rounded up."""
    return tuple(-(-side // stride) for side in image_size)


class ConvNet(nn.Module):
    """Base of encoders of feature maps; subclasses have `size`, `pool` and `_maps`."""

    modality = "image"
    pool = "none"  # a field of subclasses

    @property
    def size(self) -> ConvSize:
        """Width of the vectors, number of stages."""
        raise NotImplementedError

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        layers: Sequence[int] | Literal["all"] = (),
    ) -> Encoded:
        """Encodes images.

        Args:
          images: [B, H, W, C] float, already normalised.
          train: whether batch norms read the batch's own statistics, and drop path is on.
          layers: stages whose maps to return, [B, h * w, C] each, or 'all'.

        Returns:
          Encoded.

        Raises:
          ConfigError: there is no such stage, or the images are too small.
        """
        wanted = resolve_layers(layers, self.size.depth)
        maps = self._maps(images, train)
        rows = [x.reshape(x.shape[0], -1, x.shape[-1]) for x in maps]
        if not rows[-1].shape[1]:
            raise ConfigError(f"{type(self).__name__}: nothing is left of such small images.")
        mask = jnp.ones(rows[-1].shape[:2], bool)
        hidden = {layer: rows[layer] for layer in wanted}
        return Encoded(rows[-1], mask, self._pool(maps[-1]), hidden)

    def _maps(self, images: jax.Array, train: bool) -> list[jax.Array]:
        """What every stage leaves of the images, [B, h, w, C], and at last what is pooled."""
        raise NotImplementedError

    def _pool(self, x: jax.Array) -> jax.Array | None:
        """[B, h, w, C] -> [B, C], or None."""
        return mean_of(x) if self.pool == "mean" else None


def convolution_flops(
    size: tuple[int, int], kernel: int, channels: int, features: int, depthwise: bool = False
) -> float:
    """Forward FLOPs of a convolution whose output is of that (height, width)."""
    return 2.0 * size[0] * size[1] * kernel**2 * (1 if depthwise else channels) * features
