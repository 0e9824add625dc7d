"""wav2vec 2.0 (Baevski et al., arXiv 2006.11477): hidden frames are told from others of the row.

What differs from other objectives: what is to be found is learned as well. A quantizer makes
targets of the features that the encoder's front end has, and nothing stops their gradient; so a
second loss keeps it from making one target of all. Section numbers are the paper's; what it does
not say is as in the authors' code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from encoders.errors import ConfigError
from encoders.layers.dropout import Dropout
from encoders.layers.linear import Linear
from encoders.layers.pooling import unit
from encoders.layers.quantizer import GumbelQuantizer, Temperature, perplexity
from encoders.objectives.base import Batch
from encoders.objectives.guard import Guard
from encoders.objectives.span_masking import sample_negatives
from encoders.objectives.speech import (
    Hidden,
    MaskedSpeechObjective,
    at_frames,
    real_mean,
    split_keys,
)
from encoders.types import Outcome

_NEVER = -1e30  # in place of minus infinity, of which differences are no numbers


class Drawn(NamedTuple):
    """What is random in a batch, but for dropout.

    Attributes:
      hidden: which frames.
      negatives: int32 [B, K, N], places of the hidden frames that are compared with each.
      noise: [B, K, G, V] Gumbel noise of the quantizer's choices, or None for the best.
    """

    hidden: Hidden
    negatives: jax.Array
    noise: jax.Array | None


class SpeechContrast(MaskedSpeechObjective):
    """Finds the quantized features of hidden frames among those of other hidden frames.

    The loss is a sum over the hidden frames of the batch, whose number N is the weight (section
    3.2, with the scale that the authors' code gives its parts):

      - log of the share that the true target has in a softmax of cosines over it and its
        negatives, those equal to it left out: they are of the same entries;
      - diversity_weight * N * (G * V - perplexity) / (G * V), of the softmax of the quantizer's
        logits, averaged over hidden frames;
      - feature_penalty * the mean square of the front end's output before its norm, of every
        example, for each of its hidden frames.

    The perplexity is of all the batch, so the loss is no sum over examples; training computes
    micro-batches twice for it (`Objective.whole_batch`).

    Metrics: the losses' parts; 'accuracy', how often the true target fits best; 'perplexity', of
    which the loss speaks, from G to G * V; 'code_perplexity', that of the entries really chosen;
    'temperature'.

    Attributes:
      encoder, masking: see `MaskedSpeechObjective`.
      quantizer: sizes of the codebooks.
      temperature: of the quantizer's choices, by the step that the batch says (`step`).
      projection_dim: of the vectors that are compared; Large has 768.
      num_negatives: that each hidden frame is compared with, drawn with replacement from the other
        hidden frames of the row.
      logit_temperature: which cosines are divided by.
      diversity_weight, feature_penalty: of the second and third part; Large has no penalty.
      feature_dropout: rate on the features that are quantized.
      quantizer_stats: of which frames the perplexity is: 'global', all of the batch; or
        'per_shard', those of `shard_rows` rows, whose losses are added up. The second is what the
        authors' code does, where a shard is what one GPU has of the batch; a mean over fewer frames
        has a lower perplexity. It does not depend on the devices that are there.
      shard_rows: rows of a shard, one after the other in the batch.
      guard: stops a run whose targets have become one.
    """

    quantizer: GumbelQuantizer = dataclasses.field(
        default_factory=lambda: GumbelQuantizer(parent=None)
    )
    temperature: Temperature = dataclasses.field(default_factory=Temperature)
    projection_dim: int = 256
    num_negatives: int = 100
    logit_temperature: float = 0.1
    diversity_weight: float = 0.1
    feature_penalty: float = 10.0
    feature_dropout: float = 0.1
    quantizer_stats: Literal["global", "per_shard"] = "global"
    shard_rows: int | None = None
    # Collapsed quantizers have a perplexity of G, one entry of each codebook.
    guard: Guard = dataclasses.field(default_factory=lambda: Guard({"perplexity": 6.0}))

    whole_batch = True
    advice = (
        "the quantizer makes ever fewer codes of what it hears, until there is nothing to tell "
        "apart: raise objective.diversity_weight or lower optimizer.lr"
    )

    def setup(self) -> None:
        if (self.quantizer_stats == "per_shard") != (self.shard_rows is not None):
            raise ConfigError(
                "objective.shard_rows: how many rows share statistics belongs to "
                f"quantizer_stats='per_shard'; got {self.shard_rows} with "
                f"'{self.quantizer_stats}'."
            )
        self.project_hidden = Linear(self.projection_dim)
        self.project_target = Linear(self.projection_dim)
        self.drop_features = Dropout(self.feature_dropout)

    def __call__(self, batch: Batch, *, train: bool = False) -> Outcome:
        """Returns the loss of a batch."""
        return self.compare(self.embed(batch, train=train), batch)

    def embed(self, batch: Batch, *, train: bool = False) -> dict[str, jax.Array]:
        """Of every example of a (micro-)batch: its losses, and what its quantizer chose.

        Returns:
          float32 'contrast', 'penalty' (where there is one), 'correct' and 'count' [B], of the
          hidden frames; 'shares' and 'choices' [B, G, V], sums over them of the softmax and of what
          was chosen.
        """
        front = self.features(batch, train=train, energy=self.feature_penalty > 0)
        return self.losses(batch, front, self.draw(batch, front[1], train=train), train=train)

    def draw(self, batch: Batch, real: jax.Array, *, train: bool = False) -> Drawn:
        """What is random in a batch of which the frames `real` [B, T] are no padding."""
        mask_keys, negative_keys, noise_keys = split_keys(self.rng_per_example(batch), 3)
        hidden = self.hide(mask_keys, real, batch)
        negatives = jax.vmap(sample_negatives, in_axes=(0, 0, None))(
            negative_keys, hidden.weights > 0, self.num_negatives
        )
        noise = None
        if train:
            sizes = (self.quantizer.groups, self.quantizer.entries)
            shape = (hidden.frames.shape[1], *sizes)
            noise = jax.vmap(lambda key: jax.random.gumbel(key, shape))(noise_keys)
        return Drawn(hidden, negatives, noise)

    def losses(
        self,
        batch: Batch,
        front: tuple[jax.Array, jax.Array, jax.Array | None],
        drawn: Drawn,
        *,
        train: bool = False,
    ) -> dict[str, jax.Array]:
        """`embed`, of what `features` returned, for given choices."""
        features, real, energy = front
        hidden, weights = drawn.hidden, drawn.hidden.weights
        encoded = self.encode(batch, features=(features, real), masked=hidden.mask, train=train)
        found = self.project_hidden(at_frames(encoded.tokens, hidden.frames))
        target = self.drop_features(at_frames(features, hidden.frames), train=train)
        quantized = self.quantizer(target, drawn.noise, self._temperature(batch))
        target = self.project_target(quantized.vectors)
        losses, correct = jax.vmap(contrast, in_axes=(0, 0, 0, 0, None))(
            unit(found), unit(target), quantized.codes, drawn.negatives, self.logit_temperature
        )
        count = weights.sum(-1)
        choices = jax.nn.one_hot(quantized.codes, self.quantizer.entries)
        penalty = {} if energy is None else {"penalty": real_mean(energy, real) * count}
        return {
            **penalty,
            "contrast": (losses * weights).sum(-1),
            "correct": (correct * weights).sum(-1),
            "count": count,
            "shares": jnp.einsum("bkgv,bk->bgv", quantized.probabilities, weights),
            "choices": jnp.einsum("bkgv,bk->bgv", choices, weights),
        }

    def compare(self, embedded: Mapping[str, jax.Array], batch: Batch) -> Outcome:
        """The loss of a whole batch.

        Raises:
          ConfigError: it cannot be cut into shards.
        """
        rows, shard = embedded["count"].shape[0], self.shard_rows or embedded["count"].shape[0]
        if self.is_initializing():
            shard = rows  # whatever the batch of zeros has
        if rows % shard:
            raise ConfigError(
                f"objective.shard_rows: a batch of {rows} rows cannot be cut into shards of "
                f"{shard}."
            )
        count, entries = embedded["count"], self.quantizer.groups * self.quantizer.entries
        counts = count.reshape(-1, shard).sum(1)
        ppl = perplexity(_shares(embedded["shares"], counts))
        diversity = (counts * (entries - ppl)).sum() / entries
        contrast, total, one = embedded["contrast"].sum(), count.sum(), jnp.float32(1)
        loss = contrast + self.diversity_weight * diversity
        chosen = perplexity(_shares(embedded["choices"], total[None]))
        metrics = {
            "contrastive_loss": (contrast, total),
            "diversity_loss": (diversity, total),
            "accuracy": (embedded["correct"].sum(), total),
            "perplexity": ((ppl * counts).sum(), total),
            "code_perplexity": (chosen[0], one),
            "temperature": (self._temperature(batch), one),
        }
        if "penalty" in embedded:
            penalty = embedded["penalty"].sum()
            loss += self.feature_penalty * penalty
            metrics["feature_energy"] = (penalty, total)
        return Outcome(loss, total, metrics)

    def _temperature(self, batch: Batch) -> jax.Array:
        return self.temperature(batch.get("step", 0))

    def flops(self, samples: int) -> float:
        """Forward FLOPs per example of so many samples."""
        slots = self.masking.slots(self.encoder.frames(samples))
        width, features = self.encoder.size.width, self.encoder.feature_dim
        head = self.quantizer.flops(features) + 2.0 * self.projection_dim * (
            width + self.quantizer.width + slots
        )
        return self.encoder.flops(samples) + slots * head


def contrast(
    found: jax.Array,
    target: jax.Array,
    codes: jax.Array,
    negatives: jax.Array,
    temperature: float,
) -> tuple[jax.Array, jax.Array]:
    """The losses of the hidden frames of one row.

    Cosines of all pairs are one small matrix product, and how often each is drawn as a negative is
    a number that its exponential is multiplied with: no [K, N, D] of negatives is gathered.

    Args:
      found, target: float32 [K, D] of length 1.
      codes: int32 [K, G] of the targets; equal codes are equal targets.
      negatives: int32 [K, N].
      temperature: which cosines are divided by.

    Returns:
      float32 [K] losses, and bool [K], whether the true target fits better than all negatives.
    """
    slots = jnp.arange(len(found))
    drawn = jnp.zeros((len(found), len(found))).at[slots[:, None], negatives].add(1.0)
    equal = (codes[:, None] == codes).all(-1)
    drawn = jnp.where(equal, 0.0, drawn)
    logits = jnp.einsum("id,jd->ij", found, target, precision="highest") / temperature
    true = jnp.diagonal(logits)
    rivals = jnp.where(drawn > 0, logits + jnp.log(jnp.maximum(drawn, 1.0)), _NEVER)
    losses = jnp.logaddexp(true, jax.nn.logsumexp(rivals, axis=1)) - true
    best = jnp.where(drawn > 0, logits, _NEVER).max(1)
    return losses, (true > best) & (drawn.sum(1) > 0)


def _shares(sums: jax.Array, counts: jax.Array) -> jax.Array:
    """[shards, G, V], the means of sums [B, G, V] over the frames of each shard, of `counts`."""
    sums = sums.reshape(len(counts), -1, *sums.shape[1:]).sum(1)
    return sums / jnp.maximum(counts, 1)[:, None, None]
