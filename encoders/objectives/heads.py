"""Heads of pretraining tasks on token ids, and their losses.

  VocabularyHead   which token stands here (masked-language modelling)
  PairHead         do these two texts belong together, in this order (NSP, SOP)
  TokenHead        yes or no for every token (replaced-token detection)

Families differ in details. What is fixed for a family stands in its encoder's class, in `HEAD`, a
mapping of fields of `VocabularyHead`; whatever neither it nor the config says is as in BERT: the
encoder's activation and norms, all biases, and the word table for the scores.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError, nearest
from encoders.layers.embedding import restarted_positions
from encoders.layers.initializers import trunc_normal
from encoders.layers.linear import Linear
from encoders.layers.mlp import ACTIVATIONS, GATED
from encoders.layers.norm import LayerNorm

_INIT = trunc_normal(0.02)


class VocabularyHead(nn.Module):
    """Scores of all tokens of the vocabulary: norm(act(dense(x))) @ table.T + bias.

    Where a field is None the encoder's family decides.

    Attributes:
      activation: a name of ACTIVATIONS; else the encoder's.
      norm_eps: of the layer norm; else the encoder's.
      transform: whether dense, activation and norm stand before the scores; else they do.
      dense_bias, norm_bias: whether these have one; else they have.
      bias: whether every token of the vocabulary has one; else it has.
      tied: whether scores are products with the word table rather than a matrix of the head's own,
        else they are.
    """

    activation: str | None = None
    norm_eps: float | None = None
    transform: bool | None = None
    dense_bias: bool | None = None
    norm_bias: bool | None = None
    bias: bool | None = None
    tied: bool | None = None

    def options(self, encoder: nn.Module) -> dict[str, Any]:
        """All fields, those that are None filled in for an encoder.

        Raises:
          ConfigError: no such activation.
        """
        switches = ("transform", "dense_bias", "norm_bias", "bias", "tied")
        found: dict[str, Any] = dict.fromkeys(switches, True)
        found |= {"activation": activation_of(encoder), "norm_eps": encoder.norm_eps}
        found |= getattr(encoder, "HEAD", {})
        given = {field: getattr(self, field) for field in found}
        found |= {field: value for field, value in given.items() if value is not None}
        if found["activation"] not in ACTIVATIONS:
            hint = nearest(found["activation"], ACTIVATIONS)
            raise ConfigError(
                f"objective.head.activation: unknown activation '{found['activation']}'.{hint}"
            )
        return found

    @nn.compact
    def __call__(
        self, x: jax.Array, encoder: nn.Module, table: jax.Array | None = None
    ) -> jax.Array:
        """Scores tokens.

        Args:
          x: [..., D], the encoder's output.
          encoder: whose family the head is made for.
          table: [V, E] word table, which a tied head needs; see `word_table`.

        Returns:
          float32 [..., V].
        """
        options = self.options(encoder)
        vocab, embedding = encoder.vocab_size, encoder.size.embedding_dim or encoder.size.width
        if options["transform"]:
            dense = Linear(embedding, options["dense_bias"], _INIT, name="dense")
            x = ACTIVATIONS[options["activation"]](dense(x))
            x = LayerNorm(options["norm_eps"], options["norm_bias"], name="norm")(x)
        if not options["tied"]:
            table = self.param("words", _INIT, (vocab, embedding))
        scores = products(x, table.astype(x.dtype))
        if options["bias"]:
            scores = scores + self.param("bias", nn.initializers.zeros, (vocab,))
        return scores

    def flops(self, encoder: nn.Module) -> float:
        """Forward FLOPs per token that is scored; a multiply-add counts as two."""
        width, embedding = encoder.size.width, encoder.size.embedding_dim or encoder.size.width
        dense = width if self.options(encoder)["transform"] else 0
        return 2.0 * embedding * (dense + encoder.vocab_size)


@jax.custom_vjp
def products(x: jax.Array, table: jax.Array) -> jax.Array:
    """float32 [..., V], x [..., E] times every row of the table [V, E].

    Its gradients are products in the dtype of x: from float32 scores they would be float32
    products, which cost several times as much as the forward one in bfloat16.
    """
    return jnp.einsum("...e,ve->...v", x, table, preferred_element_type=jnp.float32)


def _products_forward(x: jax.Array, table: jax.Array) -> tuple[jax.Array, tuple]:
    return products(x, table), (x, table)


def _products_backward(kept: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, table = kept
    gradient = gradient.astype(x.dtype)
    dx = jnp.einsum("...v,ve->...e", gradient, table)
    return dx, jnp.einsum("...v,...e->ve", gradient, x)


products.defvjp(_products_forward, _products_backward)


class PairHead(nn.Module):
    """Scores of a pair of texts: one linear layer on the pooled vector."""

    @nn.compact
    def __call__(self, pooled: jax.Array) -> jax.Array:
        """Maps [B, D] to float32 [B, 2]: first that the texts belong together, then not."""
        return Linear(2, kernel_init=_INIT, name="scores")(pooled).astype(jnp.float32)


class TokenHead(nn.Module):
    """One score per token: linear(act(dense(x))).

    Attributes:
      activation: a name of ACTIVATIONS; None takes the encoder's.
      context: whether the first token of a text is added to every one, and the sum normalised
        (DeBERTa-v3); None takes `TOKEN_CONTEXT` of the encoder's class, if it has that.
      norm_eps: of that norm; None takes the encoder's.
    """

    activation: str | None = None
    context: bool | None = None
    norm_eps: float | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, encoder: nn.Module, segments: jax.Array | None = None
    ) -> jax.Array:
        """Scores tokens.

        Args:
          x: [B, T, D], the encoder's output.
          encoder: whose family the head is made for.
          segments: [B, T] int32, which text of a packed row a token is of; None for one per row.

        Returns:
          float32 [B, T].
        """
        context = self.context
        if context is None:
            context = getattr(encoder, "TOKEN_CONTEXT", False)
        if context:
            first = x[:, :1]
            if segments is not None:
                place = jnp.arange(x.shape[1]) - restarted_positions(segments)
                first = jnp.take_along_axis(x, place[..., None], axis=1)
            eps = encoder.norm_eps if self.norm_eps is None else self.norm_eps
            x = LayerNorm(eps, name="norm")(x + first)
        x = Linear(x.shape[-1], kernel_init=_INIT, name="dense")(x)
        x = ACTIVATIONS[self.activation or activation_of(encoder)](x)
        return Linear(1, kernel_init=_INIT, name="score")(x)[..., 0].astype(jnp.float32)

    def flops(self, encoder: nn.Module) -> float:
        """Forward FLOPs per token."""
        return 2.0 * encoder.size.width * (encoder.size.width + 1)


def activation_of(encoder: nn.Module) -> str:
    """The activation of an encoder's MLPs, which is the gate's where they are gated."""
    return GATED.get(encoder.mlp, encoder.mlp)


def word_table(encoder: nn.Module) -> jax.Array:
    """[V, E], the word table of an encoder that has been called."""
    return encoder.variables["params"]["embeddings"]["words"]


@jax.custom_vjp
def cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(scores)[label], of float32 scores [..., V] and int32 labels [...].

    For its gradient it keeps the scores and one number per label, and writes no second [..., V].
    """
    return _cross_entropy_forward(scores, labels)[0]


def _cross_entropy_forward(scores: jax.Array, labels: jax.Array) -> tuple[jax.Array, tuple]:
    total = jax.nn.logsumexp(scores, axis=-1)
    picked = jnp.where(_is_label(scores, labels), scores, 0.0).sum(-1)
    return total - picked, (scores, labels, total)


def _cross_entropy_backward(kept: tuple, gradient: jax.Array) -> tuple[jax.Array, None]:
    scores, labels, total = kept
    share = jnp.exp(scores - total[..., None])
    return (share - _is_label(scores, labels)) * gradient[..., None], None


def _is_label(scores: jax.Array, labels: jax.Array) -> jax.Array:
    return (
        jax.lax.broadcasted_iota(labels.dtype, scores.shape, scores.ndim - 1) == labels[..., None]
    )


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def binary_cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """-log sigmoid(score) where the label is True, -log sigmoid(-score) elsewhere."""
    return jax.nn.softplus(jnp.where(labels, -scores, scores))
