"""Functions with a gradient of their own, against what jax derives from the plain formula."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.layers.attention import dot_product_attention
from encoders.layers.linear import Linear
from encoders.layers.mlp import gelu, gelu_tanh, quick_gelu
from encoders.layers.norm import layer_norm


def plain_gelu(x):
    return jax.nn.gelu(x, approximate=False)


def plain_layer_norm(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6) * scale + bias


def plain_attention(query, key, value, mask):
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / jnp.sqrt(query.shape[-1])
    scores = jnp.where(mask[:, None, None, :], scores, -jnp.inf)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)


MASK = jnp.arange(7)[None] < jnp.array([[7], [4]])
CASES = {
    "gelu": (gelu, plain_gelu, [(5, 33)]),
    "gelu_tanh": (gelu_tanh, lambda x: jax.nn.gelu(x, approximate=True), [(5, 33)]),
    "quick_gelu": (quick_gelu, lambda x: x / (1 + jnp.exp(-1.702 * x)), [(5, 33)]),
    "layer_norm": (
        lambda x, scale, bias: layer_norm(x, scale, bias, 1e-6),
        plain_layer_norm,
        [(2, 5, 33), (33,), (33,)],
    ),
    "attention": (
        lambda q, k, v: dot_product_attention(q, k, v, MASK),
        lambda q, k, v: plain_attention(q, k, v, MASK),
        [(2, 3, 4, 8), (2, 7, 4, 8), (2, 7, 4, 8)],
    ),
}


def value_and_gradients(function, inputs, weights):
    def scalar(*inputs):
        y = function(*inputs)
        return (y.astype(jnp.float32) * weights).sum(), y

    return jax.jit(jax.value_and_grad(scalar, range(len(inputs)), has_aux=True))(*inputs)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_values_and_gradients_are_the_plain_formulas(name, dtype, tolerance):
    function, plain, shapes = CASES[name]
    rng = np.random.default_rng(0)
    inputs = [jnp.asarray(2 * rng.standard_normal(shape) + 1, dtype) for shape in shapes]
    shape = jax.eval_shape(function, *inputs).shape
    weights = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    (_, y), gradients = value_and_gradients(function, inputs, weights)
    exact = [x.astype(jnp.float32) for x in inputs]  # the same rounded inputs, computed in float32
    (_, expected), expected_gradients = value_and_gradients(plain, exact, weights)
    assert y.dtype == dtype
    for got, want in zip([y, *gradients], [expected, *expected_gradients], strict=True):
        assert got.dtype == dtype
        scale = np.abs(want).max()
        np.testing.assert_allclose(np.float32(got), want, rtol=tolerance, atol=tolerance * scale)


def test_gelu_is_exact_in_the_tails():
    x = jnp.linspace(-12, 12, 20001)
    exact = np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in np.float64(x)])
    # 1 + erf cancels left of zero, in PyTorch too: an ulp of 1, times |x| / 2.
    np.testing.assert_allclose(gelu(x), exact, rtol=3e-7, atol=7e-7)
    for end, slope in ((-40.0, 0.0), (0.0, 0.5), (40.0, 1.0)):
        assert jax.grad(gelu)(jnp.asarray(end)) == slope


def test_layer_norm_of_large_values_keeps_its_precision():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 64)) + 1000, jnp.float32)
    y = np.float64(x)
    expected = (y - y.mean(-1, keepdims=True)) / y.std(-1, keepdims=True)
    np.testing.assert_allclose(layer_norm(x, jnp.ones(64), None, 0.0), expected, atol=1e-4)


def test_attention_gives_no_gradient_to_masked_keys():
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.standard_normal((2, 7, 4, 8))) for _ in range(3))

    def total(key, value):
        return jnp.square(dot_product_attention(query, key, value, MASK)).sum()

    for gradient in jax.grad(total, (0, 1))(key, value):
        assert np.all(gradient[1, 4:] == 0)
        assert np.all(np.any(gradient[1, :4] != 0, axis=(1, 2)))


def test_linear_makes_no_transposed_copies_for_its_gradient():
    x = jnp.ones((4, 6, 16))
    layer = Linear(8)
    params = layer.init(jax.random.key(0), x)
    text = jax.jit(jax.grad(lambda p: layer.apply(p, x).sum())).lower(params).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert all("tensor<24x" in line for line in products)  # [B * T, ...], so never [B, T, ...]
