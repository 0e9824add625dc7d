"""Vision transformers of spectrograms: Audio-MAE (arXiv 2207.06405), AST (arXiv 2104.01778).

What differs from `ViT`: the image is Kaldi's filterbank of a waveform, time downwards, padded with
silence to one length. AST has its patches overlap (`patch_stride` 10); its second class token, for
distillation, is not here.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from encoders.errors import ConfigError
from encoders.layers.patch import patchify, unpatchify
from encoders.layers.spectrogram import kaldi_fbank, num_frames, real_samples
from encoders.models.vit import ViT
from encoders.types import Encoded

_FRAME, _HOP = 400, 160  # of 16 kHz


class SpectrogramViT(ViT):
    """ViT of waveforms of 16 kHz; other attributes as in `ViT`.

    Attributes:
      max_frames: frames of 10 ms that a clip is padded to; longer ones are an error.
      num_mels: bands of the filterbank.
      mean, std: of the filterbanks of AudioSet; an image is (x - mean) / (2 std).
    """

    positions: Literal["learned", "sincos2d", "rotary2d", "none"] = "sincos2d"
    max_frames: int = 1024
    num_mels: int = 128
    mean: float = -4.2677393
    std: float = 4.5689974

    modality = "audio"
    channels = 1
    sample_rate = 16_000

    @property
    def image_size(self) -> tuple[int, int]:
        """(frames, bands) of every spectrogram."""
        return self.max_frames, self.num_mels

    @property
    def stride(self) -> int:
        """Samples from the patches of one time to those of the next."""
        return _HOP * (self.patch_stride or self.patch[0])

    @property
    def tokens_per_time(self) -> int:
        """Tokens of the same time, one for each patch of bands."""
        return self.grid(self.image_size)[1]

    @property
    def receptive_field(self) -> int:
        """Samples that a clip needs to have: those of one frame."""
        return _FRAME

    @property
    def max_samples(self) -> int:
        """Samples of the longest clip that fits."""
        return (self.max_frames - 1) * _HOP + _FRAME + _HOP - 1

    def frames(self, samples: int | jax.Array) -> int:
        """How many tokens there are, of however many samples: one for each patch."""
        rows, columns = self.grid(self.image_size)
        return rows * columns

    def flops(self, image_size: int | tuple[int, int], kept: int | None = None) -> float:
        """As of `ViT`, also for a number of samples; the spectrogram is not counted."""
        size = self.image_size if isinstance(image_size, int) else image_size
        return super().flops(size, kept)

    def spectrogram(self, waveform: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """The image of each clip.

        Args:
          waveform: [B, S] float in [-1, 1].
          mask: [B, S] bool, True for real samples; padding is at the end. None if all are real.

        Returns:
          float32 [B, max_frames, num_mels, 1]. Frames behind a clip's end are (0 - mean) / (2 std),
          as in the authors' code.

        Raises:
          ConfigError: the clips are too long.
        """
        x, _ = kaldi_fbank(waveform, mask, num_mels=self.num_mels, window="hanning")
        if x.shape[1] > self.max_frames:
            raise ConfigError(
                f"waveform: {waveform.shape[1]} samples make {x.shape[1]} frames, more than "
                f"model.max_frames={self.max_frames}; pass shorter clips."
            )
        x = jnp.pad(x, ((0, 0), (0, self.max_frames - x.shape[1]), (0, 0)))
        return ((x - self.mean) / (2 * self.std))[..., None]

    def features(
        self, waveform: jax.Array, mask: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Patches of the spectrogram, float32 [B, T, ph*pw], and [B, T] bool: which have sound.

        Raises:
          ConfigError: patches overlap.
        """
        if self.patch_stride is not None:
            raise ConfigError("model.patch_stride: patches that overlap are no features.")
        patches = patchify(self.spectrogram(waveform, mask), self.patch)
        return patches, self._real(waveform, mask)

    def _real(self, waveform: jax.Array, mask: jax.Array | None) -> jax.Array:
        """[B, T] bool, which patches have a frame of the clip."""
        rows, _ = self.grid(self.image_size)
        frames = num_frames(real_samples(waveform, mask), _FRAME, _HOP)
        first = jnp.arange(rows) * (self.patch_stride or self.patch[0])
        return jnp.repeat(first < frames[:, None], self.tokens_per_time, axis=1)

    def __call__(
        self,
        waveform: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool = False,
        features: tuple[jax.Array, jax.Array] | None = None,
        masked: jax.Array | None = None,
        masked_channels: jax.Array | None = None,
        **options: Any,
    ) -> Encoded:
        """Encodes clips.

        Args:
          waveform: [B, S] float in [-1, 1]; or what `spectrogram` made of it, [B, F, M, 1].
          mask: [B, S] bool, True for real samples. Patches of padding are attended to, as in the
            published models; which of them have sound, `mask` of the result says.
          train: whether dropout, drop path and token dropping are on.
          features: what `features` returned, or was made into, not to compute it twice.
          masked, masked_channels: what other encoders of sound may be told to hide: an error here.
          **options: keep, replace and layers, see `ViT`.

        Returns:
          Encoded, with prefix tokens first and then the patches, bands of one time in a row.

        Raises:
          ConfigError: something is to be hidden; `features` are given, of which some would be left
            out; the clips are too long.
        """
        if masked is not None or masked_channels is not None:
            raise ConfigError(
                f"model: {type(self).__name__} has no vector that stands for hidden patches; the "
                "objectives for it are 'masked_image' and 'best_rq'."
            )
        if features is not None and train and self.token_drop:
            raise ConfigError(
                f"model.token_drop: {self.token_drop} leaves out patches that the objective tells; "
                "set it to 0."
            )
        if features is not None:
            patches, real = features
            images = unpatchify(patches, self.patch, self.grid(self.image_size))
        elif waveform.ndim == 4:
            images, real = waveform, None
        else:
            images, real = self.spectrogram(waveform, mask), self._real(waveform, mask)
        encoded = super().__call__(images, train=train, **options)
        if real is None or encoded.tokens.shape[1] != self.num_prefix + real.shape[1]:
            return encoded
        prefix = jnp.ones((real.shape[0], self.num_prefix), bool)
        return encoded.replace(mask=jnp.concatenate([prefix, real], axis=1))
