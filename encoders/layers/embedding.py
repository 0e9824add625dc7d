"""From token ids to vectors: words, positions and token types, summed and normalised."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.layers.initializers import trunc_normal
from encoders.layers.norm import LayerNorm


class TextEmbeddings(nn.Module):
    """dropout(norm(words[ids] + positions[position] + token_types[type])).

    An id beyond its table gives NaN, not some other row: inside a compiled step nothing can raise.

    Attributes:
      vocab_size: rows of `words`.
      num_positions: rows of `positions`.
      num_token_types: rows of `token_types`; 0 for no such table.
      embedding_dim: E, size of the tables' rows.
      pad_id: positions count the ids that are not this one and begin at pad_id + 1, where every
        padding id has position pad_id (RoBERTa); None counts all of them from 0.
      norm_eps: of the layer norm.
      dropout: rate after the norm; stream 'dropout'.
    """

    vocab_size: int
    num_positions: int
    num_token_types: int
    embedding_dim: int
    pad_id: int | None = None
    norm_eps: float = 1e-12
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        ids: jax.Array,
        token_types: jax.Array | None = None,
        positions: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """Embeds ids.

        Args:
          ids: [B, T] int32.
          token_types: [B, T] int32; None means 0.
          positions: [B, T] int32 rows of the position table; None counts them as `pad_id` says.
          train: whether dropout is on.

        Returns:
          [B, T, E].
        """

        def table(name: str, rows: int) -> jax.Array:
            return self.param(name, trunc_normal(0.02), (rows, self.embedding_dim))

        places = table("positions", self.num_positions)
        x = jnp.take(table("words", self.vocab_size), ids, axis=0)
        if self.num_token_types:
            types = table("token_types", self.num_token_types)
            x = x + (types[0] if token_types is None else jnp.take(types, token_types, axis=0))
        if positions is None and self.pad_id is None:
            x = x + places[: ids.shape[1]]
        else:
            if positions is None:
                real = (ids != self.pad_id).astype(jnp.int32)
                positions = jnp.cumsum(real, axis=1) * real + self.pad_id
            x = x + jnp.take(places, positions, axis=0)
        x = LayerNorm(self.norm_eps, name="norm")(x)
        return nn.Dropout(self.dropout, deterministic=not train)(x)


def restarted_positions(segments: jax.Array) -> jax.Array:
    """[B, T] segments -> [B, T] int32, each token's place within its segment."""
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)
    before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return index - jax.lax.cummax(jnp.where(segments != before, index, 0), axis=1)
