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
    dtype: in bfloat16 a sum stops growing at some 256 times what is added. On GPUs, which add to
    one address in turn, a table of few rows gets it by a matrix product: 65,536 tokens in 128
    positions took a third of BERT-Base's step (docs/benchmarks.md). TPUs need none, and where the
    table is sharded XLA would gather the tokens of all devices for it.

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
    if jax.default_backend() != "gpu":
        total = _sum(ids, gradient.astype(jnp.float32), rows)
    elif rows <= _FEW:
        total = _sum_by_product(ids, gradient, rows)
    else:
        total = _sum_in_any_order(ids, gradient, rows)
    return total.astype(gradient.dtype), None


def _sum_by_product(ids: jax.Array, values: jax.Array, rows: int) -> jax.Array:
    """`_sum` in float32, as one matrix product."""
    chosen = jax.nn.one_hot(ids, rows, dtype=values.dtype)
    axes = tuple(range(ids.ndim))
    precision = "highest" if values.dtype == jnp.float32 else None
    return jnp.tensordot(
        chosen, values, (axes, axes), precision=precision, preferred_element_type=jnp.float32
    )


def _sum(ids: jax.Array, values: jax.Array, rows: int) -> jax.Array:
    """[R, E], for each row the sum of its values [..., E]."""
    return jnp.zeros((rows, values.shape[-1]), values.dtype).at[ids].add(values, mode="drop")


def _sum_in_any_order(ids: jax.Array, values: jax.Array, rows: int) -> jax.Array:
    """`_sum` in float32, with the same bits in whichever order a GPU adds.

    It adds integers, of which that is true: two for each value, the second what the first leaves.
    Of each of 2^n values at most 2^(2n - 60) of the largest is lost. One that is not finite makes
    the whole sum NaN.
    """
    values = values.astype(jnp.float32)
    room = 30 - max(ids.size - 1, 1).bit_length()  # bits of a value, so that no sum overflows
    exponent = jax.lax.bitcast_convert_type(jnp.abs(values).max(), jnp.uint32) & 0x7F800000
    above = 2 * jax.lax.bitcast_convert_type(jnp.maximum(exponent, 0x01000000), jnp.float32)
    unit = jnp.where(jnp.isfinite(values).all(), above * 2.0**-room, jnp.nan)
    high = jnp.round(values / unit)
    low = jnp.round((values - high * unit) / unit * 2.0**room)
    high, low = (_sum(ids, x.astype(jnp.int32), rows).astype(jnp.float32) for x in (high, low))
    return high * unit + low * unit * 2.0**-room


_lookup.defvjp(_forward, _backward)
