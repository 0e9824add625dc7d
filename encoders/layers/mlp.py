"""The feed-forward half of a transformer block, plain or gated."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError, nearest
from encoders.layers.dropout import Dropout
from encoders.layers.initializers import weight_init
from encoders.layers.linear import Linear


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x * Phi(x) with erf (arXiv 1606.08415): what timm and transformers call 'gelu'.

    Computed in float32, returned in x's dtype. Keeps only x for its gradient.
    """
    y = x.astype(jnp.float32)
    return (y * _normal_cdf(y)).astype(x.dtype)


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _gelu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    # Without the barrier XLA shares Phi(x) with the forward pass, and so writes it to memory and
    # keeps it until here, which costs more than computing it again.
    y = jax.lax.optimization_barrier(x).astype(jnp.float32)
    density = jnp.exp(-0.5 * y * y) * (1 / math.sqrt(2 * math.pi))
    return ((gradient * (_normal_cdf(y) + y * density)).astype(x.dtype),)


def _normal_cdf(y: jax.Array) -> jax.Array:
    return 0.5 * (1 + jax.lax.erf(y * math.sqrt(0.5)))


gelu.defvjp(_gelu_forward, _gelu_backward)


def _keeping_its_input(function: Callable[[jax.Array], jax.Array]) -> Callable:
    """A function whose gradient keeps x only, and not what was computed on the way."""
    kept = jax.custom_vjp(function)

    def backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
        _, pull = jax.vjp(function, jax.lax.optimization_barrier(x))  # as in _gelu_backward
        return pull(gradient)

    kept.defvjp(lambda x: (function(x), x), backward)
    return functools.wraps(function)(kept)


@_keeping_its_input
def gelu_tanh(x: jax.Array) -> jax.Array:
    """The tanh approximation of GELU: the default of JAX and so of the ViTs trained with it."""
    return jax.nn.gelu(x, approximate=True)


@_keeping_its_input
def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x), which OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "silu": _keeping_its_input(jax.nn.silu),
}
# Gated linear units (arXiv 2002.05202) and the activation of their gate.
GATED = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh"}


class Mlp(nn.Module):
    """fc2(act(fc1(x))), or fc2(act(gate(x)) * fc1(x)) for a kind of GATED.

    Attributes:
      mlp_dim: size of the hidden layer.
      kind: an activation of ACTIVATIONS, or a gated linear unit of GATED.
      use_bias: whether the layers have biases.
      dropout: rate after the activation and after fc2; stream 'dropout'.
      weight_init: a convention of WEIGHT_INITS.
      hidden_dropout: rate after the activation, where it is not `dropout`.
    """

    mlp_dim: int
    kind: str = "gelu"
    use_bias: bool = True
    dropout: float = 0.0
    weight_init: str = "trunc_normal"
    hidden_dropout: float | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps x [..., D] to [..., D]."""
        init = weight_init(self.weight_init)

        def linear(features: int, name: str) -> Linear:
            return Linear(features, self.use_bias, init.kernel, init.mlp_bias, name=name)

        if self.kind in GATED:
            gate = linear(self.mlp_dim, "gate")(x)
            y = ACTIVATIONS[GATED[self.kind]](gate) * linear(self.mlp_dim, "fc1")(x)
        elif self.kind in ACTIVATIONS:
            y = ACTIVATIONS[self.kind](linear(self.mlp_dim, "fc1")(x))
        else:
            known = [*ACTIVATIONS, *GATED]
            raise ConfigError(f"mlp: unknown kind '{self.kind}'.{nearest(self.kind, known)}")
        hidden = self.dropout if self.hidden_dropout is None else self.hidden_dropout
        y = Dropout(hidden)(y, train=train)
        y = linear(x.shape[-1], "fc2")(y)
        return Dropout(self.dropout)(y, train=train)


def mlp_flops(tokens: int, width: int, mlp_dim: int, kind: str) -> float:
    """Forward FLOPs of one Mlp on that many tokens; a multiply-add counts as two."""
    return 2.0 * tokens * width * mlp_dim * (3 if kind in GATED else 2)
