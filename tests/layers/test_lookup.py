"""Rows of a table, and the gradient that adds them up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.layers import lookup as module
from encoders.layers.lookup import _sum_in_any_order, lookup

# By scatter; of GPUs, of few rows, and of many.
FORMS = [("cpu", 7), ("gpu", 7), ("gpu", 2000)]


@pytest.mark.parametrize("backend, rows", FORMS)
def test_the_gradient_adds_up_every_occurrence(backend, rows, monkeypatch):
    monkeypatch.setattr(module.jax, "default_backend", lambda: backend)
    rng = np.random.default_rng(0)
    table = rng.normal(size=(rows, 5)).astype(np.float32)
    ids = rng.integers(0, rows, (3, 11)).astype(np.int32)
    ids[:, -1] = rows - 1
    upstream = rng.normal(size=(3, 11, 5)).astype(np.float32)
    found, pull = jax.vjp(lambda table: lookup(table, ids), table)
    wanted = np.zeros_like(table)
    np.add.at(wanted, ids, upstream)
    np.testing.assert_array_equal(found, table[ids])
    np.testing.assert_allclose(pull(upstream)[0], wanted, atol=1e-6)


@pytest.mark.parametrize("backend, rows", FORMS)
def test_sums_of_bfloat16_keep_growing(backend, rows, monkeypatch):
    monkeypatch.setattr(module.jax, "default_backend", lambda: backend)
    """4,096 times .25 is 1,024, where adding in bfloat16 stops at 64."""
    table = jnp.zeros((rows, 2), jnp.bfloat16)
    ids = jnp.zeros((4096,), jnp.int32)
    _, pull = jax.vjp(lambda table: lookup(table, ids), table)
    gradient = pull(jnp.full((4096, 2), 0.25, jnp.bfloat16))[0]
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(gradient, np.float32)[0], 1024)
    assert not np.asarray(gradient[1:], np.float32).any()


@pytest.mark.parametrize("backend, rows", FORMS)
def test_a_row_that_is_not_there_is_nan_and_gets_nothing(backend, rows, monkeypatch):
    monkeypatch.setattr(module.jax, "default_backend", lambda: backend)
    table = jnp.ones((rows, 2))
    found, pull = jax.vjp(lambda table: lookup(table, jnp.array([0, rows])), table)
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(pull(jnp.ones((2, 2)))[0].sum(0), 1)


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_a_sum_of_integers_is_that_of_the_floats_in_any_order(scale):
    """What a GPU computes, which adds in an order of its own."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 6, 4096).astype(np.int32)
    values = (scale * rng.normal(size=(4096, 3))).astype(np.float32)
    wanted = np.zeros((7, 3))
    np.add.at(wanted, ids, values.astype(np.float64))
    found = jax.jit(_sum_in_any_order, static_argnums=2)(ids, values, 7)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * scale)
    order = rng.permutation(4096)
    np.testing.assert_array_equal(_sum_in_any_order(ids[order], values[order], 7), found)
    values[5, 1] = np.nan
    assert np.isnan(_sum_in_any_order(ids, values, 7)).all()
    assert not np.asarray(_sum_in_any_order(ids, 0 * values[6:7].repeat(4096, 0), 7)).any()
