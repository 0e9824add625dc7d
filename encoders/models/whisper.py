"""Whisper's encoder (Radford et al., arXiv 2212.04356), without the decoder.

Differences from other encoders of speech: the front end is a log-mel spectrogram and two
convolutions; positions are fixed sinusoids; keys have no bias; and every clip is padded to 30
seconds of silence, which is heard like any other sound. Constants are those of the authors' code.
"""

from __future__ import annotations

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from encoders.errors import ConfigError
from encoders.layers.attention import Attention
from encoders.layers.block import Block
from encoders.layers.convolution import Conv1D
from encoders.layers.initializers import trunc_normal
from encoders.layers.mlp import gelu
from encoders.layers.position import sinusoids
from encoders.layers.spectrogram import real_samples, whisper_log_mel
from encoders.models.bert import TextSize
from encoders.models.spectrogram import SpectrogramEncoder

_HOP = 160


class Whisper(SpectrogramEncoder):
    """Whisper's encoder, of 16 kHz; other attributes as in `SpectrogramEncoder`.

    Attributes:
      num_mels: 80, or 128 of large-v3.
      pad_to: frames of 10 ms that every clip is padded to, as the decoder expects; all of them are
        attended to, and `mask` says which are of the clip. None hears clips of any length, which
        costs less, and attends to nothing behind their end: the weights were not trained so.
    """

    pad_to: int | None = 3000

    # Table 1 of the paper; 'large' has three versions, of which the third has 128 mels.
    SIZES: ClassVar = {
        "tiny": TextSize(384, 4, 1536, 6),
        "base": TextSize(512, 6, 2048, 8),
        "small": TextSize(768, 12, 3072, 12),
        "medium": TextSize(1024, 24, 4096, 16),
        "large": TextSize(1280, 32, 5120, 20),
    }
    STACK = 2
    sample_rate = 16_000

    @property
    def max_samples(self) -> int | None:
        """Samples of the longest clip that fits; None for any."""
        return None if self.pad_to is None else self.pad_to * _HOP

    @property
    def receptive_field(self) -> int:
        """Samples that a clip needs to have: those of one frame."""
        return 400

    def frames(self, samples: int | jax.Array) -> int | jax.Array:
        """Tokens of 20 ms, the last maybe of half as much; all of pad_to."""
        return self._real(samples) if self.pad_to is None else self.pad_to // 2

    def _real(self, samples: int | jax.Array) -> int | jax.Array:
        return (samples // _HOP + 1) // 2

    def features(
        self, waveform: jax.Array, mask: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """See `SpectrogramEncoder.features`; the logarithms are those of `whisper_log_mel`."""
        samples, length = real_samples(waveform, mask), waveform.shape[1]
        if self.pad_to is not None:
            if self.pad_to % 2 or length > self.max_samples:
                raise ConfigError(
                    f"waveform: {length} samples are more than the {self.max_samples} of "
                    f"model.pad_to={self.pad_to}, which has to be even; pass shorter clips, or set "
                    "it to None."
                )
            if mask is not None:
                waveform = jnp.where(mask, waveform, 0)
            waveform = jnp.pad(waveform, ((0, 0), (0, self.max_samples - length)))
            mask = None
        log_mel, _ = whisper_log_mel(waveform, mask, num_mels=self.num_mels)
        log_mel = jnp.pad(log_mel, ((0, 0), (0, log_mel.shape[1] % 2), (0, 0)))
        x = log_mel.reshape(log_mel.shape[0], -1, 2 * self.num_mels)
        return x, jnp.arange(x.shape[1]) < self._real(samples)[:, None]

    def _embed(self, features: jax.Array, samples: jax.Array) -> jax.Array:
        x = features.reshape(features.shape[0], -1, self.num_mels)
        width, init = self.size.width, trunc_normal(0.02)
        x = gelu(Conv1D(width, 3, padding=(1, 1), kernel_init=init, name="conv1")(x))
        if self.pad_to is None:
            real = jnp.arange(x.shape[1]) < (samples // _HOP)[:, None]
            x = jnp.where(real[..., None], x, 0)
        return gelu(Conv1D(width, 3, 2, (1, 1), kernel_init=init, name="conv2")(x))

    def _placed(self, x: jax.Array, real: jax.Array) -> tuple[jax.Array, dict]:
        x = x + jnp.asarray(sinusoids(*x.shape[1:]), x.dtype)
        return x, {} if self.pad_to is not None else {"mask": real}

    def _block(self) -> functools.partial:
        attention = functools.partial(Attention, kernel=self.attention_kernel, key_bias=False)
        return functools.partial(
            Block,
            num_heads=self.size.num_heads,
            mlp_dim=self.size.mlp_dim,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            attention=attention,
        )

    def _embedding_flops(self, tokens: int) -> float:
        width = self.size.width
        return 2.0 * tokens * 3 * width * (2 * self.num_mels + width)
