"""GraphCodeBERT's tasks (arXiv 2009.08366, section 4.3): hidden tokens, edges and alignments."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from encoders.errors import ConfigError
from encoders.models.graphcodebert import inside
from encoders.objectives.base import Batch, valid_weights
from encoders.objectives.heads import binary_cross_entropy, cross_entropy
from encoders.objectives.masked_language import MaskedLanguage
from encoders.types import Outcome


class Questions(NamedTuple):
    """What is hidden of a row's graph, and asked for.

    Attributes:
      sources: [N, N] bool, the edges that are left.
      aligned: [N] bool, False for nodes whose tokens are hidden from them.
      edges: [N, N] bool, pairs of nodes that are asked for.
      alignments: [N, L] bool, pairs of a node and a token that are asked for.
    """

    sources: jax.Array
    aligned: jax.Array
    edges: jax.Array
    alignments: jax.Array


class DataFlowLanguage(MaskedLanguage):
    """Predicts hidden tokens; which variables others come from; and which tokens variables are.

    Edges: all edges of a share of the nodes are hidden, and predicted among as many pairs without
    one. Alignment: another share of nodes and their tokens are hidden from each other, and
    predicted among as many other tokens of the code. Both probabilities are the sigmoid of a dot
    product, here over sqrt(D) so that it does not begin saturated. As a product has no direction,
    the reverse of an edge is not asked for.

    The sum is over rows: a row's loss is the mean over hidden tokens, plus the means over what is
    asked of its graph. The weight is the number of rows.

    Attributes:
      encoder: a GraphCodeBERT.
      masking, head, gather: as in `MaskedLanguage`.
      share: of a row's nodes whose edges are hidden, and likewise whose tokens are.
      edge_weight, alignment_weight: what these losses are multiplied with.
      max_nodes: N, as the transform 'data_flow' has it.
    """

    share: float = 0.2
    edge_weight: float = 1.0
    alignment_weight: float = 1.0
    max_nodes: int = 64

    def __call__(self, batch: Batch, *, train: bool = False) -> Outcome:
        """Hides parts of a batch that the transform 'data_flow' made, and predicts them.

        Raises:
          ConfigError: the batch has no nodes, or another number of them.
        """
        if self.pair is not None:
            raise ConfigError("objective.pair: text and code in one row are no pair task.")
        found = batch["node_spans"].shape[1] if "node_spans" in batch else 0
        if found != self.max_nodes:
            raise ConfigError(
                f"objective.max_nodes: {self.max_nodes}, but rows have {found} nodes; the "
                "transform 'data_flow' makes them."
            )
        valid, asked, corrupted = valid_weights(batch), self.ask(batch), self.corrupt(batch)
        hidden = {"node_sources": asked.sources, "node_aligned": asked.aligned}
        encoded = self.encode(batch, corrupted.ids, train=train, **hidden)

        scores = self.scores(encoded, corrupted.places)
        parts = {
            "token": (
                cross_entropy(scores, corrupted.labels),
                scores.argmax(-1) == corrupted.labels,
                corrupted.weights,
            )
        }
        vectors = encoded.tokens / math.sqrt(math.sqrt(encoded.tokens.shape[-1]))
        tokens, nodes = vectors[:, : -self.max_nodes], vectors[:, -self.max_nodes :]
        written = inside(batch["node_spans"], tokens.shape[1])
        for name, others, labels, which in (
            ("edge", nodes, batch["node_sources"], asked.edges),
            ("alignment", tokens, written, asked.alignments),
        ):
            scores = jnp.einsum("bnd,btd->bnt", nodes, others, preferred_element_type=jnp.float32)
            weights = which * valid[:, None, None]
            parts[name] = (binary_cross_entropy(scores, labels), (scores > 0) == labels, weights)

        rows, metrics = 0.0, {}
        factors = {"token": 1.0, "edge": self.edge_weight, "alignment": self.alignment_weight}
        for name, (losses, correct, weights) in parts.items():
            axes = tuple(range(1, losses.ndim))
            total, count = (losses * weights).sum(axes), weights.sum(axes)
            rows = rows + factors[name] * total / jnp.maximum(count, 1)
            metrics[f"{name}_loss"] = (total.sum(), count.sum())
            metrics[f"{name}_accuracy"] = ((correct * weights).sum(), count.sum())
        return Outcome(rows.sum(), valid.sum(), metrics)

    def ask(self, batch: Batch) -> Questions:
        """Chooses what to hide of every row's graph; fields with a leading axis B."""
        # A stream beside that of the tokens, which takes each row's key as it is.
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(self.rng_per_example(batch))
        tokens = batch["ids"].shape[1] - self.max_nodes
        frame = batch["sees_all"][:, :tokens]
        # The code stands between the last two special tokens.
        number = jnp.cumsum(frame, axis=1)
        code = ~frame & (number == number[:, -1:] - 1)
        graph = (batch["node_spans"], batch["node_sources"], batch["segments"][:, tokens:] > 0)
        return jax.vmap(lambda *row: _ask(*row, self.share))(keys, code, *graph)

    def example_batch(self, preprocessing: Any, rows: int) -> dict[str, np.ndarray]:
        batch, nodes = super().example_batch(preprocessing, rows), self.max_nodes
        return {
            **batch,
            "sees_all": np.zeros(batch["ids"].shape, bool),
            "node_spans": np.zeros((rows, nodes, 2), np.int32),
            "node_sources": np.zeros((rows, nodes, nodes), bool),
        }

    def flops(self, length: int) -> float:
        """Forward FLOPs per row of `length` tokens and nodes."""
        graph = 2.0 * self.max_nodes * length * self.encoder.size.width
        return super().flops(length) + graph


def _ask(
    key: jax.Array,
    code: jax.Array,
    spans: jax.Array,
    sources: jax.Array,
    real: jax.Array,
    share: float,
) -> Questions:
    """Questions about one row.

    Args:
      key: of this row.
      code: [L] bool, tokens of the code.
      spans, sources: [N, 2] and [N, N], its graph.
      real: [N] bool, nodes that are there.
      share: of the nodes that are asked about.
    """
    edge_key, other_key, align_key, token_key = jax.random.split(key, 4)
    count = jnp.maximum(jnp.round(share * real.sum()), 1)

    chosen = _some(edge_key, real, count)
    touched = chosen[:, None] | chosen[None, :]
    edges = sources & touched
    apart = real[:, None] & real[None, :] & ~jnp.eye(len(real), dtype=bool)
    without = touched & apart & ~sources & ~sources.T
    asked = edges | _some(other_key, without, edges.sum())

    chosen = _some(align_key, real, count)
    written = inside(spans[None], len(code))[0]
    own = written & chosen[:, None]
    elsewhere = chosen[:, None] & code[None, :] & ~written
    alignments = own | _some(token_key, elsewhere, own.sum())
    return Questions(sources & ~touched, ~chosen, asked, alignments)


def _some(key: jax.Array, among: jax.Array, count: jax.Array) -> jax.Array:
    """`count` random entries of those that are True in `among`, or all if there are fewer."""
    noise = jnp.where(among, jax.random.uniform(key, among.shape), 2.0).ravel()
    rank = jnp.argsort(jnp.argsort(noise)).reshape(among.shape)
    return among & (rank < count)
