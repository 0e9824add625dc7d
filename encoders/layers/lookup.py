"""Rows of a table by number, with a gradient made for many examples of few rows."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

# Up to so many rows the gradient is a matrix product: next to nothing beside the network's own.
_FEW = 1024


def lookup(table: jax.Array, ids: jax.Array) -> jax.Array:
    """table[ids], NaN where there is no such row: inside a compiled step nothing can raise.

    The gradient of a row adds up what all its occurrences get, in float32 whatever the table's
    dtype: in bfloat16 a sum stops growing at some 256 times what is added. A table of few rows gets
    it by a matrix product, since GPUs add to one address in turn: 65,536 tokens in 128 positions
    took a third of BERT-Base's step (docs/benchmarks.md).

    Args:
      table: [R, E].
      ids: [...] int32.

    Returns:
      [..., E] in the table's dtype.
    """
    return _lookup(table, ids, table.shape[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _lookup(table: jax.Array, ids: jax.Array, rows: int) -> jax.Array:
    return jnp.take(table, ids, axis=0)


def _forward(table: jax.Array, ids: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
    return _lookup(table, ids, rows), ids


def _backward(rows: int, ids: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None]:
    if rows <= _FEW:
        chosen = jax.nn.one_hot(ids, rows, dtype=gradient.dtype)
        axes = tuple(range(ids.ndim))
        total = jnp.tensordot(
            chosen,
            gradient,
            (axes, axes),
            precision="highest" if gradient.dtype == jnp.float32 else None,
            preferred_element_type=jnp.float32,
        )
    else:
        zeros = jnp.zeros((rows, gradient.shape[-1]), jnp.float32)
        total = zeros.at[ids].add(gradient.astype(jnp.float32), mode="drop")
    return total.astype(gradient.dtype), None


_lookup.defvjp(_forward, _backward)
