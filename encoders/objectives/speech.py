"""What the objectives of speech encoders have in common."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from encoders.data.audio import sample_mask
from encoders.errors import ConfigError
from encoders.objectives.base import Batch, Objective, valid_weights
from encoders.objectives.span_masking import SpanMasking, hidden_slots, span_mask
from encoders.types import Encoded

# A batch of speech has waveform [B, S] float32, zero after length [B] int32 samples. The front end
# of an encoder makes features [B, T, C] of it, of which `real` [B, T] bool are no padding, and the
# encoder makes tokens [B, T, D] of those.


class Hidden(NamedTuple):
    """Which frames of a batch are hidden.

    Attributes:
      mask: [B, T] bool.
      frames: [B, K] int32, the hidden ones in their order; where there are no more, others.
      weights: [B, K] float32, 1 for hidden frames of real examples.
    """

    mask: jax.Array
    frames: jax.Array
    weights: jax.Array


class SpeechObjective(Objective):
    """Base of objectives on waveforms.

    Attributes:
      encoder: an encoder of speech.
    """

    def features(
        self, batch: Batch, *, train: bool = False, energy: bool = False
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """What the encoder's front end makes of a batch.

        Returns:
          Features [B, T, C]; [B, T] bool, which are no padding; and where asked for, the `energy`
          [B, T] of convolutions, the mean squares of their outputs before the norm; else None.

        Raises:
          ConfigError: there are no convolutions whose energy is asked for.
        """
        if energy and not learns_features(self.encoder):
            raise ConfigError(
                f"objective.feature_penalty: {type(self.encoder).__name__} hears by a spectrogram, "
                "which is not learned and has no energy to keep low; set it to 0."
            )
        options = {"energy": True} if energy else {}
        mask = sample_mask(batch)
        found = self.encoder.features(batch["waveform"], mask, train=train, **options)
        return found if energy else (*found, None)

    def encode(self, batch: Batch, *, train: bool = False, **given: Any) -> Encoded:
        """What the encoder makes of a batch, or of `features` and `real` of it in a pair.

        Its tokens are those of the features alone: prefix tokens, such as a class token, are gone.
        """
        found = self.encoder(batch["waveform"], mask=sample_mask(batch), train=train, **given)
        frames = slice(found.num_prefix, None)
        return found.replace(
            tokens=found.tokens[:, frames], mask=found.mask[:, frames], num_prefix=0
        )


class MaskedSpeechObjective(SpeechObjective):
    """Base of objectives that hide frames.

    Attributes:
      masking: which frames.
    """

    masking: SpanMasking = dataclasses.field(default_factory=SpanMasking)

    def hide(self, keys: jax.Array, real: jax.Array, batch: Batch) -> Hidden:
        """Draws, of the real frames [B, T], those that are hidden, by one key per example [B].

        What a row hides depends on its key and its length alone.

        Raises:
          ConfigError: none ever are.
        """
        if not self.masking.rate:
            raise ConfigError(
                "objective.masking.rate: 0 selects no frame to hide, and hidden frames are all "
                "that is learned from; expected a share above 0 and up to 1."
            )
        draw = jax.vmap(lambda key, row: span_mask(key, row, self.masking))
        return self.hidden(draw(keys, real), batch)

    def hidden(self, mask: jax.Array, batch: Batch) -> Hidden:
        """The hidden frames of a mask [B, T] that hides no more of a row than it has places."""
        slots = self.masking.slots(mask.shape[1])
        frames, used = jax.vmap(lambda row: hidden_slots(row, slots))(mask)
        return Hidden(mask, frames, used * valid_weights(batch)[:, None])


def learns_features(encoder: Any) -> bool:
    """Whether an encoder hears by convolutions of the waveform; else by a spectrogram."""
    return hasattr(encoder, "conv_dim")


def feature_flops(encoder: Any, samples: int) -> float:
    """Forward FLOPs of the front end on a clip; those of spectrograms are counted as nothing."""
    return encoder.feature_flops(samples) if learns_features(encoder) else 0.0


def split_keys(keys: jax.Array, uses: int) -> jax.Array:
    """Of one key per example [B], one for each use [uses, B]."""
    return jax.vmap(lambda key: jax.random.split(key, uses), out_axes=1)(keys)


def at_frames(values: jax.Array, frames: jax.Array) -> jax.Array:
    """Of values [B, T, ...] those at frames [B, K]: [B, K, ...]."""
    expanded = frames.reshape(*frames.shape, *(1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, expanded, axis=1)


def real_mean(values: jax.Array, real: jax.Array) -> jax.Array:
    """[B], the mean of every example's values [B, T] over its real frames [B, T]."""
    return (values * real).sum(-1) / jnp.maximum(real.sum(-1), 1)
