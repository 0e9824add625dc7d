"""Vectors of sentences: contrast, triplets, similarity scores, classes of pairs.

What differs from other objectives: an example is K texts that belong together, ids [B, K, T] and
segments [B, K, T] int32 with no more than one text in a row (the transform `tokenize_texts` makes
them). Each text becomes one vector, by `pooling`, and losses compare the vectors.

  sentence_contrast   SimCSE (arXiv 2104.08821) and multiple negatives ranking (1705.00652)
  sentence_triplet    an anchor is nearer to its positive than to its negative
  sentence_score      CoSENT: the order of cosine similarities is that of the scores
  sentence_pair       Sentence-BERT (arXiv 1908.10084), section 3.1: softmax over (u, v, |u - v|)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from encoders.data.text import INPUTS
from encoders.errors import ConfigError
from encoders.layers.initializers import trunc_normal
from encoders.layers.linear import Linear
from encoders.layers.pooling import Pooling, unit
from encoders.objectives.base import Batch, valid_weights
from encoders.objectives.text import TextObjective
from encoders.types import Outcome


class SentenceObjective(TextObjective):
    """Base of objectives on the vectors of K texts.

    Attributes:
      pooling: how tokens become a vector, see `pool`; None is the encoder's own way.
    """

    pooling: Pooling | None = None

    @property
    def texts(self) -> int:
        """K, the texts of an example."""
        return 2

    def vectors(self, batch: Batch, *, train: bool = False, copies: int = 1) -> jax.Array:
        """One vector for every text of a batch, each encoded `copies` times.

        Returns:
          [B, K * copies, D] float32.

        Raises:
          ConfigError: the batch has another number of texts, or the encoder does not pool.
        """
        ids = batch["ids"]
        if ids.ndim != 3 or ids.shape[1] != self.texts:
            raise ConfigError(
                f"objective: {type(self).__name__} takes ids [B, {self.texts}, T], got "
                f"{list(ids.shape)}; name {self.texts} fields in the transform 'tokenize_texts'."
            )
        given = {name: batch[name] for name in ("ids", *INPUTS) if name in batch}
        rows = {name: jnp.repeat(value, copies, axis=1) for name, value in given.items()}
        flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in rows.items()}
        found = self.pooled(self.encode(flat, train=train), self.pooling)
        return found.reshape(*rows["ids"].shape[:2], -1).astype(jnp.float32)

    def embed(self, batch: Batch, *, train: bool = False) -> dict[str, jax.Array]:
        """What examples are compared by, {'vectors': [B, K, D]}."""
        return {"vectors": self.vectors(batch, train=train)}

    def compare(self, embedded: Mapping[str, jax.Array], batch: Batch) -> Outcome:
        """The loss and metrics of a batch from its vectors."""
        raise NotImplementedError

    def __call__(self, batch: Batch, *, train: bool = False) -> Outcome:
        """Returns the loss of a batch and what tells how good it is."""
        return self.compare(self.embed(batch, train=train), batch)

    def example_batch(self, preprocessing: Any, rows: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the shapes and types of training."""
        batch = preprocessing.example_batch(rows)
        for name in ("ids", *INPUTS):
            if name in batch:
                batch[name] = np.repeat(batch[name][:, None], self.texts, axis=1)
        return batch

    def flops(self, length: int) -> float:
        """Forward FLOPs per example; comparing vectors is next to nothing."""
        return self.texts * self.encoder.flops(length)


class SentenceContrast(SentenceObjective):
    """Tells a text's counterpart from those of all other texts of the global batch.

    Of K texts the first is the anchor, the second its counterpart, further ones hard negatives.
    With one text its counterpart is itself, encoded again with other dropout (unsupervised SimCSE).

    Attributes:
      num_texts: K; 1 is unsupervised, 2 has counterparts, more have hard negatives.
      temperature: cosines are divided by it; sentence-transformers multiplies by scale, its
        inverse, 20.
      projection: whether a linear layer and tanh stand between pooling and loss in training, to be
        thrown away afterwards (SimCSE's MLP that only training has).
    """

    num_texts: int = 2
    temperature: float = 0.05
    projection: bool = False

    whole_batch = True

    @property
    def texts(self) -> int:
        return self.num_texts

    def setup(self) -> None:
        if self.num_texts < 1 or self.temperature <= 0:
            raise ConfigError(
                "objective: expected num_texts from 1 and a temperature above 0, got "
                f"{self.num_texts} and {self.temperature}."
            )
        if self.projection:
            self.head = Linear(self.encoder.size.width, kernel_init=trunc_normal(0.02))

    def embed(self, batch: Batch, *, train: bool = False) -> dict[str, jax.Array]:
        """What examples are compared by, {'vectors': [B, 2 or K, D]}."""
        found = self.vectors(batch, train=train, copies=2 if self.num_texts == 1 else 1)
        if self.projection and (train or self.is_initializing()):
            found = jnp.tanh(self.head(found)).astype(jnp.float32)
        return {"vectors": found}

    def compare(self, embedded: Mapping[str, jax.Array], batch: Batch) -> Outcome:
        """The loss of a batch, and the share of anchors that find their counterpart."""
        valid = valid_weights(batch)
        losses, right = contrast(embedded["vectors"], valid, self.temperature)
        metrics = {"accuracy": ((right * valid).sum(), valid.sum())}
        return Outcome((losses * valid).sum(), valid.sum(), metrics)

    def flops(self, length: int) -> float:
        """Forward FLOPs per example."""
        size, texts = self.encoder.size, max(self.num_texts, 2)
        head = 2.0 * size.width**2 if self.projection else 0.0
        return texts * (self.encoder.flops(length) + head)


class SentenceTriplet(SentenceObjective):
    """max(0, |anchor - positive| - |anchor - negative| + margin), Euclidean, of three texts.

    Attributes:
      margin: by how much the negative should be further away.
    """

    margin: float = 5.0

    @property
    def texts(self) -> int:
        return 3

    def compare(self, embedded: Mapping[str, jax.Array], batch: Batch) -> Outcome:
        """The loss of a batch, and the share of triplets in the right order."""
        near, far = triplet_distances(embedded["vectors"])
        losses, valid = jax.nn.relu(near - far + self.margin), valid_weights(batch)
        metrics = {"accuracy": (((near < far) * valid).sum(), valid.sum())}
        return Outcome((losses * valid).sum(), valid.sum(), metrics)


class SentenceScore(SentenceObjective):
    """Orders the pairs of the global batch by cosine as batch['score'] float32 [B] does (CoSENT).

    Attributes:
      scale: of the differences of cosines.
    """

    scale: float = 20.0

    whole_batch = True

    def compare(self, embedded: Mapping[str, jax.Array], batch: Batch) -> Outcome:
        """The loss of a batch, which is one number, weighted by its examples."""
        valid = valid_weights(batch)
        loss = cosent(embedded["vectors"], batch["score"], valid, self.scale)
        return Outcome(loss * valid.sum(), valid.sum())

    def example_batch(self, preprocessing: Any, rows: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the shapes and types of training."""
        batch = super().example_batch(preprocessing, rows)
        return {**batch, "score": np.zeros(rows, np.float32)}


class SentencePair(SentenceObjective):
    """Classifies a pair from (u, v, |u - v|), its vectors side by side with their difference.

    Attributes:
      num_classes: classes of batch['label'] int32 [B].
    """

    num_classes: int = dataclasses.field(kw_only=True)

    def setup(self) -> None:
        self.head = Linear(self.num_classes, kernel_init=trunc_normal(0.02))

    def compare(self, embedded: Mapping[str, jax.Array], batch: Batch) -> Outcome:
        """The loss and accuracy of a batch."""
        logits = self.head(pair_features(embedded["vectors"])).astype(jnp.float32)
        likelihood = jax.nn.log_softmax(logits)
        losses = -jnp.take_along_axis(likelihood, batch["label"][:, None], axis=1)[:, 0]
        valid = valid_weights(batch)
        right = logits.argmax(-1) == batch["label"]
        metrics = {"accuracy": ((right * valid).sum(), valid.sum())}
        return Outcome((losses * valid).sum(), valid.sum(), metrics)

    def example_batch(self, preprocessing: Any, rows: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the shapes and types of training."""
        batch = super().example_batch(preprocessing, rows)
        return {**batch, "label": np.zeros(rows, np.int32)}

    def flops(self, length: int) -> float:
        """Forward FLOPs per example."""
        return super().flops(length) + 6.0 * self.encoder.size.width * self.num_classes


# --- losses of vectors ----------------------------------------------------------------------------


def contrast(
    vectors: jax.Array, valid: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of each anchor's counterpart among those of the whole batch.

    Rows and candidates are axes of one logical array, and the right one is on its diagonal: no
    number of devices can set them against each other.

    Args:
      vectors: [B, K, D] float32: anchor, counterpart, hard negatives.
      valid: [B], 0 for examples that are padding, which are no candidates.
      temperature: of the softmax over cosines.

    Returns:
      Losses [B], and whether the counterpart scored highest, [B] bool.
    """
    vectors = unit(vectors)
    # Products of float32 as such: on accelerators the default would round cosines to bfloat16.
    scores = jnp.einsum("id,jkd->ijk", vectors[:, 0], vectors[:, 1:], precision="highest")
    scores = scores / temperature
    right = jnp.diagonal(scores[:, :, 0])
    scores = jnp.where(valid[None, :, None] > 0, scores, jnp.finfo(scores.dtype).min)
    losses = jax.nn.logsumexp(scores, axis=(1, 2)) - right
    return losses, right >= scores.max((1, 2))


def triplet_distances(vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Euclidean distances [B] of anchor and positive, and of anchor and negative, [B, 3, D]."""
    anchor, positive, negative = vectors[:, 0], vectors[:, 1], vectors[:, 2]

    # As PyTorch, 1e-6 is added to every difference: the gradient at zero is then a number.
    def distance(other: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.square(anchor - other + 1e-6).sum(-1))

    return distance(positive), distance(negative)


def cosent(vectors: jax.Array, score: jax.Array, valid: jax.Array, scale: float) -> jax.Array:
    """log(1 + sum of exp(scale * (cosine_i - cosine_j)) over pairs with score_i < score_j).

    Args:
      vectors: [B, 2, D] float32.
      score: [B], how similar the two texts are.
      valid: [B], 0 for examples that are padding.
      scale: of the differences.

    Returns:
      One number for the batch.
    """
    vectors = unit(vectors)
    cosine = scale * (vectors[:, 0] * vectors[:, 1]).sum(-1)
    counts = (score[:, None] < score[None]) & (valid[:, None] > 0) & (valid[None] > 0)
    terms = jnp.where(counts, cosine[:, None] - cosine[None], -jnp.inf)
    return jax.nn.logsumexp(jnp.append(terms.ravel(), 0.0))


def pair_features(vectors: jax.Array) -> jax.Array:
    """(u, v, |u - v|) [B, 3 D] of the two vectors of a pair [B, 2, D]."""
    first, second = vectors[:, 0], vectors[:, 1]
    return jnp.concatenate([first, second, jnp.abs(first - second)], axis=-1)
