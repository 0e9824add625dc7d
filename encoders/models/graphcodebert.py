"""GraphCodeBERT (arXiv 2009.08366): RoBERTa on a text, code, and the code's variables.

Differences from RoBERTa: the last tokens of a row are nodes, occurrences of variables in the code.
A node has no word of its own but the mean of those of the tokens it is written with, and position
0; who may attend to whom follows the data-flow graph (section 4.2).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from encoders.errors import ConfigError
from encoders.models.roberta import RoBERTa
from encoders.types import Encoded


class GraphCodeBERT(RoBERTa):
    """GraphCodeBERT; attributes as in `BERT`. `max_length` counts no nodes.

    Its parameters are those of a RoBERTa, and without nodes it is one.
    """

    def __call__(
        self,
        ids: jax.Array,
        *,
        segments: jax.Array | None = None,
        token_types: jax.Array | None = None,
        sees_all: jax.Array | None = None,
        node_spans: jax.Array | None = None,
        node_sources: jax.Array | None = None,
        node_aligned: jax.Array | None = None,
        train: bool = False,
        **others: Any,
    ) -> Encoded:
        """Encodes token ids and nodes.

        Args:
          ids: [B, T] int32; those of the last N tokens, the nodes, are not looked at.
          segments: [B, T] int32, 1 where a token or node is real and 0 where not.
          token_types: [B, T] int32, see `BERT`.
          sees_all: [B, T] bool, True for [CLS] and [SEP], which attend to nodes as well.
          node_spans: [B, N, 2] int32, first token and the one after the last of each node.
          node_sources: [B, N, N] bool, True where the value of a node (the second axis) comes from
            another (the last).
          node_aligned: [B, N] bool, False where a node and its tokens do not attend to each other;
            None if all do.
          train: whether dropout is on.
          **others: as of `BERT`.

        Returns:
          Encoded, the nodes among its tokens.

        Raises:
          ConfigError: fields of the graph are missing, or there are more tokens than positions.
        """
        if node_spans is None:
            given = {"segments": segments, "token_types": token_types, "train": train}
            return super().__call__(ids, **given, **others)
        if segments is None or sees_all is None or node_sources is None:
            raise ConfigError("model: nodes come with segments, sees_all and node_sources.")
        nodes = node_spans.shape[1]
        tokens = ids.shape[1] - nodes
        self._check(ids[:, :tokens], token_types)
        mask = graph_mask(segments, sees_all, node_spans, node_sources, node_aligned)
        real = (segments[:, :tokens] > 0).astype(jnp.int32)
        positions = jnp.cumsum(real, axis=1) * real + self.pad_id
        positions = jnp.pad(positions, ((0, 0), (0, nodes)))
        written = jnp.pad(inside(node_spans, tokens), ((0, 0), (0, 0), (0, nodes)))
        embedded = self.embeddings(ids, token_types, positions, average=written, train=train)
        return super().__call__(ids, mask=mask, embedded=embedded, train=train, **others)


def inside(spans: jax.Array, tokens: int) -> jax.Array:
    """[B, N, 2] spans -> [B, N, tokens] bool, True for the tokens of each span."""
    place = jnp.arange(tokens)
    return (place >= spans[..., :1]) & (place < spans[..., 1:])


def graph_mask(
    segments: jax.Array,
    sees_all: jax.Array,
    node_spans: jax.Array,
    node_sources: jax.Array,
    node_aligned: jax.Array | None = None,
) -> jax.Array:
    """Graph-guided masked attention (equations 6 to 8 of the paper).

    Tokens attend to tokens; [CLS] and [SEP] to everything; a node to itself, to the nodes that its
    value comes from, and to the tokens it is written with, which attend to it.

    Args:
      segments, sees_all, node_spans, node_sources, node_aligned: as of `GraphCodeBERT`.

    Returns:
      [B, T, T] bool, True where one token (the second axis) may attend to another (the last).
    """
    real, nodes = segments > 0, node_spans.shape[1]
    tokens = segments.shape[1] - nodes
    written = inside(node_spans, tokens)
    if node_aligned is not None:
        written = written & node_aligned[..., None]
    is_token = jnp.arange(segments.shape[1]) < tokens
    linked = jnp.concatenate(
        [
            jnp.pad(jnp.swapaxes(written, 1, 2), ((0, 0), (0, 0), (tokens, 0))),
            jnp.concatenate([written, node_sources | jnp.eye(nodes, dtype=bool)], axis=2),
        ],
        axis=1,
    )
    allowed = linked | (is_token[:, None] & is_token[None, :]) | sees_all[:, :, None]
    return allowed & real[:, :, None] & real[:, None, :]
