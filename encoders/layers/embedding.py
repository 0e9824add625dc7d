"""From token ids to vectors: words, positions and token types, summed and normalised."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.layers.initializers import trunc_normal, weight_init
from encoders.layers.linear import Linear
from encoders.layers.norm import LayerNorm


class TextEmbeddings(nn.Module):
    """dropout(norm(words[ids] + positions[position] + token_types[type])), maybe projected.

    An id beyond its table gives NaN, not some other row: inside a compiled step nothing can raise.

    Attributes:
      width: D, size of a token.
      vocab_size: rows of `words`.
      num_positions: rows of `positions`.
      num_token_types: rows of `token_types`; 0 for no such table.
      embedding_dim: E, size of the tables' rows; other than D, the sum is projected to D.
      pad_id: positions count the ids that are not this one and begin at pad_id + 1, where every
        padding id has position pad_id (RoBERTa); None counts all of them from 0.
      norm_eps: of the layer norm.
      dropout: rate after the norm; stream 'dropout'.
    """

    width: int
    vocab_size: int
    num_positions: int
    num_token_types: int
    embedding_dim: int
    pad_id: int | None = None
    norm_eps: float = 1e-12
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, ids: jax.Array, token_types: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """Embeds ids [B, T] of types [B, T], None meaning 0, as [B, T, D]."""

        def table(name: str, rows: int) -> jax.Array:
            return self.param(name, trunc_normal(0.02), (rows, self.embedding_dim))

        positions = table("positions", self.num_positions)
        x = jnp.take(table("words", self.vocab_size), ids, axis=0)
        if self.num_token_types:
            types = table("token_types", self.num_token_types)
            x = x + (types[0] if token_types is None else jnp.take(types, token_types, axis=0))
        if self.pad_id is None:
            x = x + positions[: ids.shape[1]]
        else:
            real = (ids != self.pad_id).astype(jnp.int32)
            x = x + jnp.take(positions, jnp.cumsum(real, axis=1) * real + self.pad_id, axis=0)
        x = LayerNorm(self.norm_eps, name="norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        if self.embedding_dim == self.width:
            return x
        kernel = weight_init("trunc_normal").kernel
        return Linear(self.width, kernel_init=kernel, name="projection")(x)
