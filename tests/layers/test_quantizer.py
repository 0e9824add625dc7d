"""The Gumbel quantizer: its choices, their gradient, and how many are in use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.errors import ConfigError
from encoders.layers.quantizer import GumbelQuantizer, Temperature, perplexity

QUANTIZER = GumbelQuantizer(groups=2, entries=5, width=6)


@pytest.fixture(scope="module")
def made():
    x = np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32)
    params = jax.jit(QUANTIZER.init)(jax.random.key(0), x)

    def loss(params, x, noise, temperature):
        found = QUANTIZER.apply(params, x, noise, temperature)
        return (found.vectors * jnp.arange(6)).sum(), found

    return x, params, jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def test_evaluation_takes_the_best_entries(made):
    x, params, _ = made
    found = jax.jit(QUANTIZER.apply)(params, x)
    weights = params["params"]
    logits = x @ weights["logits"]["kernel"] + weights["logits"]["bias"]
    codes = np.asarray(logits).reshape(40, 2, 5).argmax(-1)
    np.testing.assert_array_equal(found.codes, codes)
    book = np.asarray(weights["codebook"])
    expected = np.concatenate([book[0][codes[:, 0]], book[1][codes[:, 1]]], axis=1)
    np.testing.assert_allclose(found.vectors, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.probabilities.sum(-1), 1, rtol=0, atol=1e-6)
    assert book.min() >= 0
    assert book.max() <= 1


def test_training_takes_one_entry_and_has_the_gradient_of_the_softmax(made):
    x, params, grad = made
    noise = np.random.default_rng(1).gumbel(size=(40, 2, 5)).astype(np.float32)
    (_, found), (_, by_x) = grad(params, x, noise, 0.7)
    book = np.asarray(params["params"]["codebook"])
    expected = np.concatenate([book[g][found.codes[:, g]] for g in range(2)], axis=1)
    np.testing.assert_allclose(found.vectors, expected, rtol=0, atol=1e-6)

    def soft(x):
        weights = params["params"]["logits"]
        logits = (x @ weights["kernel"] + weights["bias"]).reshape(40, 2, 5)
        shares = jax.nn.softmax((logits + noise) / 0.7)
        return (jnp.einsum("ngv,gvd->ngd", shares, book).reshape(40, 6) * jnp.arange(6)).sum()

    np.testing.assert_allclose(by_x, jax.jit(jax.grad(soft))(x), rtol=0, atol=1e-4)


def test_entries_are_chosen_with_the_probabilities_of_the_logits(made):
    """The Gumbel trick, at any temperature."""
    x, params, _ = made
    noise = jax.random.gumbel(jax.random.key(3), (20_000, 2, 5))
    many = np.broadcast_to(x[:1], (20_000, 7))
    found = jax.jit(QUANTIZER.apply)(params, many, noise, 0.1)
    for group in range(2):
        counts = np.bincount(np.asarray(found.codes)[:, group], minlength=5) / 20_000
        np.testing.assert_allclose(counts, found.probabilities[0, group], rtol=0, atol=0.02)


def test_perplexity_is_how_many_entries_are_in_use():
    uniform, one = np.full((2, 5), 0.2, np.float32), np.eye(5, dtype=np.float32)[[1, 3]]
    np.testing.assert_allclose(perplexity(jnp.stack([uniform, one])), [10, 2], rtol=1e-5)


def test_the_temperature_sinks_to_its_floor():
    base, step = Temperature(), np.array([0, 1000, 100_000, 10**7], np.int32)
    expected = np.maximum(2 * 0.999995 ** step.astype(np.float64), 0.5)
    np.testing.assert_allclose(base(step), expected, rtol=1e-6)
    with pytest.raises(ConfigError, match="start >= floor > 0"):
        Temperature(start=0.1)


def test_a_width_that_cannot_be_shared():
    with pytest.raises(ConfigError, match="width: 7 is not a multiple of 2 groups"):
        jax.eval_shape(GumbelQuantizer(width=7).init, jax.random.key(0), np.zeros((3, 4)))
