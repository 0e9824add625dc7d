"""Conformer encoders (arXiv 2005.08100), as BEST-RQ (2202.01855) and USM (2303.01037) train them.

Differences from other encoders of speech: convolutions make a token of four frames of Kaldi's
filterbank, and blocks have a convolution beside the attention. Filterbanks are given mean 0 and
variance 1 over every clip.
"""

from __future__ import annotations

import functools
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError, nearest
from encoders.layers.conformer import ConformerBlock, ConvNorm, conformer_flops
from encoders.layers.convolution import Conv, convolution_flops
from encoders.layers.initializers import trunc_normal
from encoders.layers.linear import Linear
from encoders.layers.norm import normalized_over_time
from encoders.layers.position import rotary1d
from encoders.layers.spectrogram import kaldi_fbank, num_frames, real_samples
from encoders.layers.two_stream import distance_encodings
from encoders.models.bert import TextSize
from encoders.models.spectrogram import SpectrogramEncoder


class Conformer(SpectrogramEncoder):
    """Conformer; other attributes as in `SpectrogramEncoder`.

    Attributes:
      sample_rate: Hz; frames are of 25 ms every 10 ms.
      kernel: tokens that a block's convolution sees: 5 in BEST-RQ and USM, 32 in the first paper.
      conv_norm: 'layer', or 'batch' as in the first paper, over the real tokens of a batch.
      conv_channels: of the two convolutions that make tokens (of Lingvo's, from memory).
      positions: 'relative' (Transformer-XL's) or 'rotary'.
    """

    variant: str = "L"
    sample_rate: int = 16000
    kernel: int = 5
    conv_norm: ConvNorm = "layer"
    conv_channels: tuple[int, int] = (128, 32)
    positions: Literal["relative", "rotary"] = "relative"

    # S, M, L: table 1 of the paper. XL (0.6B, BEST-RQ's) and XXL (1.0B): arXiv 2010.10504; 2B: USM,
    # table 2. MLPs are four times as wide as the tokens.
    SIZES: ClassVar = {
        "S": TextSize(144, 16, 576, 4),
        "M": TextSize(256, 16, 1024, 4),
        "L": TextSize(512, 17, 2048, 8),
        "XL": TextSize(1024, 24, 4096, 8),
        "XXL": TextSize(1024, 42, 4096, 8),
        "2B": TextSize(1536, 32, 6144, 16),
    }
    STACK = 4

    @property
    def stride(self) -> int:
        """Samples from one token to the next."""
        return self._hop * self.STACK

    @property
    def receptive_field(self) -> int:
        """Samples that a clip needs to have for one token."""
        return self.sample_rate * 25 // 1000 + (self.STACK - 1) * self._hop

    @property
    def _hop(self) -> int:
        return self.sample_rate * 10 // 1000

    def frames(self, samples: int | jax.Array) -> int | jax.Array:
        """Tokens of four whole frames each."""
        return num_frames(samples, self.sample_rate * 25 // 1000, self._hop) // self.STACK

    def features(
        self, waveform: jax.Array, mask: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """See `SpectrogramEncoder.features`."""
        if not self.frames(waveform.shape[1]):
            raise ConfigError(
                f"waveform: {waveform.shape[1]} samples make no token; {self.receptive_field} do."
            )
        options = {"num_mels": self.num_mels, "sample_rate": self.sample_rate}
        x, _ = kaldi_fbank(waveform.astype(jnp.float32) * 32768, mask, **options)
        tokens, count = x.shape[1] // self.STACK, self.frames(real_samples(waveform, mask))
        x = x[:, : tokens * self.STACK]
        real = jnp.arange(x.shape[1]) < self.STACK * count[:, None]
        x = normalized_over_time(x, real).reshape(x.shape[0], tokens, -1)
        return x, jnp.arange(tokens) < count[:, None]

    def _embed(self, features: jax.Array, samples: jax.Array) -> jax.Array:
        batch, tokens = features.shape[:2]
        x = features.reshape(batch, tokens * self.STACK, self.num_mels, 1)
        count = self.frames(samples)[:, None]
        for index, channels in enumerate(self.conv_channels):
            frames = x.shape[1]
            # Zero where there is no token, as around a clip that is alone.
            real = jnp.arange(frames) < count * (frames // tokens)
            x = jnp.where(real[..., None, None], x, 0)
            x = Conv(channels, 3, 2, name=f"conv{index + 1}")(x)
            x = x + self.param(f"conv{index + 1}_bias", nn.initializers.zeros, (channels,))
            x = jax.nn.relu(x)
        x = x.reshape(batch, tokens, -1)
        return Linear(self.size.width, kernel_init=trunc_normal(0.02), name="projection")(x)

    def _placed(self, x: jax.Array, real: jax.Array) -> tuple[jax.Array, dict]:
        length, width = x.shape[1:]
        if self.positions == "relative":
            distances = distance_encodings(length, length, width, None)
            return x, {"mask": real, "distances": distances.astype(x.dtype)}
        if self.positions != "rotary":
            hint = nearest(self.positions, ("relative", "rotary"))
            raise ConfigError(f"model.positions: unknown '{self.positions}'.{hint}")
        tables = rotary1d(length, width // self.size.num_heads)
        return x, {"mask": real, "rotary": tuple(jnp.asarray(table) for table in tables)}

    def _block(self) -> functools.partial:
        if self.scan and self.conv_norm == "batch":
            raise ConfigError("model.scan: blocks with conv_norm='batch' cannot be scanned.")
        return functools.partial(
            ConformerBlock,
            num_heads=self.size.num_heads,
            mlp_dim=self.size.mlp_dim,
            kernel=self.kernel,
            conv_norm=self.conv_norm,
            relative=self.positions == "relative",
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            attention_kernel=self.attention_kernel,
        )

    def _finish(self, x: jax.Array) -> jax.Array:
        return x  # a block ends with a norm

    def _embedding_flops(self, tokens: int) -> float:
        first, second = self.conv_channels
        mels = -(-self.num_mels // 2), -(-self.num_mels // 4)
        total = convolution_flops((2 * tokens, mels[0]), 3, 1, first)
        total += convolution_flops((tokens, mels[1]), 3, first, second)
        return total + 2.0 * tokens * mels[1] * second * self.size.width

    def _block_flops(self, tokens: int) -> float:
        size, relative = self.size, self.positions == "relative"
        return conformer_flops(tokens, size.width, size.mlp_dim, self.kernel, relative)
