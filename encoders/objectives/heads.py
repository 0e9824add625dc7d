"""Heads of pretraining tasks on token ids, and their losses.

  VocabularyHead   which token stands here (masked-language modelling)
  PairHead         do these two texts belong together, in this order (NSP, SOP)
  TokenHead        yes or no for every token (replaced-token detection)

The families differ in details only. Those that are fixed for a family stand in its encoder's class,
in `HEAD`, a mapping of fields of `HeadOptions`; whatever neither it nor the config says is as in
BERT: the encoder's activation and norms, all biases, the words' table for the scores.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError, nearest
from encoders.layers.initializers import trunc_normal
from encoders.layers.linear import Linear
from encoders.layers.mlp import ACTIVATIONS
from encoders.layers.norm import LayerNorm


@dataclasses.dataclass(frozen=True)
class HeadOptions:
    """How a vocabulary head is made; None takes what the encoder's family does.

    Attributes:
      activation: a name of ACTIVATIONS; the encoder's own.
      norm_eps: of the layer norm; the encoder's own.
      transform: whether dense, activation and norm stand before the scores; True.
      dense_bias, norm_bias: whether these have one; True.
      bias: whether every token of the vocabulary has one; True.
      tied: whether scores are products with the encoder's word table, or with a matrix of the
        head's own; True.
    """

    activation: str | None = None
    norm_eps: float | None = None
    transform: bool | None = None
    dense_bias: bool | None = None
    norm_bias: bool | None = None
    bias: bool | None = None
    tied: bool | None = None

    def resolved(self, encoder: nn.Module) -> HeadOptions:
        """All fields filled in, from the encoder's family where they are None.

        Raises:
          ConfigError: no such activation.
        """
        defaults = {field.name: True for field in dataclasses.fields(self)}
        defaults |= {"activation": encoder.mlp, "norm_eps": encoder.norm_eps}
        defaults |= getattr(encoder, "HEAD", {})
        given = {k: v for k, v in vars(self).items() if v is not None}
        found = HeadOptions(**{**defaults, **given})
        if found.activation not in ACTIVATIONS:
            hint = nearest(found.activation, ACTIVATIONS)
            raise ConfigError(
                f"objective.head.activation: unknown activation '{found.activation}'.{hint}"
            )
        return found


class VocabularyHead(nn.Module):
    """Scores of all tokens of the vocabulary: norm(act(dense(x))) @ table.T + bias.

    Attributes:
      vocab_size: V, rows of the word table.
      embedding_dim: E, size of its rows.
      options: all of them filled in.
    """

    vocab_size: int
    embedding_dim: int
    options: HeadOptions

    @classmethod
    def of(cls, encoder: nn.Module, options: HeadOptions, **fields: Any) -> VocabularyHead:
        """The head that fits an encoder."""
        embedding = encoder.size.embedding_dim or encoder.size.width
        return cls(encoder.vocab_size, embedding, options.resolved(encoder), **fields)

    @nn.compact
    def __call__(self, x: jax.Array, table: jax.Array | None = None) -> jax.Array:
        """Scores tokens.

        Args:
          x: [..., D], the encoder's output.
          table: [V, E], the encoder's word table (`word_table`); only a tied head needs it.

        Returns:
          float32 [..., V].
        """
        options = self.options
        if options.transform:
            dense = Linear(self.embedding_dim, options.dense_bias, trunc_normal(0.02), name="dense")
            x = ACTIVATIONS[options.activation](dense(x))
            x = LayerNorm(options.norm_eps, options.norm_bias, name="norm")(x)
        if not options.tied:
            table = self.param("words", trunc_normal(0.02), (self.vocab_size, self.embedding_dim))
        scores = jnp.einsum(
            "...e,ve->...v", x, table.astype(x.dtype), preferred_element_type=jnp.float32
        )
        if options.bias:
            scores = scores + self.param("bias", nn.initializers.zeros, (self.vocab_size,))
        return scores

    def flops(self, width: int) -> float:
        """Forward FLOPs per token that is scored; a multiply-add counts as two."""
        dense = width if self.options.transform else 0
        return 2.0 * self.embedding_dim * (dense + self.vocab_size)


class PairHead(nn.Module):
    """Scores [B, 2] float32 of a pooled pair of texts [B, D]: one linear layer."""

    @nn.compact
    def __call__(self, pooled: jax.Array) -> jax.Array:
        return Linear(2, kernel_init=trunc_normal(0.02), name="scores")(pooled).astype(jnp.float32)


class TokenHead(nn.Module):
    """One score per token, float32 [B, T], of tokens [B, T, D]: linear(act(dense(x))).

    Attributes:
      activation: a name of ACTIVATIONS.
      context: whether the first token is added to every one, and the sum normalised (DeBERTa-v3).
      norm_eps: of that norm.
    """

    activation: str = "gelu"
    context: bool = False
    norm_eps: float = 1e-7

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x, init = tokens, trunc_normal(0.02)
        if self.context:
            x = LayerNorm(self.norm_eps, name="norm")(x + x[:, :1])
        x = ACTIVATIONS[self.activation](Linear(x.shape[-1], kernel_init=init, name="dense")(x))
        return Linear(1, kernel_init=init, name="score")(x)[..., 0].astype(jnp.float32)

    def flops(self, width: int) -> float:
        """Forward FLOPs per token."""
        return 2.0 * width * (width + 1)


def word_table(encoder: nn.Module) -> jax.Array:
    """[V, E], the encoder's word table; it must have been called before, so that it has one."""
    return encoder.variables["params"]["embeddings"]["words"]


def cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(scores)[label], [...] float32, of scores [..., V] and labels [...] int32."""
    scores = scores.astype(jnp.float32)
    picked = jnp.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(scores, axis=-1) - picked


def binary_cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """-log sigmoid(score) where the label is True and -log sigmoid(-score) elsewhere."""
    scores = scores.astype(jnp.float32)
    return jax.nn.softplus(jnp.where(labels, -scores, scores))
