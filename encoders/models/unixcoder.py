"""UniXcoder (arXiv 2203.03850): RoBERTa that is encoder, decoder or both, as a mask says.

Differences from RoBERTa: a larger vocabulary and more positions; the mean of the tokens stands for
the text; a row begins with [CLS] <encoder-only> [SEP], or <decoder-only> or <encoder-decoder>
(section 3.1), and its mask goes with it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from encoders.layers.attention import same_segment
from encoders.models.bert import Pool
from encoders.models.roberta import RoBERTa
from encoders.types import Encoded


class UniXcoder(RoBERTa):
    """UniXcoder; attributes as in `BERT`. Its parameters are those of a RoBERTa."""

    vocab_size: int = 51416
    max_length: int = 1024
    num_token_types: int = 10
    pool: Pool = "mean"

    def __call__(
        self,
        ids: jax.Array,
        *,
        segments: jax.Array | None = None,
        prefix: jax.Array | None = None,
        positions: jax.Array | None = None,
        embedded: jax.Array | None = None,
        token_types: jax.Array | None = None,
        train: bool = False,
        **others: Any,
    ) -> Encoded:
        """Encodes token ids.

        Args:
          ids: [B, T] int32.
          segments: [B, T] int32, 1 where a token is real; with `prefix` one text per row only.
          prefix: [B] int32, see `prefix_mask`; None for no mask but padding's.
          positions, embedded, token_types, train, **others: as of `BERT`.
        """
        given = {"token_types": token_types, "train": train}
        if prefix is None:
            extra = {"segments": segments, "positions": positions, "embedded": embedded}
            return super().__call__(ids, **given, **extra, **others)
        if segments is None:
            segments = jnp.ones(ids.shape, jnp.int32)
        if embedded is None:
            embedded = self.embed(ids, segments=segments, positions=positions, **given)
        mask = prefix_mask(segments, prefix)
        return super().__call__(ids, mask=mask, embedded=embedded, **given, **others)


def prefix_mask(segments: jax.Array, prefix: jax.Array) -> jax.Array:
    """Who may attend to whom where a prefix is read at once and the rest from left to right.

    Args:
      segments: [B, T] int32, 0 for padding.
      prefix: [B] int32, how many of the first tokens all others may attend to: 0 for decoder-only,
        T or more for encoder-only, and the length of the source for encoder-decoder.

    Returns:
      [B, T, T] bool, True where one token (the second axis) may attend to another (the last).
    """
    place = jnp.arange(segments.shape[1])
    earlier = place[None, :] <= place[:, None]
    first = place < prefix[:, None]
    return same_segment(segments) & (earlier | first[:, None, :])
