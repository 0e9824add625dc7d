"""Masked-language modelling (BERT, arXiv 1810.04805), alone or with a task on pairs of texts.

RoBERTa's, SpanBERT's and ModernBERT's are this with other numbers in `masking`; SpanBERT's further
loss from a span's borders is not here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from encoders.errors import ConfigError
from encoders.objectives.base import Batch, valid_weights
from encoders.objectives.corruption import Corrupted, Masking, corrupt
from encoders.objectives.heads import PairHead, VocabularyHead, cross_entropy, word_table
from encoders.objectives.text import TextObjective
from encoders.types import Encoded, Outcome

Pair = Literal["nsp", "sop"]


class MaskingObjective(TextObjective):
    """Base of objectives that hide tokens.

    Attributes:
      masking: which tokens are hidden, and how.
    """

    masking: Masking = dataclasses.field(default_factory=Masking)

    def corrupt(self, batch: Batch) -> Corrupted:
        """The batch's rows, corrupted; fields as in `Corrupted`, with a leading axis B.

        What a row gets depends on the step and its place in the global batch alone.
        """
        starts = batch.get("word_start")

        def draw(key: jax.Array, ids: jax.Array, can: jax.Array, starts: Any) -> Corrupted:
            return corrupt(key, ids, can, starts, self.masking, self.vocabulary)

        rows = (self.rng_per_example(batch), batch["ids"], self.corruptible(batch), starts)
        return jax.vmap(draw, in_axes=(0, 0, 0, None if starts is None else 0))(*rows)

    def example_batch(self, preprocessing: Any, rows: int) -> dict[str, np.ndarray]:
        batch = super().example_batch(preprocessing, rows)
        if self.masking.unit != "token":
            batch["word_start"] = np.zeros(batch["ids"].shape, bool)
        return batch


class MaskedLanguage(MaskingObjective):
    """Predicts hidden tokens from what is left, and maybe whether two texts belong together.

    Without a pair task, the sum is over hidden tokens and the weight is their number. With one, the
    sum is over rows: a row's loss is the mean over its hidden tokens plus that of its pair, and the
    weight is the number of rows. Two means over a whole batch could not be added up from parts of
    it: a part would have to know how many tokens the others hide.

    Attributes:
      encoder: a text encoder; with a pair task, one that pools.
      head: the vocabulary head.
      pair: 'nsp' (BERT: did the second text follow the first?) or 'sop' (ALBERT: are the two in
        their order?); the batch says so in `label`: 0 for yes, 1 for no. None for no such task.
      gather: whether only hidden tokens pass the head; False computes the same from all of them, at
        several times the cost, to measure against.
    """

    head: VocabularyHead = dataclasses.field(default_factory=lambda: VocabularyHead(parent=None))
    pair: Pair | None = None
    gather: bool = True

    def setup(self) -> None:
        if self.pair is not None:
            self.pair_head = PairHead()

    def __call__(self, batch: Batch, *, train: bool = False) -> Outcome:
        """Hides tokens of batch['ids'] and returns the loss of predicting them."""
        return self.loss(batch, self.corrupt(batch), train=train)

    def loss(self, batch: Batch, corrupted: Corrupted, *, train: bool = False) -> Outcome:
        """The loss for given hidden tokens."""
        return self.outcome(batch, corrupted, self.encode(batch, corrupted.ids, train=train))

    def outcome(self, batch: Batch, corrupted: Corrupted, encoded: Encoded) -> Outcome:
        """The loss for given hidden tokens and what the encoder made of the others."""
        scores = self.scores(encoded, corrupted.places)
        weights = corrupted.weights
        losses = cross_entropy(scores, corrupted.labels) * weights
        correct = (scores.argmax(-1) == corrupted.labels) * weights
        metrics = {"accuracy": (correct.sum(), weights.sum())}
        if self.pair is None:
            return Outcome(losses.sum(), weights.sum(), metrics)
        valid = valid_weights(batch)
        answers = self.pair_scores(encoded)
        pair_losses = cross_entropy(answers, batch["label"]) * valid
        pair_correct = (answers.argmax(-1) == batch["label"]) * valid
        metrics |= {
            "token_loss": (losses.sum(), weights.sum()),
            "pair_loss": (pair_losses.sum(), valid.sum()),
            "pair_accuracy": (pair_correct.sum(), valid.sum()),
        }
        means = losses.sum(-1) / jnp.maximum(weights.sum(-1), 1)
        return Outcome(means.sum() + pair_losses.sum(), valid.sum(), metrics)

    def scores(self, encoded: Encoded, places: jax.Array | None = None) -> jax.Array:
        """float32 scores of the vocabulary for the tokens at places [B, K], or for all [B, T].

        Returns:
          [B, K, V] or [B, T, V].
        """
        tokens, table = encoded.tokens, word_table(self.encoder)
        if places is None:
            return self.head(tokens, self.encoder, table)
        if self.gather:
            tokens = jnp.take_along_axis(tokens, places[..., None], axis=1)
            return self.head(tokens, self.encoder, table)
        return jnp.take_along_axis(self.scores(encoded), places[..., None], axis=1)

    def pair_scores(self, encoded: Encoded) -> jax.Array:
        """float32 [B, 2]: that the two texts belong together in this order, and that they do not.

        Raises:
          ConfigError: the encoder does not pool.
        """
        if encoded.pooled is None:
            raise ConfigError(
                f"model.pool: the pair task '{self.pair}' needs a pooled vector; 'none' has none."
            )
        return self.pair_head(encoded.pooled)

    def example_batch(self, preprocessing: Any, rows: int) -> dict[str, np.ndarray]:
        batch = super().example_batch(preprocessing, rows)
        if self.pair is not None:
            batch["token_types"] = np.zeros_like(batch["ids"])
            batch["label"] = np.zeros(rows, np.int32)
        return batch

    def flops(self, length: int) -> float:
        """Forward FLOPs per row of `length` tokens, of which the head sees the hidden ones."""
        scored = self.masking.places(length) if self.gather else length
        pair = 4.0 * self.encoder.size.width if self.pair else 0.0
        return self.encoder.flops(length) + scored * self.head.flops(self.encoder) + pair
