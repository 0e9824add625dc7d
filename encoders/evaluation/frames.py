"""Frames of clips in place of whole clips: which of them are looked at, and what they are."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from encoders.errors import ConfigError
from encoders.types import Encoded

FrameFeature = Literal["tokens", "weighted_sum"] | int  # a number is that of a layer


class Moments(NamedTuple):
    """Times of clips at which something is known of them.

    Attributes:
      seconds: float32 [B, K], from a clip's beginning on.
      units: int32 [B, K], what is known.
      used: [B, K] bool; clips may have fewer than K.
    """

    seconds: jax.Array
    units: jax.Array
    used: jax.Array


def moments(units: jax.Array, count: int, per_second: float) -> Moments:
    """Of the units [B, F] of clips, -1 where none is known, `count` evenly spaced known ones.

    The time of a unit is the middle of what it is of, so that frames of another rate are found by
    it, whatever rounding does.
    """
    known = (units >= 0).cumsum(1)
    most = known[:, -1:]
    place = jnp.arange(count)
    # The middles of `count` equal parts of those that are known; all of them where they are fewer.
    rank = jnp.where(most >= count, (2 * place + 1) * most // (2 * count), place)
    where = jax.vmap(lambda row, wanted: jnp.searchsorted(row, wanted + 1))(known, rank)
    where = jnp.minimum(where, units.shape[1] - 1)
    found = jnp.take_along_axis(units, where, axis=1)
    return Moments((where + 0.5) / per_second, found, place < most)


def frames_at(
    frames: jax.Array, mask: jax.Array, seconds: jax.Array, per_second: float
) -> jax.Array:
    """Of frames [B, T, ...], of which `mask` [B, T] are real, those at times [B, K]: [B, K, ...].

    Encoders make a frame or two fewer of a clip than its length has room for; the last stands for
    these.
    """
    last = jnp.maximum(mask.sum(1, keepdims=True) - 1, 0)
    index = jnp.minimum(jnp.floor(seconds * per_second).astype(jnp.int32), last)
    return jnp.take_along_axis(frames, index.reshape(*index.shape, *(1,) * (frames.ndim - 2)), 1)


def frames_with_mask(encoded: Encoded, feature: FrameFeature) -> tuple[jax.Array, jax.Array]:
    """The float32 frames of an encoder, [B, T, D], and their mask [B, T].

    Args:
      encoded: what it returned.
      feature: 'tokens', the final ones; or the hidden ones of a layer; or 'weighted_sum', those of
        all layers, [B, T, L, D].
    """
    if feature == "weighted_sum":
        frames = jnp.stack([encoded.hidden[layer] for layer in sorted(encoded.hidden)], 2)
    else:
        frames = encoded.tokens if feature == "tokens" else encoded.hidden[feature]
    prefix = encoded.num_prefix
    return frames[:, prefix:].astype(jnp.float32), encoded.mask[:, prefix:]


def frame_rate(module: object, sample_rate: int) -> float:
    """Frames that an encoder makes of a second.

    Raises:
      ConfigError: it is none of sound, or its tokens are not of one time each.
    """
    stride = getattr(module, "stride", None)
    if stride is None or getattr(module, "tokens_per_time", 1) > 1:
        raise ConfigError(
            f"frame_probe: needs an encoder that makes one token of every moment of a clip, and "
            f"{type(module).__name__} does not."
        )
    return sample_rate / stride
