"""From token ids to vectors: words, positions and token types, summed and normalised."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.layers.dropout import Dropout
from encoders.layers.initializers import trunc_normal
from encoders.layers.lookup import lookup
from encoders.layers.norm import LayerNorm
from encoders.layers.position import sincos1d


class WordTable(nn.Module):
    """words[ids] and nothing else; an id beyond the table gives NaN.

    Attributes:
      vocab_size: rows of the table.
      embedding_dim: E.
    """

    vocab_size: int
    embedding_dim: int

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        """[B, T] int32 -> [B, T, E]."""
        shape = (self.vocab_size, self.embedding_dim)
        return lookup(self.param("words", trunc_normal(0.02), shape), ids)


class TextEmbeddings(nn.Module):
    """dropout(norm(words[ids] + positions[position] + token_types[type])), or without the norm.

    An id beyond its table gives NaN, not some other row (see `lookup`).

    Attributes:
      vocab_size: rows of `words`.
      num_positions: rows of `positions`.
      num_token_types: rows of `token_types`; 0 for no such table.
      embedding_dim: E, size of the tables' rows.
      pad_id: positions count the ids that are not this one and begin at pad_id + 1, where every
        padding id has position pad_id (RoBERTa); None counts all of them from 0.
      norm_eps: of the layer norm.
      dropout: rate after the norm; stream 'dropout'.
      positions: 'learned', 'sinusoidal' (a fixed table), or anything else for no such table.
      norm_bias: whether the norm has a bias.
      norm: whether there is a norm.
    """

    vocab_size: int
    num_positions: int
    num_token_types: int
    embedding_dim: int
    pad_id: int | None = None
    norm_eps: float = 1e-12
    dropout: float = 0.0
    positions: str = "learned"
    norm_bias: bool = True
    norm: bool = True

    @nn.compact
    def __call__(
        self,
        ids: jax.Array,
        token_types: jax.Array | None = None,
        positions: jax.Array | None = None,
        *,
        average: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Embeds ids.

        Args:
          ids: [B, T] int32.
          token_types: [B, T] int32; None means 0.
          positions: [B, T] int32 rows of the position table; None counts them as `pad_id` says.
          average: [B, N, T] bool, of the last N tokens: in place of its own word's vector, each has
            the mean of the words' vectors of the tokens where it is True, zeros if it nowhere is.
          train: whether dropout is on.

        Returns:
          [B, T, E].
        """

        def table(name: str, rows: int) -> jax.Array:
            return self.param(name, trunc_normal(0.02), (rows, self.embedding_dim))

        x = lookup(table("words", self.vocab_size), ids)
        if average is not None:
            share = average / jnp.maximum(average.sum(-1, keepdims=True), 1)
            means = jnp.einsum("bnt,bte->bne", share.astype(x.dtype), x)
            x = jnp.concatenate([x[:, : -average.shape[1]], means], axis=1)
        if self.num_token_types:
            types = table("token_types", self.num_token_types)
            x = x + (types[0] if token_types is None else lookup(types, token_types))
        if self.positions == "learned":
            x = x + self._placed(table("positions", self.num_positions), ids, positions)
        elif self.positions == "sinusoidal":
            fixed = jnp.asarray(sincos1d(self.num_positions, self.embedding_dim), x.dtype)
            x = x + self._placed(fixed, ids, positions)
        if self.norm:
            x = LayerNorm(self.norm_eps, self.norm_bias, name="norm")(x)
        return Dropout(self.dropout)(x, train=train)

    def _placed(self, rows: jax.Array, ids: jax.Array, positions: jax.Array | None) -> jax.Array:
        """The row of each token's position: [T, E] or [B, T, E]."""
        if positions is None and self.pad_id is None:
            return rows[: ids.shape[1]]
        if positions is None:
            real = (ids != self.pad_id).astype(jnp.int32)
            positions = jnp.cumsum(real, axis=1) * real + self.pad_id
        return lookup(rows, positions)


def restarted_positions(segments: jax.Array) -> jax.Array:
    """[B, T] segments -> [B, T] int32, each token's place within its segment."""
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)
    before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return index - jax.lax.cummax(jnp.where(segments != before, index, 0), axis=1)
