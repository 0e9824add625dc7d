"""What encoders have in common that hear through a log-mel spectrogram."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.layers.block import block_flops
from encoders.layers.dropout import Dropout
from encoders.layers.norm import LayerNorm
from encoders.layers.pooling import masked_mean
from encoders.layers.spectrogram import real_samples
from encoders.layers.stack import Stack
from encoders.models.bert import TextSize, size_of
from encoders.types import Encoded


class SpectrogramEncoder(nn.Module):
    """Base of them: STACK frames of the spectrogram, 10 ms apart, make a token.

    A family says its SIZES and STACK, its `features`, how they are embedded and what its blocks
    are.

    Attributes:
      variant: a size of SIZES.
      width, depth, mlp_dim, num_heads: override the variant's.
      num_mels: bands of the spectrogram.
      pool: 'mean' of the real tokens, or 'none'.
      norm_eps: of all layer norms.
      dropout: rate after the positions and on the branches' outputs; stream 'dropout'.
      attention_dropout: rate on the attention's weights.
      drop_path: rate of the last block, rising linearly from 0.
      attention_kernel: 'plain' or 'fused', see `Attention`.
      scan, remat: see `Stack`.
    """

    variant: str = "base"
    width: int | None = None
    depth: int | None = None
    mlp_dim: int | None = None
    num_heads: int | None = None
    num_mels: int = 80
    pool: Literal["mean", "none"] = "mean"
    norm_eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    attention_kernel: Literal["plain", "fused"] = "plain"
    scan: bool = False
    remat: str = "none"

    modality = "audio"
    SIZES: ClassVar[Mapping[str, TextSize]] = {}
    STACK: ClassVar[int] = 1

    @property
    def size(self) -> TextSize:
        """The variant's size with this module's overrides.

        Raises:
          ConfigError: the variant is unknown.
        """
        return size_of(self)

    @property
    def feature_dim(self) -> int:
        """C of `features`."""
        return self.STACK * self.num_mels

    @property
    def stride(self) -> int:
        """Samples from one token to the next."""
        return 160 * self.STACK

    @property
    def receptive_field(self) -> int:
        """Samples that a clip needs to have for one token."""
        raise NotImplementedError

    def frames(self, samples: int | jax.Array) -> int | jax.Array:
        """How many tokens that many samples become; of an array for each."""
        raise NotImplementedError

    def flops(self, samples: int) -> float:
        """Forward FLOPs of a clip, without its spectrogram; a multiply-add counts as two."""
        tokens, size = self.frames(samples), self.size
        return self._embedding_flops(tokens) + size.depth * self._block_flops(tokens)

    def features(
        self, waveform: jax.Array, mask: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """The spectrogram, STACK frames of it side by side.

        Args:
          waveform: [B, S] float in [-1, 1].
          mask: [B, S] bool, True for real samples; padding is at the end. None if all are real.
          train: has no meaning here.

        Returns:
          float32 [B, T, STACK * num_mels], and [B, T] bool, which tokens are real.
        """
        raise NotImplementedError

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
        """Encodes clips.

        Args:
          waveform: [B, S] float in [-1, 1].
          mask: [B, S] bool, True for real samples; padding is at the end. None if all are real.
          train: whether dropout and drop path are on.
          layers: blocks whose outputs to return, negative ones counted from the end, or 'all'.
          features: what `features` returned, or was made into, not to compute it twice.
          masked: [B, T] bool: where True, the features are replaced by a learned vector.
          masked_channels: [B, D] bool: channels of the embedded frames that are zero.

        Returns:
          Encoded, a token for each frame; `mask` says which are real.

        Raises:
          ConfigError: the clips are too short or too long.
        """
        size = self.size
        x, real = self.features(waveform, mask, train=train) if features is None else features
        vector = self.param("mask_embedding", nn.initializers.normal(0.1), x.shape[-1:])
        if masked is not None:
            x = jnp.where(masked[..., None], vector.astype(x.dtype), x)
        x = self._embed(x, real_samples(waveform, mask))
        if masked_channels is not None:
            x = jnp.where(masked_channels[:, None, :], 0, x)
        x, context = self._placed(x, real)
        x = Dropout(self.dropout)(x, train=train)
        stack = Stack(size.depth, self._block(), self.drop_path, self.scan, self.remat)
        nn.share_scope(self, stack)
        x, hidden = stack(x, train=train, layers=layers, **context)
        x = self._finish(x)
        pooled = masked_mean(x, real) if self.pool == "mean" else None
        return Encoded(x, real, pooled, hidden)

    def _embed(self, features: jax.Array, samples: jax.Array) -> jax.Array:
        """Features [B, T, C] of clips of that many real samples [B] to [B, T, D]."""
        raise NotImplementedError

    def _placed(self, x: jax.Array, real: jax.Array) -> tuple[jax.Array, dict]:
        """x with its positions, and what the blocks are given besides."""
        raise NotImplementedError

    def _block(self) -> functools.partial:
        raise NotImplementedError

    def _finish(self, x: jax.Array) -> jax.Array:
        """What is done behind the last block."""
        return LayerNorm(self.norm_eps, name="norm")(x)

    def _embedding_flops(self, tokens: int) -> float:
        raise NotImplementedError

    def _block_flops(self, tokens: int) -> float:
        return block_flops(tokens, self.size.width, self.size.mlp_dim, "gelu")
