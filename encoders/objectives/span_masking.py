"""Which frames of speech are hidden: pure functions of one row and its key.

wav2vec 2.0 (arXiv 2006.11477, section 3.1 and appendix A.2) hides spans of equal length that may
overlap. Of a row of T real frames, n = max(min_spans, floor(rate * T / length + u)) frames, with u
uniform in [0, 1), are drawn without replacement from those where a whole span has room; each begins
a span, and the union of the spans is hidden. So rate is not the share that is hidden: that is about
1 - (1 - rate / length) ** length, .49 for .65 and spans of ten, and a little more in short rows.

Rows hide different numbers of frames. The authors' code trims all rows of a GPU's batch to the
smallest number, which makes a row depend on its neighbours; here it does not. A row of F frames,
real or not, has K = `slots(F)` places, three standard deviations more than the mean; rows that need
fewer leave some unused, and the one in several hundred that would need more hides its first K.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from encoders.errors import ConfigError

# The number of hidden frames has a standard deviation of about .2 * sqrt(F * length), measured for
# rates from .2 to .8 and 50 to 800 frames: .65 is three of them.
_ROOM = 0.65


@dataclasses.dataclass(frozen=True)
class SpanMasking:
    """How frames, or channels, are hidden.

    Attributes:
      rate: share of the frames that spans would hide if they did not overlap; 0 hides nothing.
      length: of a span, in frames.
      min_spans: of a row, however short.
    """

    rate: float = 0.65
    length: int = 10
    min_spans: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"masking.rate: expected a share from 0 to 1, got {self.rate}.")
        if self.length < 1 or self.min_spans < 0:
            raise ConfigError(
                f"masking: expected length from 1 and min_spans from 0, got {self.length} and "
                f"{self.min_spans}."
            )

    def max_spans(self, frames: int) -> int:
        """The most spans that a row of so many real frames can have."""
        if not self.rate:
            return 0
        most = max(self.min_spans, math.floor(self.rate * frames / self.length) + 1)
        return min(most, frames)

    def slots(self, frames: int) -> int:
        """K, the places for hidden frames in a row of `frames`."""
        if not self.rate:
            return 0
        mean = frames * (1 - (1 - min(1, self.rate / self.length)) ** self.length)
        room = math.ceil(mean + _ROOM * math.sqrt(frames * self.length))
        least = self.length * self.min_spans  # short rows
        return min(frames, self.length * self.max_spans(frames), max(room, least))


def span_mask(key: jax.Array, real: jax.Array, masking: SpanMasking) -> jax.Array:
    """Hides spans of one row.

    A row of no more frames than a span has keeps one of them; one of a single frame hides none.

    Args:
      key: of this row.
      real: [F] bool, True for the first frames, which are real, and False for padding.
      masking: how.

    Returns:
      [F] bool, True where a frame is hidden: at most `masking.slots(F)` of them, all real.
    """
    (frames,) = real.shape
    most = masking.max_spans(frames)
    if not most:
        return jnp.zeros(frames, bool)
    count = real.sum()
    length = jnp.clip(count - 1, 0, masking.length)
    rounding, order = jax.random.split(key)
    spans = jnp.floor(masking.rate * count / masking.length + jax.random.uniform(rounding))
    spans = jnp.maximum(spans, masking.min_spans)

    index = jnp.arange(frames)
    has_room = index <= count - length  # the last span may end with the last real frame
    noise = jnp.where(has_room, jax.random.uniform(order, (frames,)), -1.0)
    noise, starts = jax.lax.top_k(noise, most)
    used = (jnp.arange(most) < spans) & (noise >= 0)
    begun = jnp.cumsum(jnp.zeros(frames, jnp.int32).at[starts].max(used.astype(jnp.int32)))
    # A frame is hidden where a span began among the last `length` frames, itself included.
    before = jnp.where(index >= length, begun[jnp.maximum(index - length, 0)], 0)
    hidden = (begun > before) & real
    return hidden & (jnp.cumsum(hidden) <= masking.slots(frames))


class Slots(NamedTuple):
    """Places [K] of hidden frames in a row.

    Attributes:
      frames: [K] int32, hidden frames in their order; where there are no more, any others.
      used: [K] bool, which are hidden frames.
    """

    frames: jax.Array
    used: jax.Array


def hidden_slots(hidden: jax.Array, slots: int) -> Slots:
    """The hidden frames of a row [F] bool, in `slots` places."""
    rank = jnp.where(hidden, hidden.shape[0] - jnp.arange(hidden.shape[0]), 0)
    rank, frames = jax.lax.top_k(rank, slots)
    return Slots(frames, rank > 0)


def sample_negatives(key: jax.Array, used: jax.Array, num_negatives: int) -> jax.Array:
    """For every hidden frame of one row, other hidden frames of that row, with replacement.

    Args:
      key: of this row.
      used: [K] bool, which places have a hidden frame: the first ones.
      num_negatives: for each.

    Returns:
      int32 [K, num_negatives], places in [0, K): used ones, and never one's own. Where a row hides
      fewer than two frames there are none to draw, and all are one's own place.
    """
    (slots,) = used.shape
    count, own = used.sum(), jnp.arange(slots)[:, None]
    noise = jax.random.uniform(key, (slots, num_negatives))
    others = jnp.maximum(count - 1, 1)
    drawn = jnp.minimum(jnp.floor(noise * others).astype(jnp.int32), others - 1)
    drawn = drawn + (drawn >= own)  # one's own place is left out
    return jnp.where(used[:, None] & (count > 1), drawn, own)
