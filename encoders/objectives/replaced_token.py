"""Replaced-token detection (ELECTRA, arXiv 2003.10555).

A small generator fills hidden tokens with plausible ones, and the encoder, the discriminator, tells
for every token whether it is the original. The two are trained together, and only the encoder is
kept. Section numbers are the paper's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.data.text import INPUTS
from encoders.errors import ConfigError
from encoders.objectives.base import Batch, valid_weights
from encoders.objectives.corruption import Corrupted, Masking
from encoders.objectives.heads import (
    TokenHead,
    VocabularyHead,
    binary_cross_entropy,
    cross_entropy,
    word_table,
)
from encoders.objectives.masked_language import MaskingObjective
from encoders.types import Outcome


class Generator(nn.Module):
    """A smaller network of the encoder's family, and its vocabulary head.

    Attributes:
      width: of its tokens, as a share of the encoder's; the MLP is four times as wide.
      depth: its blocks, as a share of the encoder's.
      num_heads: attention heads; None for one per 64 of the width (the authors' code).
      head: the vocabulary head.
    """

    width: float = 0.25
    depth: float = 1.0
    num_heads: int | None = None
    head: VocabularyHead = dataclasses.field(default_factory=lambda: VocabularyHead(parent=None))

    def network(self, encoder: nn.Module, **fields: Any) -> nn.Module:
        """Its network, for an encoder.

        Raises:
          ConfigError: a share leaves nothing.
        """
        size = encoder.size
        width, depth = round(self.width * size.width), round(self.depth * size.depth)
        if width < 1 or depth < 1:
            raise ConfigError(
                f"objective.generator: {self.depth} of {size.depth} blocks and {self.width} of "
                f"width {size.width} leave nothing."
            )
        fields |= {"width": width, "depth": depth, "mlp_dim": 4 * width, "pool": "none"}
        fields |= {"num_heads": self.num_heads or max(1, width // 64)}
        fields |= {"embedding_dim": size.embedding_dim or size.width}
        return encoder.clone(**getattr(encoder, "GENERATOR", {}), **fields)

    @nn.compact
    def __call__(
        self,
        encoder: nn.Module,
        ids: jax.Array,
        places: jax.Array,
        table: jax.Array | None = None,
        **given: Any,
    ) -> jax.Array:
        """Scores the vocabulary for the tokens at some places.

        Args:
          encoder: the discriminator.
          ids: [B, T] int32.
          places: [B, K] int32.
          table: [V, E] word table of another network; None takes its own.
          **given: what its network is called with besides ids.

        Returns:
          float32 [B, K, V].
        """
        network = self.network(encoder, parent=self, name="encoder")
        tokens = network(ids, **given).tokens
        tokens = jnp.take_along_axis(tokens, places[..., None], axis=1)
        return self.head(tokens, network, word_table(network) if table is None else table)

    def flops(self, encoder: nn.Module, length: int, scored: int) -> float:
        """Forward FLOPs per row of `length` tokens, `scored` of which the head sees."""
        network = self.network(encoder, parent=None)
        return network.flops(length) + scored * self.head.flops(network)


class Difference(nn.Module):
    """Gradient-disentangled sharing (DeBERTa-v3, arXiv 2111.09543, section 3.3).

    Two losses that pull one table of words in different directions make both networks worse. The
    encoder's table is the generator's, out of reach of its gradients, plus a difference that
    starts at zero. params['encoder'] holds the generator's; `ReplacedToken.alone` adds the two.
    """

    @nn.compact
    def __call__(self, embeddings: Mapping[str, Any]) -> dict[str, Any]:
        """The encoder's embeddings for those of the generator; what is no table is shared."""
        found = dict(embeddings)
        for name, value in embeddings.items():
            if not isinstance(value, Mapping):
                difference = self.param(name, nn.initializers.zeros, value.shape)
                found[name] = jax.lax.stop_gradient(value) + difference
        return found


class ReplacedToken(MaskingObjective):
    """Tells replaced tokens from original ones.

    The loss is the generator's plus `weight` times the discriminator's, each a mean: over hidden
    tokens, and over all that are no padding (section 3.3). As sums and a weight: the weight is the
    number of real tokens; each counts the discriminator's loss on it, and the mean of the
    generator's over its row. For the discriminator that is the mean over the whole batch, however
    it is split; for the generator it differs from it only as far as rounding makes rows hide
    different shares of their tokens. A part of a batch could not weigh its hidden tokens otherwise,
    as it does not know how many the others have.

    Attributes:
      encoder: a text encoder, the discriminator.
      masking: which tokens are hidden; the authors mask 85 % of them and leave the others.
      generator: sizes of the generator.
      head: the discriminator's head.
      weight: of its loss, 50 in section 3.3.
      sharing: 'embeddings', where the generator reads the encoder's tables (section 3.2), and the
        losses of both train them; 'gradient_disentangled', where it does and its loss alone trains
        them, while the encoder adds a difference of its own (`Difference`); or 'none', where the
        generator has its own tables.
    """

    masking: Masking = dataclasses.field(default_factory=lambda: Masking(mask=0.85, random=0.0))
    generator: Generator = dataclasses.field(default_factory=lambda: Generator(parent=None))
    head: TokenHead = dataclasses.field(default_factory=lambda: TokenHead(parent=None))
    weight: float = 50.0
    sharing: Literal["embeddings", "gradient_disentangled", "none"] = "embeddings"

    def setup(self) -> None:
        if self.sharing == "gradient_disentangled":
            self.difference = Difference()

    def __call__(self, batch: Batch, *, train: bool = False) -> Outcome:
        """Hides tokens of batch['ids'], fills them, and returns the loss of both networks."""
        return self.loss(batch, self.corrupt(batch), train=train)

    def loss(self, batch: Batch, corrupted: Corrupted, *, train: bool = False) -> Outcome:
        """The loss for given hidden tokens."""
        guesses = self.guesses(batch, corrupted, train=train)
        ids, replaced = self.replace(batch, corrupted, guesses)
        scores = self.scores(batch, ids, train=train)

        hidden = corrupted.weights
        token_losses = cross_entropy(guesses, corrupted.labels) * hidden
        guessed = (guesses.argmax(-1) == corrupted.labels) * hidden
        real = (batch["segments"] > 0) * valid_weights(batch)[:, None]
        losses = binary_cross_entropy(scores, replaced) * real
        told = ((scores > 0) == replaced) * real

        lengths = real.sum(-1)
        means = token_losses.sum(-1) / jnp.maximum(hidden.sum(-1), 1)
        metrics = {
            "token_loss": (token_losses.sum(), hidden.sum()),
            "token_accuracy": (guessed.sum(), hidden.sum()),
            "replaced_loss": (losses.sum(), real.sum()),
            "accuracy": (told.sum(), real.sum()),
            "recall": ((told * replaced).sum(), (real * replaced).sum()),
        }
        total = (lengths * means).sum() + self.weight * losses.sum()
        return Outcome(total, lengths.sum(), metrics)

    def guesses(self, batch: Batch, corrupted: Corrupted, *, train: bool = False) -> jax.Array:
        """float32 [B, K, V], the generator's scores for hidden tokens."""
        ids, table = corrupted.ids, None
        given = {**{name: batch[name] for name in INPUTS if name in batch}, "train": train}
        if self.sharing != "none":
            given["embedded"] = self.encoder.embed(ids, **_of_embedding(given))
            table = word_table(self.encoder)
        return self.generator(self.encoder, ids, corrupted.places, table, **given)

    def replace(
        self, batch: Batch, corrupted: Corrupted, guesses: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Draws a token from the generator's guesses in place of every hidden one.

        No gradient passes (section 3.3: the discriminator's would have to pass the drawing).

        Returns:
          ids [B, T] int32, and [B, T] bool where they differ from the original; a token that was
          guessed right is an original one.
        """
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(self.rng_per_example(batch))
        drawn = jax.vmap(jax.random.categorical)(keys, jax.lax.stop_gradient(guesses))
        original = jnp.asarray(batch["ids"])
        drawn = jnp.where(corrupted.weights > 0, drawn.astype(original.dtype), corrupted.labels)
        row = jnp.arange(original.shape[0])[:, None]
        ids = original.at[row, corrupted.places].set(drawn)
        return ids, ids != original

    def scores(self, batch: Batch, ids: jax.Array, *, train: bool = False) -> jax.Array:
        """float32 [B, T], positive where the discriminator takes a token for replaced."""
        given: dict[str, Any] = {"train": train}
        if self.sharing == "gradient_disentangled":
            given["embedded"] = self._embedded(batch, ids, train)
        tokens = self.encode(batch, ids, **given).tokens
        return self.head(tokens, self.encoder, batch.get("segments"))

    def _embedded(self, batch: Batch, ids: jax.Array, train: bool) -> jax.Array:
        """[B, T, E], what the encoder starts from with its differences added to the tables."""
        tables = self.difference(self.encoder.variables["params"]["embeddings"])
        rngs = {"dropout": self.make_rng("dropout")} if self.has_rng("dropout") else {}
        arguments = {**_of_embedding(batch), "train": train, "rngs": rngs, "method": "embed"}
        encoder = self.encoder.clone(parent=None)
        return encoder.apply({"params": {"embeddings": tables}}, ids, **arguments)

    @staticmethod
    def alone(params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Adds the differences to the encoder's tables, which are then its own."""
        if "difference" not in params:
            return params
        rest = {name: value for name, value in params.items() if name != "difference"}
        tables = dict(params["encoder"]["embeddings"])
        for name, difference in params["difference"].items():
            tables[name] = tables[name] + difference
        return {**rest, "encoder": {**params["encoder"], "embeddings": tables}}

    def flops(self, length: int) -> float:
        """Forward FLOPs per row of `length` tokens."""
        generator = self.generator.flops(self.encoder, length, self.masking.places(length))
        return generator + self.encoder.flops(length) + length * self.head.flops(self.encoder)


def _of_embedding(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of an encoder's inputs that its `embed` takes as well."""
    taken = ("segments", "token_types", "positions", "train")
    return {name: given[name] for name in taken if name in given}
