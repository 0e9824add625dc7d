"""Permutation language modelling (XLNet, arXiv 1906.08237, sections 2.2 to 2.4 and 3.1).

Some tokens of a row are predicted, one after the other in a random order, each from all that are
not predicted and from those before it in that order. The paper's halves of a row that run backwards
are not drawn here: without a memory of the row before, relative distances make them the same text.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from encoders.errors import ConfigError
from encoders.objectives.base import Batch
from encoders.objectives.corruption import check_rate, places_of
from encoders.objectives.heads import VocabularyHead, cross_entropy, word_table
from encoders.objectives.text import TextObjective
from encoders.types import Outcome


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Which tokens are predicted.

    Spans of 1 to `max_span` units, their lengths n drawn with probabilities proportional to 1 / n,
    each stand at a random place within context of their own, alpha / beta units for every one of
    theirs: a seventh of the text, as published. The rest, up to `rate`, are single tokens. (The
    paper cuts a span from alpha units, its code adds them; here as in the code.)

    Attributes:
      rate: share of the tokens that are not special which is predicted: 85 of 512.
      unit: 'word', whole words, or 'token'. (The published code begins at words and counts tokens.)
      alpha, beta: units of context for every unit that is predicted, as a ratio.
      max_span: units of the longest span.
      reuse_length: so many tokens at the start of a row are ordered for themselves, see nothing of
        the rest, and are seen by all of the rest: what a memory of them would hold does not depend
        on what follows (256 of 512 in the paper). 0 for one order of all.
    """

    rate: float = 1 / 6
    unit: Literal["word", "token"] = "word"
    alpha: int = 6
    beta: int = 1
    max_span: int = 5
    reuse_length: int = 0

    def __post_init__(self) -> None:
        check_rate(self.rate, "objective.prediction.rate")
        if self.unit not in ("word", "token"):
            raise ConfigError(f"objective.prediction.unit: unknown unit '{self.unit}'.")
        if not 1 <= self.beta <= self.alpha:
            raise ConfigError(
                f"objective.prediction: expected alpha {self.alpha} to be at least beta "
                f"{self.beta}, and both to be positive."
            )
        if self.max_span < 1 or self.reuse_length < 0:
            raise ConfigError(
                "objective.prediction: expected max_span of 1 or more and reuse_length of 0 or "
                f"more, got {self.max_span} and {self.reuse_length}."
            )

    def places(self, length: int) -> int:
        """K, how many tokens of a full row of `length` are predicted.

        Raises:
          ConfigError: none is.
        """
        return places_of(self.rate, length, "objective.prediction.rate")


class Permuted(NamedTuple):
    """What a row is to predict.

    Attributes:
      places: [K] int32, distinct.
      weights: [K] float32, 1 for places that are predicted, which come first.
      visible: [T, T] bool, whether a token (the first axis) may see another (the last), as far as
        the order is concerned.
    """

    places: jax.Array
    weights: jax.Array
    visible: jax.Array


class PermutationLanguage(TextObjective):
    """Predicts tokens in a random order. The sum is over them, and the weight is their number.

    Attributes:
      encoder: an encoder of two streams (`models.xlnet`).
      prediction: which tokens are predicted.
      head: the vocabulary head.
    """

    prediction: Prediction = dataclasses.field(default_factory=Prediction)
    head: VocabularyHead = dataclasses.field(default_factory=lambda: VocabularyHead(parent=None))

    def __call__(self, batch: Batch, *, train: bool = False) -> Outcome:
        """Draws tokens and their order for batch['ids'], and returns the loss of predicting them.

        Raises:
          ConfigError: the encoder has one stream; there is no word_start where words are predicted.
        """
        return self.loss(batch, self.draw(batch), train=train)

    def draw(self, batch: Batch) -> Permuted:
        """What each row is to predict; fields as in `Permuted`, with a leading axis B."""
        starts = batch.get("word_start")
        if starts is None and self.prediction.unit == "word":
            raise ConfigError(
                "objective.prediction.unit: 'word' needs batches with word_start; this data has "
                "none."
            )

        def draw(key: jax.Array, can: jax.Array, starts: jax.Array | None) -> Permuted:
            return permute(key, can, starts, self.prediction)

        rows = (self.rng_per_example(batch), self.corruptible(batch), starts)
        return jax.vmap(draw, in_axes=(0, 0, None if starts is None else 0))(*rows)

    def loss(self, batch: Batch, drawn: Permuted, *, train: bool = False) -> Outcome:
        """The loss of given tokens in a given order."""
        scores = self.scores(batch, drawn, train=train)
        labels = jnp.take_along_axis(batch["ids"], drawn.places, axis=1)
        losses = cross_entropy(scores, labels) * drawn.weights
        correct = (scores.argmax(-1) == labels) * drawn.weights
        weight = drawn.weights.sum()
        return Outcome(losses.sum(), weight, {"accuracy": (correct.sum(), weight)})

    def scores(self, batch: Batch, drawn: Permuted, *, train: bool = False) -> jax.Array:
        """float32 [B, K, V], scores of the vocabulary for the places that are predicted."""
        if not hasattr(self.encoder, "two_streams"):
            raise ConfigError(
                f"objective: {type(self.encoder).__name__} has one stream; 'permutation' takes an "
                "encoder of two, such as model.name='xlnet'."
            )
        given = {name: batch[name] for name in ("segments", "token_types") if name in batch}
        _, query = self.encoder.two_streams(
            batch["ids"], drawn.places, drawn.visible, **given, train=train
        )
        return self.head(query.tokens, self.encoder, word_table(self.encoder))

    def example_batch(self, preprocessing: Any, rows: int) -> dict[str, np.ndarray]:
        batch = super().example_batch(preprocessing, rows)
        if self.prediction.unit == "word":
            batch["word_start"] = np.zeros(batch["ids"].shape, bool)
        return batch

    def flops(self, length: int) -> float:
        """Forward FLOPs per row of `length` tokens, both streams."""
        targets = self.prediction.places(length)
        return self.encoder.flops(length, targets) + targets * self.head.flops(self.encoder)


def permute(
    key: jax.Array, corruptible: jax.Array, word_start: jax.Array | None, prediction: Prediction
) -> Permuted:
    """Draws tokens of one row and their order.

    round(rate * n) of the n corruptible tokens are predicted, and at least one. The others are in
    everyone's view. Special tokens have a place in the order but are not predicted: only what comes
    after one sees it, and it sees what comes before (the published code).

    Args:
      key: of this row.
      corruptible: [T] bool.
      word_start: [T] bool, True where a word begins; None takes every token for one.
      prediction: which tokens.
    """
    span_key, token_key, order_key = jax.random.split(key, 3)
    (length,) = corruptible.shape
    # Tokens of spans come first, by span in random order; then the others, in random order.
    priority = spans(span_key, corruptible, word_start, prediction)
    priority = jnp.where(priority > 0, priority, jax.random.uniform(token_key, (length,)) - 1)
    priority = jnp.where(corruptible, priority, -jnp.inf)
    rank, places = jax.lax.top_k(priority, prediction.places(length))
    wanted = jnp.maximum(jnp.round(prediction.rate * corruptible.sum()), 1)
    used = (jnp.arange(len(places)) < wanted) & jnp.isfinite(rank)
    chosen = jnp.zeros(length, bool).at[places].set(used)
    return Permuted(
        places.astype(jnp.int32),
        used.astype(jnp.float32),
        _visible(order_key, corruptible & ~chosen, prediction.reuse_length),
    )


def spans(
    key: jax.Array, corruptible: jax.Array, word_start: jax.Array | None, prediction: Prediction
) -> jax.Array:
    """[T] float32, a random number in (0, 1] for every span, the same for its tokens; else 0."""
    (length,) = corruptible.shape
    lengths_key, offset_key, noise_key = jax.random.split(key, 3)
    begins = jnp.ones(length, bool) if word_start is None else word_start
    after_gap = ~jnp.pad(corruptible[:-1], (1, 0))
    unit = jnp.cumsum((begins | after_gap) & corruptible) - 1
    # One span and its context after another, more of them than a row has room for.
    shortest = 1 + prediction.alpha // prediction.beta
    count = -(-length // shortest)
    choices = 1 / np.arange(1, prediction.max_span + 1, dtype=np.float32)
    shares = choices / choices.sum()
    lengths = 1 + jax.random.choice(lengths_key, len(shares), (count,), p=shares)
    context = lengths * prediction.alpha // prediction.beta
    ends = jnp.cumsum(lengths + context)
    first = ends - lengths - context + jax.random.randint(offset_key, (count,), 0, context)
    window = jnp.searchsorted(ends, unit, side="right", method="compare_all")
    window = jnp.minimum(window, count - 1)
    inside = (unit >= first[window]) & (unit < (first + lengths)[window]) & corruptible
    noise = 1 - jax.random.uniform(noise_key, (count,))
    return jnp.where(inside, noise[window], 0.0)


def _visible(key: jax.Array, context: jax.Array, reuse_length: int) -> jax.Array:
    """[T, T] bool: tokens see the context [T], and those of the others that come before them."""
    index = jnp.arange(context.shape[0])
    order = jnp.where(context, -1, jax.random.permutation(key, index))
    visible = context[None] | (order[:, None] > order[None])
    part = index >= reuse_length
    same = part[:, None] == part[None]
    return jnp.where(same, visible, part[:, None] & ~part[None])
