"""HuBERT (Hsu et al., arXiv 2106.07447): hidden frames are told by the cluster they belong to.

What differs from other objectives: the clusters were found beforehand, of MFCCs in a first
iteration and of an earlier model's layer in a second (`tools.cluster`), and are data: nothing that
is learned here makes the targets, so they cannot collapse.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from encoders.errors import ConfigError
from encoders.layers.linear import Linear
from encoders.layers.pooling import unit
from encoders.layers.quantizer import perplexity
from encoders.objectives.base import Batch
from encoders.objectives.guard import Guard
from encoders.objectives.heads import cross_entropy
from encoders.objectives.span_masking import SpanMasking
from encoders.objectives.speech import Hidden, MaskedSpeechObjective, at_frames, real_mean
from encoders.types import Outcome


class ClusterPrediction(MaskedSpeechObjective):
    """Tells the clusters batch['units'] int32 [B, F] of hidden frames (section II.B).

    The score of a cluster is the cosine of a projection of the frame's token and the cluster's
    embedding, over `logit_temperature` (equation 3). The loss is the cross-entropy, summed over the
    hidden frames that have a unit, and `unmasked_weight` times that of the others; the weight is
    the number of frames that count. To that comes the `feature_penalty` times the mean square of
    the front end's output before its norm, of every example, for each of its frames that count.

    Units come `units_per_second`; a frame has the unit of the time it begins at. -1 is no unit.

    Metrics: 'accuracy' of hidden frames; 'perplexity', how many clusters are told about equally
    often, of the mean over them of the softmax of the scores, in each micro-batch by itself, which
    are then averaged; 'feature_energy'; and with an `unmasked_weight` 'unmasked_accuracy'.

    Attributes:
      encoder, masking: see `MaskedSpeechObjective`.
      num_clusters: V.
      projection_dim: of the vectors that are compared.
      logit_temperature: which cosines are divided by.
      unmasked_weight: of the loss of frames that are not hidden; 0 in the paper (section IV.C).
      feature_penalty: see above; 10 in the authors' code.
      guard: stops a run that tells the same few clusters of everything; none by default, since what
        is to be told is data.
      sample_rate, units_per_second: of the batch (supplied by the preprocessing).
    """

    num_clusters: int = dataclasses.field(kw_only=True)
    masking: SpanMasking = dataclasses.field(default_factory=lambda: SpanMasking(rate=0.8))
    projection_dim: int = 256
    logit_temperature: float = 0.1
    unmasked_weight: float = 0.0
    feature_penalty: float = 10.0
    guard: Guard = Guard()
    sample_rate: int = 16000
    units_per_second: float = 50.0

    advice = (
        "the encoder guesses what is most frequent of whatever it hears: lower optimizer.lr, or "
        "warm up longer"
    )

    def setup(self) -> None:
        self.project = Linear(self.projection_dim)
        shape = (self.num_clusters, self.projection_dim)
        self.embeddings = self.param("embeddings", lambda key: jax.random.uniform(key, shape))

    def __call__(self, batch: Batch, *, train: bool = False) -> Outcome:
        """Hides frames and returns the loss of telling their clusters."""
        front = self.features(batch, train=train, energy=self.feature_penalty > 0)
        hidden = self.hide(self.rng_per_example(batch), front[1], batch)
        return self.loss(batch, front, hidden, train=train)

    def loss(
        self,
        batch: Batch,
        front: tuple[jax.Array, jax.Array, jax.Array | None],
        hidden: Hidden,
        *,
        train: bool = False,
    ) -> Outcome:
        """The loss of what `features` returned, for given hidden frames."""
        features, real, energy = front
        encoded = self.encode(batch, features=(features, real), masked=hidden.mask, train=train)
        units = self.units_of(batch, features.shape[1])
        losses, correct, counts, shares = self._told(
            at_frames(encoded.tokens, hidden.frames),
            at_frames(units, hidden.frames),
            hidden.weights,
        )
        count = counts.sum()
        used = perplexity(shares.sum(0, keepdims=True) / jnp.maximum(count, 1))
        metrics = {"accuracy": (correct.sum(), count), "perplexity": (used * count, count)}
        if self.unmasked_weight:
            valid = hidden.weights.any(-1, keepdims=True)
            more, right, others, _ = self._told(encoded.tokens, units, real & ~hidden.mask & valid)
            losses, counts = losses + self.unmasked_weight * more, counts + others
            metrics["unmasked_accuracy"] = (right.sum(), others.sum())
        total = losses.sum()
        if energy is not None:
            penalty = (real_mean(energy, real) * counts).sum()
            total += self.feature_penalty * penalty
            metrics["feature_energy"] = (penalty, counts.sum())
        return Outcome(total, counts.sum(), metrics)

    def scores(self, tokens: jax.Array) -> jax.Array:
        """float32 [..., V], how well tokens [..., D] fit each cluster."""
        found, clusters = unit(self.project(tokens)), unit(self.embeddings)
        products = jnp.einsum("...d,vd->...v", found, clusters, precision="highest")
        return products / self.logit_temperature

    def units_of(self, batch: Batch, frames: int) -> jax.Array:
        """The unit of every frame, int32 [B, frames]."""
        units = batch["units"]
        seconds = jnp.arange(frames) * (self.encoder.stride / self.sample_rate)
        place = jnp.floor(seconds * self.units_per_second + 1e-3).astype(jnp.int32)
        found = jnp.take(units, jnp.minimum(place, units.shape[1] - 1), axis=1)
        return jnp.where(place < units.shape[1], found, -1)

    def _told(
        self, tokens: jax.Array, units: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Sums over the frames of every example: losses, right answers and frames [B], and of the
        softmax of the scores [B, V].
        """
        weights = weights * (units >= 0).astype(jnp.float32)
        scores = self.scores(tokens)
        losses = cross_entropy(scores, jnp.maximum(units, 0)) * weights
        correct = (scores.argmax(-1) == units) * weights
        shares = (jax.nn.softmax(scores) * weights[..., None]).sum(-2)
        return losses.sum(-1), correct.sum(-1), weights.sum(-1), shares

    def check_source(self, source: Any) -> None:
        """Raises a ConfigError where there are no units, or of more clusters than can be told."""
        clusters = getattr(source, "clusters", None)
        if clusters is None:
            raise ConfigError(
                f"data.source: 'cluster_prediction' needs clips with units, such as the source "
                f"'units' has, got {type(source).__name__}."
            )
        if clusters > self.num_clusters:
            raise ConfigError(
                f"objective.num_clusters: {self.num_clusters}, but data.source has units of "
                f"{clusters} clusters."
            )

    def example_batch(self, preprocessing: Any, rows: int) -> dict[str, np.ndarray]:
        batch = super().example_batch(preprocessing, rows)
        units = preprocessing.num_units(batch["waveform"].shape[1])
        return {**batch, "units": np.zeros((rows, units), np.int32)}

    def flops(self, samples: int) -> float:
        """Forward FLOPs per example of so many samples."""
        frames = self.encoder.frames(samples)
        told = frames if self.unmasked_weight else self.masking.slots(frames)
        head = 2.0 * self.projection_dim * (self.encoder.size.width + self.num_clusters)
        return self.encoder.flops(samples) + told * head
