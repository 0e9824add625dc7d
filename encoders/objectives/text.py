"""What the objectives of text encoders have in common."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from encoders.data.text import INPUTS
from encoders.data.vocabulary import Vocabulary
from encoders.errors import ConfigError
from encoders.layers.pooling import Pooling, pool
from encoders.objectives.base import Batch, Objective, valid_weights
from encoders.types import Encoded

# A batch of texts has ids [B, T] int32; segments [B, T] int32, 0 for padding and 1, 2, ... for the
# texts that a row was packed from; and where they are needed token_types [B, T] int32, word_start
# [B, T] bool (True where a word begins), label, and what encoders of code take (`GraphCodeBERT`,
# `UniXcoder`).


class TextObjective(Objective):
    """Base of objectives on token ids.

    Attributes:
      encoder: a text encoder.
      vocabulary: special ids (supplied by the preprocessing).
    """

    vocabulary: Vocabulary | None = None

    def encode(self, batch: Batch, ids: jax.Array | None = None, **arguments: Any) -> Encoded:
        """The encoder's output for a batch, or for other ids in its place."""
        given = {name: batch[name] for name in INPUTS if name in batch}
        return self.encoder(batch["ids"] if ids is None else ids, **{**given, **arguments})

    def pooled(self, encoded: Encoded, pooling: Pooling | None) -> jax.Array:
        """[B, D], one vector for every row, by `pool` or, where that is None, by the encoder's way.

        Raises:
          ConfigError: the encoder does not pool.
        """
        if pooling is not None:
            return pool(encoded.tokens, encoded.mask, pooling)
        if encoded.pooled is None:
            raise ConfigError("objective.pooling: the model does not pool; say how to.")
        return encoded.pooled

    def corruptible(self, batch: Batch) -> jax.Array:
        """[B, T] bool, True for tokens that may be corrupted: real ones that are not special.

        Padding examples (`valid` False) have none.
        """
        special = jnp.asarray(self.vocabulary.special_ids)
        real = (batch["segments"] > 0) & (valid_weights(batch)[:, None] > 0)
        return real & ~jnp.isin(batch["ids"], special)
