"""Positions from a convolution over time, as wav2vec 2.0 has them (arXiv 2006.11477, section 2)."""

from __future__ import annotations

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError, nearest
from encoders.layers.mlp import gelu
from encoders.layers.norm import layer_norm

Formulation = Literal["auto", "conv", "blocks", "fft"]


def grouped_conv(
    x: jax.Array, kernel: jax.Array, groups: int, formulation: Formulation = "auto"
) -> jax.Array:
    """A grouped convolution over time that keeps the length.

    Of an even kernel one more place lies before a frame than behind it. 'conv' is XLA's own, whose
    gradient is slow on CPUs and GPUs. 'blocks' computes some frames at a time as one matrix product
    per group: all they see, against a matrix that has the kernel once for each of them, shifted;
    the zeros around it cost an eighth more products. 'fft' multiplies spectra, in float32, with the
    fewest products. 'auto' takes 'conv' on TPUs, 'blocks' on GPUs, and 'fft' on CPUs.

    Args:
      x: [B, T, C].
      kernel: [k, C / groups, C].
      groups: G, parts of the channels that do not see each other.
      formulation: how it is computed; all give the same up to rounding.

    Returns:
      [B, T, C].

    Raises:
      ConfigError: G does not divide C, or there is no such formulation.
    """
    if x.shape[-1] % groups:
        raise ConfigError(f"position_groups: {groups} does not divide the width {x.shape[-1]}.")
    if formulation == "auto":
        fastest = {"tpu": "conv", "cpu": "fft"}
        formulation = fastest.get(jax.default_backend(), "blocks")
    if formulation in ("blocks", "fft"):
        return (_in_blocks if formulation == "blocks" else _by_spectra)(x, kernel, groups)
    if formulation != "conv":
        known = ("auto", "conv", "blocks", "fft")
        raise ConfigError(
            f"position_formulation: unknown '{formulation}'.{nearest(formulation, known)}"
        )
    before = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1,),
        [(before, kernel.shape[0] - 1 - before)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )


def _in_blocks(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    batch, length, width = x.shape
    size, inner, _ = kernel.shape
    block = min(max(size // 8, 4), length)  # frames that are computed at a time
    count = -(-length // block)
    parts = -(-(block + size - 1) // block)  # blocks that one sees, the last maybe not to its end
    seen = parts * block
    before = size // 2
    x = jnp.pad(x, ((0, 0), (before, (count - 1) * block + seen - before - length), (0, 0)))
    # [G, B, blocks, block * C/G]: rows of which `parts` in a row are what a block sees.
    x = x.reshape(batch, -1, block, groups, inner).transpose(3, 0, 1, 2, 4)
    x = x.reshape(groups, batch, -1, block * inner)
    x = jnp.concatenate([x[:, :, i : i + count] for i in range(parts)], axis=-1)
    x = x.reshape(groups, batch * count, seen * inner)
    # [seen, C/G, block, C]: the kernel, shifted by the frame's place in the block.
    zeros = [((i, seen - size - i), (0, 0), (0, 0)) for i in range(block)]
    matrix = jnp.stack([jnp.pad(kernel, pad) for pad in zeros], axis=2)
    matrix = matrix.reshape(seen, inner, block, groups, inner).transpose(3, 0, 1, 2, 4)
    y = jnp.matmul(x, matrix.reshape(groups, seen * inner, block * inner))
    y = y.reshape(groups, batch, count * block, inner).transpose(1, 2, 0, 3)
    return y[:, :length].reshape(batch, length, width)


def _by_spectra(x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    batch, length, width = x.shape
    size, inner, _ = kernel.shape
    total = 2 ** math.ceil(math.log2(length + size - 1))
    # Turned over, since a product of spectra is a convolution and not a correlation.
    kernel = kernel[::-1].astype(jnp.float32).reshape(size, inner, groups, inner)
    kernel = jnp.fft.rfft(kernel, total, axis=0)
    spectra = x.astype(jnp.float32).reshape(batch, length, groups, inner)
    spectra = jnp.fft.rfft(spectra, total, axis=1)
    y = jnp.fft.irfft(jnp.einsum("bfgi,figo->bfgo", spectra, kernel), total, axis=1)
    first = size - 1 - size // 2
    return y.reshape(batch, total, width)[:, first : first + length].astype(x.dtype)


class PositionalConv(nn.Module):
    """GELU of a grouped convolution over time: what is added to the frames as their positions.

    Attributes:
      kernel: k, places that a frame sees.
      groups: G.
      depth: layers, one after the other (data2vec has five).
      weight_norm: the kernel is scale * v / |v| for each of its k places (arXiv 1602.07868).
      plain_norm: a layer norm without parameters, eps 1e-5, before the GELU.
      formulation: see `grouped_conv`.
    """

    kernel: int = 128
    groups: int = 16
    depth: int = 1
    weight_norm: bool = True
    plain_norm: bool = False
    formulation: Formulation = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps frames x [B, T, D] to [B, T, D]; padding, where mask [B, T] is False, is as zeros.

        Raises:
          ConfigError: see `grouped_conv`.
        """
        width = x.shape[-1]
        ones = jnp.ones((width,), jnp.float32)
        for layer in range(self.depth):
            place = "" if self.depth == 1 else f"_{layer}"
            shape = (self.kernel, max(width // self.groups, 1), width)
            init = nn.initializers.normal(2 / math.sqrt(self.kernel * width))
            if not self.weight_norm:  # PyTorch's
                init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
            kernel = self.param(f"kernel{place}", init, shape)
            bias = self.param(f"bias{place}", nn.initializers.zeros, (width,))
            if self.weight_norm:
                kernel = self._normalized(kernel, place)
            if mask is not None:  # again for every layer, whose padding would reach real frames
                x = jnp.where(mask[..., None], x, 0)
            x = grouped_conv(x.astype(kernel.dtype), kernel, self.groups, self.formulation) + bias
            if self.plain_norm:
                x = layer_norm(x, ones, None, 1e-5)
            x = gelu(x)
        return x

    def _normalized(self, kernel: jax.Array, place: str) -> jax.Array:
        def norms(v: jax.Array) -> jax.Array:
            return jnp.sqrt(jnp.square(v.astype(jnp.float32)).sum((1, 2), keepdims=True))

        # As PyTorch's: the kernel starts as it was drawn.
        scale = self.param("scale" + place, lambda _: norms(kernel)[:, 0, 0])
        scale = scale.astype(jnp.float32)[:, None, None]
        return (kernel * (scale / norms(kernel))).astype(kernel.dtype)


def positional_conv_flops(frames: int, width: int, kernel: int, groups: int, depth: int) -> float:
    """Forward FLOPs of PositionalConv on one clip; a multiply-add counts as two."""
    return 2.0 * depth * frames * kernel * width * (width // groups)
