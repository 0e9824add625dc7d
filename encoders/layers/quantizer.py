"""Quantizers: vectors to entries of codebooks.

wav2vec 2.0 (arXiv 2006.11477, section 2) learns them: a vector chooses one of V entries from each
of G codebooks; the entries, end to end, are what stands for it. In training the choice is that of
logits with Gumbel noise, and its gradient that of the softmax of the same, at a temperature that
sinks (arXiv 1611.01144). From the logits on, all is float32.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError
from encoders.layers.initializers import xavier_uniform
from encoders.layers.linear import Linear
from encoders.layers.pooling import unit


@dataclasses.dataclass(frozen=True)
class Temperature:
    """max(start * decay ** step, floor), the temperature of a step.

    Attributes:
      start, decay, floor: those of wav2vec 2.0 Base; the floor of Large is .1.
    """

    start: float = 2.0
    decay: float = 0.999995
    floor: float = 0.5

    def __post_init__(self) -> None:
        if self.floor <= 0 or self.start < self.floor or not 0 < self.decay <= 1:
            raise ConfigError(
                "temperature: expected start >= floor > 0 and decay above 0 and up to 1, got "
                f"start {self.start}, floor {self.floor}, decay {self.decay}."
            )

    def __call__(self, step: jax.Array) -> jax.Array:
        """float32 scalar, for an int32 step."""
        # Not as a power: float32 rounds the decay, by a third of a percent after 100,000 steps.
        sunk = jnp.exp(jnp.asarray(step, jnp.float32) * math.log(self.decay))
        return jnp.maximum(self.start * sunk, self.floor)


class Quantized(NamedTuple):
    """What a quantizer makes of vectors.

    Attributes:
      vectors: float32 [..., D].
      codes: int32 [..., G], the entry of each codebook.
      probabilities: float32 [..., G, V], the softmax of the logits without noise or temperature.
    """

    vectors: jax.Array
    codes: jax.Array
    probabilities: jax.Array


class GumbelQuantizer(nn.Module):
    """Vectors to entries of G codebooks.

    Attributes:
      groups: G.
      entries: V, of each codebook.
      width: D, of the quantized vectors; each codebook has D / G of it.
    """

    groups: int = 2
    entries: int = 320
    width: int = 256

    @nn.compact
    def __call__(
        self, x: jax.Array, noise: jax.Array | None = None, temperature: jax.Array | float = 1.0
    ) -> Quantized:
        """Quantizes vectors.

        Args:
          x: [..., C].
          noise: [..., G, V] standard Gumbel noise; None takes the best entries, as evaluation does.
          temperature: of the softmax whose gradient a choice with noise has.

        Raises:
          ConfigError: the codebooks cannot have equal shares of the width.
        """
        if self.width % self.groups:
            raise ConfigError(
                f"quantizer.width: {self.width} is not a multiple of {self.groups} groups."
            )
        init = nn.initializers.normal(1.0)
        shape = (self.groups, self.entries)
        logits = Linear(self.groups * self.entries, kernel_init=init, name="logits")(x)
        logits = logits.astype(jnp.float32).reshape(*x.shape[:-1], *shape)
        book = (self.groups, self.entries, self.width // self.groups)
        codebook = self.param("codebook", nn.initializers.uniform(1.0), book)
        probabilities = jax.nn.softmax(logits)
        if noise is None:
            codes = logits.argmax(-1)
            choice = jax.nn.one_hot(codes, self.entries)
        else:
            logits = (logits + noise) / temperature
            codes = logits.argmax(-1)
            soft = jax.nn.softmax(logits)
            choice = jax.nn.one_hot(codes, self.entries) + soft - jax.lax.stop_gradient(soft)
        entries = jnp.einsum(
            "...gv,gvd->...gd", choice, codebook.astype(jnp.float32), precision="highest"
        )
        return Quantized(entries.reshape(*x.shape[:-1], self.width), codes, probabilities)

    def flops(self, features: int) -> float:
        """Forward FLOPs per vector [C = features]."""
        return 2.0 * self.entries * (features * self.groups + self.width)


class RandomQuantizer(nn.Module):
    """Vectors to the nearest of random ones, after a random projection (BEST-RQ, arXiv 2202.01855).

    Neither is ever trained: both are in the collection 'constants', float32.

    Attributes:
      books: N, projections, each with a codebook.
      entries: V, of each codebook.
      width: D, of entries.
    """

    books: int = 1
    entries: int = 8192
    width: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """int32 [..., N], the entries nearest to the projections of x [..., C], all of length 1."""

        def constant(name: str, init: Callable, shape: tuple[int, ...]) -> jax.Array:
            def draw() -> jax.Array:
                keys = jax.random.split(self.make_rng("params"), self.books)
                return jax.vmap(lambda key: init(key, shape))(keys)

            return self.variable("constants", name, draw).value

        projection = constant("projection", xavier_uniform(), (x.shape[-1], self.width))
        codebook = constant("codebook", jax.random.normal, (self.entries, self.width))
        x = x.astype(jnp.float32)
        found = jnp.einsum("...c,ncd->...nd", x, projection, precision="highest")
        # The vector's own length makes no difference to which entry is nearest.
        products = jnp.einsum("...nd,nvd->...nv", found, unit(codebook), precision="highest")
        return products.argmax(-1).astype(jnp.int32)


def perplexity(shares: jax.Array) -> jax.Array:
    """exp(entropy), summed over the codebooks, of shares [..., G, V] that add up to 1 over V.

    G where each codebook has one entry in use, and G * V where all are used alike.
    """
    entropy = -(shares * jnp.log(shares + 1e-20)).sum(-1)
    return jnp.exp(entropy).sum(-1)
