"""An encoder of waveforms with its weights: what `encoders.load` returns for speech."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from encoders.data.audio import AudioPreprocessing
from encoders.encoder import Encoder, Layers, hashable
from encoders.errors import DataError
from encoders.types import Encoded


@dataclasses.dataclass(frozen=True, eq=False)
class SpeechEncoder(Encoder):
    """An encoder of waveforms.

    Attributes:
      preprocessing: rate of the samples, and of a letter model its characters; None if the weights
        do not say.
    """

    preprocessing: AudioPreprocessing | None = None

    def __call__(self, waveform: Any, *, mask: Any = None, layers: Layers = ()) -> Encoded:
        """Encodes a batch; compiled once for each shape and choice of layers.

        Args:
          waveform: [B, S] samples at the model's rate, int16 or floats in [-1, 1].
          mask: [B, S] bool, or 0 and 1, True where a sample is real: the first ones of each clip.
            None if all are.
          layers: blocks whose outputs to return in `hidden`; negative ones count from the end.

        Returns:
          Encoded, of frames; its mask says which are of real samples alone.

        Raises:
          DataError: `waveform` or `mask` are not such arrays; a sample is NaN or infinite; a clip
            is too short for a frame.
          ConfigError: a layer does not exist.
        """
        waveform = self.checked(waveform)
        if mask is not None:
            mask = self._checked_mask(np.asarray(mask), waveform.shape)
        return self._apply(self.variables, waveform, mask, hashable(layers))

    def checked(self, waveform: Any) -> np.ndarray:
        """A batch of waveforms as float32 [B, S].

        Raises:
          DataError: see `__call__`.
        """
        waveform = np.asarray(waveform)
        if waveform.ndim == 1:
            raise DataError(
                f"waveform: expected a batch [B, S], got one clip {waveform.shape}; add the batch "
                "axis, waveform[None]."
            )
        if waveform.ndim != 2 or not waveform.size:
            raise DataError(f"waveform: expected a batch [B, S], got {waveform.shape}.")
        if waveform.dtype == np.int16:
            waveform = waveform.astype(np.float32) / 32768
        elif not jnp.issubdtype(waveform.dtype, np.floating):
            raise DataError(f"waveform: expected int16 or floats, got {waveform.dtype}.")
        waveform = waveform.astype(np.float32)
        odd = ~np.isfinite(waveform).all(1)
        if odd.any():
            raise DataError(
                f"waveform: clip {odd.argmax()} has samples that are no finite numbers."
            )
        self._long_enough(np.full(len(waveform), waveform.shape[1]))
        return waveform

    def _checked_mask(self, mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if mask.shape != shape:
            raise DataError(f"mask: expected the shape of waveform, {shape}, got {mask.shape}.")
        if not (mask.dtype == bool or np.isin(mask, (0, 1)).all()):
            raise DataError("mask: expected True where a sample is real and False elsewhere.")
        mask = mask.astype(bool)
        lengths = mask.sum(1)
        odd = (mask != (np.arange(shape[1]) < lengths[:, None])).any(1)
        if odd.any():
            raise DataError(
                f"mask: clip {odd.argmax()} has padding before its last real sample; padding comes "
                "after all of them."
            )
        self._long_enough(lengths)
        return mask

    def _long_enough(self, lengths: np.ndarray) -> None:
        short = lengths < self.module.receptive_field
        if short.any():
            raise DataError(
                f"waveform: clip {short.argmax()} has {lengths[short.argmax()]} samples, too few "
                f"for a frame, which is computed from {self.module.receptive_field}."
            )

    @functools.cached_property
    def _apply(self) -> Any:
        def apply(variables: Any, waveform: Any, mask: Any, layers: Any) -> Encoded:
            return self.module.apply(variables, waveform, mask=mask, layers=layers)

        return jax.jit(apply, static_argnames="layers")
