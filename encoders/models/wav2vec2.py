"""wav2vec 2.0 (arXiv 2006.11477), and what the encoders of raw speech after it have in common.

Strided convolutions make frames of samples (at 16 kHz one for every 20 ms), a convolution over
frames adds their positions, and transformer blocks follow. The published Base normalises the first
convolution over time and is post-norm; Large normalises every convolution, is pre-norm, and reads
waveforms of mean 0 and variance 1 (`normalize_waveform`).

A family that descends from it is a subclass with other defaults and its own SIZES.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from encoders.errors import ConfigError, nearest
from encoders.layers.attention import Attention
from encoders.layers.block import Block, block_flops
from encoders.layers.conv_features import (
    ConvFeatures,
    FeatureProjection,
    conv_features_flops,
    normalized_waveform,
    num_frames,
    receptive_field,
)
from encoders.layers.dropout import Dropout
from encoders.layers.norm import LayerNorm
from encoders.layers.pooling import masked_mean
from encoders.layers.positional_conv import Formulation, PositionalConv, positional_conv_flops
from encoders.layers.stack import Stack
from encoders.types import Encoded


@dataclasses.dataclass(frozen=True)
class SpeechSize:
    """A published size, and where the norms are, in which sizes differ as well.

    Attributes:
      width: D, the size of a frame.
      depth: blocks.
      mlp_dim: hidden size of the MLP.
      num_heads: attention heads.
      conv_norm, conv_bias: see `ConvFeatures`.
      pre_norm: the norms of a block come before attention and MLP.
    """

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    conv_norm: Literal["group", "layer"] = "layer"
    conv_bias: bool = True
    pre_norm: bool = True


class Wav2Vec2(nn.Module):
    """Bidirectional encoder of waveforms: convolutions, positions, blocks, and pooling.

    Attributes:
      variant: a size of SIZES.
      width, depth, mlp_dim, num_heads, conv_norm, conv_bias, pre_norm: override the variant's.
      conv_dim: C, channels of the convolutions.
      conv_kernels, conv_strides: of the convolutions, from the samples on.
      feature_norm: a layer norm between convolutions and projection.
      feature_gradient: what gradients are multiplied with where they enter the convolutions: 0.1 in
        the published pre-training of Base, 0 to train them no further.
      normalize_waveform: waveforms are given mean 0 and variance 1 over their real samples.
      position_kernel, position_groups: of the convolution of positions.
      position_formulation: how that is computed, see `grouped_conv`.
      pool: 'mean' of the real frames, or 'none'.
      mlp: activation of the MLP (see `Mlp`).
      norm_eps: of all layer norms but the convolutions'.
      dropout: rate before the blocks and on the branches' outputs; stream 'dropout'.
      attention_dropout: rate on the attention's weights.
      mlp_dropout: rate after the MLP's activation.
      input_dropout: rate on the projected features.
      layer_drop: rate at which an example skips a block (see `Stack`).
      attention_kernel: 'plain' or 'fused', see `Attention`.
      scan, remat: see `Stack`.
    """

    variant: str = "base"
    width: int | None = None
    depth: int | None = None
    mlp_dim: int | None = None
    num_heads: int | None = None
    conv_norm: Literal["group", "layer"] | None = None
    conv_bias: bool | None = None
    pre_norm: bool | None = None
    conv_dim: int = 512
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    feature_norm: bool = True
    feature_gradient: float = 1.0
    normalize_waveform: bool = False
    position_kernel: int = 128
    position_groups: int = 16
    position_formulation: Formulation = "auto"
    pool: Literal["mean", "none"] = "mean"
    mlp: Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"] = "gelu"
    norm_eps: float = 1e-5
    dropout: float = 0.1
    attention_dropout: float = 0.1
    mlp_dropout: float = 0.0
    input_dropout: float = 0.1
    layer_drop: float = 0.05
    attention_kernel: Literal["plain", "fused"] = "plain"
    scan: bool = False
    remat: str = "none"

    modality = "audio"
    WEIGHT_NORM = True  # of positions; where there is none, each of their layers has a norm

    # Section 4.2 of the paper; '1B' and '2B' are XLS-R's (arXiv 2111.09296, table 1).
    SIZES = {  # noqa: RUF012
        "base": SpeechSize(768, 12, 3072, 12, "group", False, False),
        "large": SpeechSize(1024, 24, 4096, 16),
        "1B": SpeechSize(1280, 48, 5120, 16),
        "2B": SpeechSize(1920, 48, 7680, 16),
    }

    @property
    def size(self) -> SpeechSize:
        """The variant's size with this module's overrides.

        Raises:
          ConfigError: the variant is unknown.
        """
        if self.variant not in self.SIZES:
            hint = nearest(self.variant, self.SIZES)
            raise ConfigError(f"model.variant: unknown size '{self.variant}'.{hint}")
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(SpeechSize)}
        given = {field: value for field, value in given.items() if value is not None}
        return dataclasses.replace(self.SIZES[self.variant], **given)

    @property
    def feature_dim(self) -> int:
        """C of `features`."""
        return self.conv_dim

    @property
    def stride(self) -> int:
        """Samples from one frame to the next."""
        return int(np.prod(self.conv_strides))

    @property
    def receptive_field(self) -> int:
        """Samples that one frame is computed from, before positions and attention."""
        return receptive_field(self.conv_kernels, self.conv_strides)

    def frames(self, samples: Any) -> Any:
        """Frames of that many samples, an int or an array; 0 where there are too few for one."""
        return num_frames(samples, self.conv_kernels, self.conv_strides)

    def flops(self, samples: int) -> float:
        """Forward FLOPs per clip; a multiply-add counts as two, elementwise work as nothing."""
        size, frames = self.size, self.frames(samples)
        total = self.feature_flops(samples)
        total += 2.0 * frames * self.conv_dim * size.width
        total += positional_conv_flops(frames, size.width, *self._position_shape())
        return total + size.depth * block_flops(frames, size.width, size.mlp_dim, self.mlp)

    def feature_flops(self, samples: int) -> float:
        """Those of them that `features` needs."""
        return conv_features_flops(samples, self.conv_dim, self.conv_kernels, self.conv_strides)

    def setup(self) -> None:
        size = self.size
        self.convolutions = ConvFeatures(
            self.conv_dim, self.conv_kernels, self.conv_strides, size.conv_norm, size.conv_bias
        )
        if self.feature_norm:
            self.norm_features = LayerNorm(self.norm_eps)

    def features(
        self,
        waveform: jax.Array,
        mask: jax.Array | None = None,
        *,
        train: bool = False,
        energy: bool = False,
    ) -> tuple[jax.Array, ...]:
        """What is projected and given to the blocks; quantizers read it, too.

        Args:
          waveform: [B, S] float.
          mask: [B, S] bool, True where a sample is real; the real ones come first. None if all are.
          train: for encoders whose features depend on it.
          energy: also returns the mean squares of the convolutions' outputs before their norm.

        Returns:
          Features [B, T, C] and their mask [B, T] bool: frames of real samples alone. With `energy`
          float32 [B, T] as well.

        Raises:
          ConfigError: `waveform` is no batch of waveforms, or shorter than one frame.
        """
        del train
        self._check(waveform)
        if self.normalize_waveform:
            waveform = normalized_waveform(waveform, mask)
        lengths = None if mask is None else mask.astype(jnp.int32).sum(1)
        x = self.convolutions(waveform, lengths)
        if self.feature_gradient != 1.0:
            x = _scale_gradient(x, self.feature_gradient)
        frames = jnp.ones(x.shape[:2], bool)
        if lengths is not None:
            frames = jnp.arange(x.shape[1]) < self.frames(lengths)[:, None]
        y = self.norm_features(x) if self.feature_norm else x
        if not energy:
            return y, frames
        return y, frames, jnp.square(x.astype(jnp.float32)).mean(-1)

    @nn.compact
    def __call__(
        self,
        waveform: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool = False,
        layers: Sequence[int] | Literal["all"] = (),
        features: tuple[jax.Array, jax.Array] | None = None,
        masked: jax.Array | None = None,
        masked_channels: jax.Array | None = None,
    ) -> Encoded:
        """Encodes waveforms.

        Padding changes nothing: of a clip in a batch comes what comes of it alone. Public PyTorch
        code has that property where convolutions have layer norms, and not with 'group'.

        Args:
          waveform: [B, S] float at the rate the encoder is for.
          mask: [B, S] bool, True where a sample is real; the real ones come first. None if all are.
          train: whether dropout and layer drop are on.
          layers: blocks whose outputs to return, negative ones counted from the end, or 'all'.
          features: features and their mask as `features` returned them, not to compute them again.
          masked: [B, T] bool, frames that are replaced by the learnt mask embedding.
          masked_channels: [B, D] bool, channels of the projected features that are set to zero.

        Returns:
          Encoded, of frames.

        Raises:
          ConfigError: `waveform` is no batch of waveforms, or shorter than one frame.
        """
        size = self.size
        found = self.features(waveform, mask, train=train) if features is None else features
        x, real = found[:2]
        projection = FeatureProjection(size.width, self.input_dropout, name="projection")
        x = projection(x, masked, masked_channels, train=train)
        x = jnp.where(real[..., None], x, 0)
        x = x + self._positions()(x, real)
        if not size.pre_norm:
            x = LayerNorm(self.norm_eps, name="norm_pre")(x)
        x = Dropout(self.dropout)(x, train=train)
        stack = Stack(
            size.depth, self._block(size), 0.0, self.scan, self.remat, layer_drop=self.layer_drop
        )
        nn.share_scope(self, stack)
        x, hidden = stack(x, mask=real, train=train, layers=layers)
        if size.pre_norm:
            x = LayerNorm(self.norm_eps, name="norm")(x)
        return Encoded(x, real, masked_mean(x, real) if self.pool == "mean" else None, hidden)

    def _check(self, waveform: jax.Array) -> None:
        if waveform.ndim != 2 or not jnp.issubdtype(waveform.dtype, jnp.floating):
            raise ConfigError(
                f"model: {type(self).__name__} encodes float waveforms [B, S], not "
                f"{waveform.dtype} {list(waveform.shape)}."
            )
        if waveform.shape[1] < self.receptive_field:
            raise ConfigError(
                f"model: waveforms of {waveform.shape[1]} samples are shorter than a frame, which "
                f"is computed from {self.receptive_field}."
            )

    def _block(self, size: SpeechSize) -> functools.partial:
        return functools.partial(
            Block,
            num_heads=size.num_heads,
            mlp_dim=size.mlp_dim,
            mlp=self.mlp,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            post_norm=not size.pre_norm,
            attention_dropout=self.attention_dropout,
            mlp_dropout=self.mlp_dropout,
            attention=functools.partial(Attention, kernel=self.attention_kernel),
        )

    def _positions(self) -> PositionalConv:
        return PositionalConv(
            *self._position_shape(),
            weight_norm=self.WEIGHT_NORM,
            plain_norm=not self.WEIGHT_NORM,
            formulation=self.position_formulation,
            name="positions",
        )

    def _position_shape(self) -> tuple[int, int, int]:
        """(kernel, groups, depth) of the convolution of positions."""
        return self.position_kernel, self.position_groups, getattr(self, "position_depth", 1)


def _scale_gradient(x: jax.Array, scale: float) -> jax.Array:
    """x, whose gradient is multiplied with `scale`."""
    still = jax.lax.stop_gradient(x)
    return still if not scale else still + scale * (x - still)  # the difference is 0, exactly
