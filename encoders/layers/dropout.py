"""Dropout (Srivastava et al., JMLR 15, 2014) that draws sixteen random bits for a number.

Drawing them is what dropout costs, most of all that of attention's weights, and where bits come
from integer arithmetic (CPUs, TPUs): flax draws 32, and compares floats that it makes of them.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError

_DRAWS = 2**16


def random_draws(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint16 of a shape, of at least one axis, from half as many words of 32 bits."""
    words = jax.random.bits(key, (*shape[:-1], -(-shape[-1] // 2)), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16)
    return halves.reshape(*shape[:-1], -1)[..., : shape[-1]]


class Dropout(nn.Module):
    """Sets numbers to zero at random, and divides the others by the share that is kept.

    Attributes:
      rate: at which numbers are dropped, in [0, 1], to the nearest 1 / 65,536.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = True) -> jax.Array:
        """Returns x with dropout from the stream 'dropout', or x itself where not `train`.

        Raises:
          ConfigError: the rate is none.
        """
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"dropout: expected a rate from 0 to 1, got {self.rate}.")
        dropped = round(self.rate * _DRAWS)
        if not train or not dropped:
            return x
        if dropped == _DRAWS:
            return jnp.zeros_like(x)
        keep = random_draws(self.make_rng("dropout"), x.shape) >= dropped
        return jnp.where(keep, x / (1 - dropped / _DRAWS), 0)
