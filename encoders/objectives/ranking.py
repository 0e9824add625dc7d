"""Cross-encoders: two texts share a row and attend to each other; one number says how they fit.

They judge better than vectors of single texts and cost an encoder's pass for every pair, so they
re-rank what vectors have found (Nogueira and Cho, arXiv 1901.04085).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from encoders.errors import ConfigError, nearest
from encoders.layers.dropout import Dropout
from encoders.layers.initializers import trunc_normal
from encoders.layers.linear import Linear
from encoders.layers.pooling import Pooling
from encoders.objectives.base import Batch, valid_weights
from encoders.objectives.text import TextObjective
from encoders.types import Outcome

Loss = Literal["binary", "regression", "pairwise", "listwise"]


class Ranking(TextObjective):
    """One logit for a row [CLS] text [SEP] other [SEP]; the transform `tokenize_texts` makes rows.

      binary       ids [B, T], label [B] from 0 to 1: binary cross-entropy of the logit's sigmoid
      regression   ids [B, T], score [B]: squared error of the logit
      pairwise     ids [B, 2, T], the better row first: -log sigmoid(first - second), RankNet
      listwise     ids [B, K, T], the right row first: cross-entropy of a softmax over the K rows

    Metrics: 'accuracy', of the sign of the logit (label above one half) or of the best row;
    regression has none.

    Attributes:
      loss: one of these.
      num_candidates: K of 'listwise'.
      pooling: how tokens become a vector, see `pool`; None is the encoder's own way.
      dropout: rate on the pooled vector.
    """

    loss: Loss = "binary"
    num_candidates: int = 2
    pooling: Pooling | None = None
    dropout: float = 0.0

    def setup(self) -> None:
        if self.loss not in get_args(Loss):
            raise ConfigError(
                f"objective.loss: unknown '{self.loss}'.{nearest(self.loss, get_args(Loss))}"
            )
        self.head = Linear(1, kernel_init=trunc_normal(0.02))
        self.drop = Dropout(self.dropout)

    @property
    def rows(self) -> int | None:
        """K, the rows of an example; None where there is one, and no axis for them."""
        return {"pairwise": 2, "listwise": self.num_candidates}.get(self.loss)

    def logits(self, batch: Batch, *, train: bool = False) -> jax.Array:
        """How well the texts of each row fit: float32 [B], or [B, K].

        Raises:
          ConfigError: the batch has not the axes that the loss needs, or the encoder does not pool.
        """
        shape = batch["ids"].shape
        if shape[1:-1] != (() if self.rows is None else (self.rows,)):
            expected = "[B, T]" if self.rows is None else f"[B, {self.rows}, T]"
            raise ConfigError(
                f"objective.loss: '{self.loss}' takes ids {expected}, got {list(shape)}."
            )
        names = ("ids", "segments", "token_types")
        flat = {name: batch[name].reshape(-1, shape[-1]) for name in names if name in batch}
        found = self.pooled(self.encode(flat, train=train), self.pooling)
        found = self.head(self.drop(found, train=train))
        return found.astype(jnp.float32).reshape(shape[:-1])

    def __call__(self, batch: Batch, *, train: bool = False) -> Outcome:
        """Returns the loss of a batch."""
        logits, valid = self.logits(batch, train=train), valid_weights(batch)
        goal = {"binary": "label", "regression": "score"}.get(self.loss)
        label = None if goal is None else batch[goal].astype(jnp.float32)
        losses = ranking_losses(logits, label, self.loss)
        metrics = {}
        if self.loss != "regression":
            right = logits.argmax(-1) == 0 if label is None else (logits > 0) == (label > 0.5)
            metrics["accuracy"] = ((right * valid).sum(), valid.sum())
        return Outcome((losses * valid).sum(), valid.sum(), metrics)

    def example_batch(self, preprocessing: Any, rows: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the shapes and types of training."""
        batch = preprocessing.example_batch(rows)
        if self.loss == "regression":
            return {**batch, "score": np.zeros(rows, np.float32)}
        if self.rows is None:
            return {**batch, "label": np.zeros(rows, np.int32)}
        for name in ("ids", "segments"):
            batch[name] = np.repeat(batch[name][:, None], self.rows, axis=1)
        return batch

    def flops(self, length: int) -> float:
        """Forward FLOPs per example."""
        return (self.rows or 1) * (self.encoder.flops(length) + 2.0 * self.encoder.size.width)


def ranking_losses(logits: jax.Array, label: jax.Array | None, loss: Loss) -> jax.Array:
    """Losses [B] of logits [B] and labels [B], or of logits [B, K] whose first is the right one."""
    if loss == "binary":
        positive, negative = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        return -(label * positive + (1 - label) * negative)
    if loss == "regression":
        return jnp.square(logits - label)
    if loss == "pairwise":
        return -jax.nn.log_sigmoid(logits[:, 0] - logits[:, 1])
    return -jax.nn.log_softmax(logits)[:, 0]
