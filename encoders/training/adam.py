"""Variants of Adam that optax does not have: without bias correction, and with clipped updates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax


def scale_by_adam(
    b1: float, b2: float, eps: float, mu_dtype: Any = "float32", bias_correction: bool = True
) -> optax.GradientTransformation:
    """Adam's direction m / (sqrt(v) + eps) (arXiv 1412.6980, algorithm 1).

    Without bias correction m and v are the averages as they are, which start at zero: BERT's code,
    and the LAMB of its large batches, do so.
    """
    if bias_correction:
        return optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        mu, nu = _moments(grads, state, b1, b2)
        directions = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return directions, _stored(state, mu, nu, mu_dtype)

    return optax.GradientTransformation(_init(mu_dtype), update)


def scale_by_stable_adam(
    b1: float, b2: float, eps: float, mu_dtype: Any = "float32"
) -> optax.GradientTransformation:
    """Adam's direction, made smaller where v lags behind (arXiv 2304.13013, section 3).

    Divided by max(1, RMS), where RMS^2 of an array is the mean of g^2 / max(v, eps^2) over it: Adam
    with Adafactor's update clipping, which replaces the clipping of gradients.
    """

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        mu, nu = _moments(grads, state, b1, b2)
        count = optax.safe_increment(state.count).astype(jnp.float32)

        def direction(g: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
            m, v = m / (1 - b1**count), v / (1 - b2**count)
            rms = jnp.sqrt(jnp.mean(jnp.square(g) / jnp.maximum(v, eps**2)))
            return m / (jnp.sqrt(v) + eps) / jnp.maximum(1.0, rms)

        return jax.tree.map(direction, grads, mu, nu), _stored(state, mu, nu, mu_dtype)

    return optax.GradientTransformation(_init(mu_dtype), update)


def _init(mu_dtype: Any) -> Any:
    def init(params: Any) -> optax.ScaleByAdamState:
        mu = jax.tree.map(lambda p: jnp.zeros(p.shape, mu_dtype), params)
        return optax.ScaleByAdamState(
            jnp.zeros((), jnp.int32), mu, jax.tree.map(jnp.zeros_like, params)
        )

    return init


def _moments(grads: Any, state: Any, b1: float, b2: float) -> tuple[Any, Any]:
    mu = jax.tree.map(lambda g, m: b1 * m.astype(g.dtype) + (1 - b1) * g, grads, state.mu)
    nu = jax.tree.map(lambda g, v: b2 * v + (1 - b2) * jnp.square(g), grads, state.nu)
    return mu, nu


def _stored(state: Any, mu: Any, nu: Any, mu_dtype: Any) -> optax.ScaleByAdamState:
    mu = jax.tree.map(lambda m: m.astype(mu_dtype), mu)
    return optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)
