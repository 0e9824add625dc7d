"""Distillation of a masked-language model into a smaller one (DistilBERT, arXiv 1910.01108).

The student starts from every other layer of the teacher. In a config that is `init_from`, a rule
for each layer of the student:

    config.init_from.path = "path/to/bert"
    config.init_from.load = [
        *((rf"encoder/blocks_{i}/(.*)", rf"encoder/blocks_{2 * i}/\\1") for i in range(6)),
        ("encoder/embeddings/.*", True),
        ("head/.*", True),
    ]
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError
from encoders.objectives.base import Batch, valid_weights
from encoders.objectives.corruption import Corrupted
from encoders.objectives.heads import cross_entropy
from encoders.objectives.masked_language import MaskedLanguage
from encoders.types import Outcome


class DistilledLanguage(MaskedLanguage):
    """Predicts hidden tokens, and what a teacher makes of the same text (section 2).

    Three losses are added: the teacher's distribution over the vocabulary, as temperature^2 *
    KL(teacher || student); the hidden tokens themselves; and 1 - cosine of the angle between the
    last outputs of the two. The weight is the number of real tokens. Each counts the first and the
    third loss on it, and the mean of the second over its row, for the reason in `ReplacedToken`.
    In evaluation, the loss is that of hidden tokens alone.

    The teacher is a MaskedLanguage module whose variables arrive in the collection 'teacher' as
    {'params': ...}; in a config `objective.teacher` is where both are loaded from: a run, or a
    directory with its vocabulary head. It is run in evaluation mode and gets no gradient.

    Attributes:
      encoder, masking, head: see `MaskedLanguage`; there is no pair task.
      teacher: the teacher's module.
      temperature: of both distributions.
      soft_weight, token_weight, cosine_weight: of the three losses; those of the authors' code.
      soft_on: tokens whose distributions are compared, 'all' that are real (the authors' code), or
        'hidden' ones, which spares both vocabulary heads most of their work.
    """

    teacher: nn.Module | None = None
    temperature: float = 2.0
    soft_weight: float = 5.0
    token_weight: float = 2.0
    cosine_weight: float = 1.0
    soft_on: Literal["all", "hidden"] = "all"

    def setup(self) -> None:
        super().setup()
        if self.teacher is None or not isinstance(self.teacher, MaskedLanguage):
            raise ConfigError(
                "objective.teacher: expected weights with a vocabulary head, those of "
                "'masked_language'."
            )
        if self.pair is not None:
            raise ConfigError("objective.pair: there is no pair task in distillation.")
        taught, size = self.teacher.encoder, self.encoder.size
        for field, ours, theirs in (
            ("width", size.width, taught.size.width),
            ("vocab_size", self.encoder.vocab_size, taught.vocab_size),
        ):
            if ours != theirs:
                raise ConfigError(f"model.{field}: {ours} is not the teacher's, {theirs}.")

    def loss(self, batch: Batch, corrupted: Corrupted, *, train: bool = False) -> Outcome:
        """The loss for given hidden tokens."""
        if not train or self.is_initializing():
            return super().loss(batch, corrupted, train=train)
        encoded = self.encode(batch, corrupted.ids, train=True)
        places = None if self.soft_on == "all" else corrupted.places
        scores = self.scores(encoded, places)
        tokens, goals = self._taught(batch, corrupted, places)

        hidden = corrupted.weights
        real = (batch["segments"] > 0) * valid_weights(batch)[:, None]
        at_hidden = scores
        if places is None:
            at_hidden = jnp.take_along_axis(scores, corrupted.places[..., None], axis=1)
        token_losses = cross_entropy(at_hidden, corrupted.labels) * hidden
        correct = (at_hidden.argmax(-1) == corrupted.labels) * hidden
        soft_weights = real if places is None else hidden
        soft_losses = _divergence(scores, goals, self.temperature) * soft_weights
        cosine_losses = (1 - _cosine(encoded.tokens, tokens)) * real

        lengths = real.sum(-1)
        total = self.token_weight * (lengths * _mean(token_losses, hidden)).sum()
        total += self.soft_weight * (lengths * _mean(soft_losses, soft_weights)).sum()
        total += self.cosine_weight * cosine_losses.sum()
        metrics = {
            "accuracy": (correct.sum(), hidden.sum()),
            "token_loss": (token_losses.sum(), hidden.sum()),
            "soft_loss": (soft_losses.sum(), soft_weights.sum()),
            "cosine_loss": (cosine_losses.sum(), real.sum()),
        }
        return Outcome(total, lengths.sum(), metrics)

    def _taught(
        self, batch: Batch, corrupted: Corrupted, places: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """The teacher's tokens [B, T, D] and scores [B, T or K, V]."""
        variables = self.variables.get("teacher")
        if not variables:
            raise ConfigError("objective.teacher: the teacher's variables were not given.")

        def run(teacher: MaskedLanguage) -> tuple[jax.Array, jax.Array]:
            encoded = teacher.encode(batch, corrupted.ids)
            return encoded.tokens, teacher.scores(encoded, places)

        teacher = self.teacher.clone(parent=None)
        return jax.lax.stop_gradient(teacher.apply(variables, method=run))

    def flops(self, length: int) -> float:
        """Forward FLOPs per row; the teacher's count a third, as it has no backward pass."""
        scored = length if self.soft_on == "all" else self.masking.places(length)
        taught = self.teacher.encoder
        teacher = taught.flops(length) + scored * self.teacher.head.flops(taught)
        return self.encoder.flops(length) + scored * self.head.flops(self.encoder) + teacher / 3


def _mean(losses: jax.Array, weights: jax.Array) -> jax.Array:
    """[B], the mean of weighed losses [B, N] over their row."""
    return losses.sum(-1) / jnp.maximum(weights.sum(-1), 1)


def _divergence(scores: jax.Array, goals: jax.Array, temperature: float) -> jax.Array:
    """[...] temperature^2 * KL(goals || scores) of tempered softmaxes over the last axis."""
    goal = jax.nn.log_softmax(goals / temperature)
    found = jax.nn.log_softmax(scores / temperature)
    return temperature**2 * (jnp.exp(goal) * (goal - found)).sum(-1)


def _cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    """[...] float32 cosine of the angle between vectors [..., D]."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    squares = (x * x).sum(-1) * (y * y).sum(-1)
    return (x * y).sum(-1) * jax.lax.rsqrt(jnp.maximum(squares, 1e-16))
