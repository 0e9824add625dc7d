"""Norms, activations, attention, pooling, patches, dropout, first weights, stacked parameters."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.errors import ConfigError
from encoders.layers.attention import dot_product_attention
from encoders.layers.dropout import Dropout
from encoders.layers.initializers import WEIGHT_INITS, trunc_normal, weight_init, xavier_uniform
from encoders.layers.mlp import ACTIVATIONS, Mlp, gelu
from encoders.layers.norm import BatchNorm, layer_norm
from encoders.layers.patch import patchify, unpatchify
from encoders.layers.pooling import masked_mean
from encoders.layers.stack import resolve_layers, stack_layers, unstack_layers


def test_layer_norm_and_its_gradients_in_float64():
    x, scale, bias = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(5, 7), 7, 7]))
    x = 3 * x + 2
    y, vjp = jax.vjp(lambda *a: layer_norm(*a, 1e-6), x, scale, bias)
    wide = np.asarray(x, np.float64)
    mean, var = wide.mean(-1, keepdims=True), wide.var(-1, keepdims=True)
    unit = (wide - mean) / np.sqrt(var + 1e-6)
    np.testing.assert_allclose(y, unit * scale + bias, rtol=0, atol=2e-6)
    g = np.asarray(jax.random.normal(jax.random.key(9), y.shape), np.float64)
    dx, dscale, dbias = vjp(jnp.asarray(g, jnp.float32))
    inner = g * np.asarray(scale)
    projected = inner.mean(-1, keepdims=True) + unit * (inner * unit).mean(-1, keepdims=True)
    expected = (inner - projected) / np.sqrt(var + 1e-6)
    np.testing.assert_allclose(dx, expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(dscale, (g * unit).sum(0), rtol=0, atol=5e-6)
    np.testing.assert_allclose(dbias, g.sum(0), rtol=0, atol=5e-6)


def test_layer_norm_keeps_half_precision_outside_and_float32_inside():
    x = (jax.random.normal(jax.random.key(0), (4, 512)) + 100).astype(jnp.bfloat16)
    one = jnp.ones(512, jnp.bfloat16)
    y = layer_norm(x, one, one, 1e-6)
    assert y.dtype == jnp.bfloat16
    exact = layer_norm(x.astype(jnp.float32), one, one, 1e-6)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=1e-2, atol=1e-2)


def test_gelu_is_the_exact_one():
    x = np.linspace(-6, 6, 101)
    exact = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])
    np.testing.assert_allclose(gelu(jnp.asarray(x, jnp.float32)), exact, rtol=0, atol=1e-6)
    slope = [0.5 * (1 + math.erf(v / 2**0.5)) + v * math.exp(-v * v / 2) / (2 * math.pi) ** 0.5
             for v in x]  # fmt: skip
    got = jax.vmap(jax.grad(gelu))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, slope, rtol=0, atol=2e-6)
    for other in ("gelu_tanh", "quick_gelu"):
        gap = np.abs(ACTIVATIONS[other](jnp.asarray(x)) - exact).max()
        assert 1e-4 < gap < 0.03, other


def test_unknown_mlp_is_an_error():
    with pytest.raises(ConfigError, match="Did you mean 'swiglu'"):
        Mlp(8, kind="swigl").init(jax.random.key(0), jnp.ones((1, 4)))


def test_attention_ignores_masked_keys_and_weighs_the_rest():
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 6, 3, 4))
    mask = jnp.arange(6)[None] < jnp.array([[4], [6]])
    out = dot_product_attention(query, key, value, mask)
    changed = jnp.where(mask[..., None, None], value, 1e9)
    np.testing.assert_array_equal(out, dot_product_attention(query, key, changed, mask))
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / 2
    weights = np.where(mask[:, None, None], np.exp(scores), 0)
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(out, np.einsum("bhqk,bkhd->bqhd", weights, value), atol=1e-5)


def test_batch_norm_uses_the_batch_in_training_and_the_past_afterwards():
    x = 3 * jax.random.normal(jax.random.key(0), (64, 2, 5)) + 1
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x)
    y, new = norm.apply(variables, x, train=True, mutable=["stats"])
    np.testing.assert_allclose(y.mean((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1)), 1, atol=1e-4)
    flat = np.asarray(x).reshape(-1, 5)
    np.testing.assert_allclose(new["stats"]["mean"], 0.1 * flat.mean(0), atol=1e-5)
    np.testing.assert_allclose(new["stats"]["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(norm.apply(variables, x), x / np.sqrt(1 + 1e-5), rtol=1e-6)
    assert set(variables["params"]) == {"scale", "bias"}
    assert "params" not in BatchNorm(affine=False).init(jax.random.key(0), x)


def test_masked_mean():
    tokens = jnp.arange(12.0).reshape(2, 3, 2)
    mask = jnp.array([[True, False, True], [False, False, False]])
    np.testing.assert_allclose(masked_mean(tokens, mask), [[2, 3], [0, 0]])
    np.testing.assert_allclose(masked_mean(tokens), tokens.mean(1))


@settings(max_examples=20, deadline=None)
@given(*(st.integers(1, 3) for _ in range(5)))
def test_patches_come_back(gh, gw, ph, pw, channels):
    images = np.random.default_rng(0).normal(size=(2, gh * ph, gw * pw, channels))
    patches = patchify(images, (ph, pw))
    assert patches.shape == (2, gh * gw, ph * pw * channels)
    corner = images[1, -ph:, -pw:]
    np.testing.assert_array_equal(patches[1, -1], corner.reshape(-1))
    np.testing.assert_array_equal(unpatchify(patches, (ph, pw), (gh, gw)), images)


def test_patches_that_do_not_tile_are_an_error():
    with pytest.raises(ConfigError, match=r"\(9, 8\) is not divisible by the patch size \(4, 4\)"):
        patchify(jnp.zeros((1, 9, 8, 3)), (4, 4))


def test_initial_weights():
    key, shape = jax.random.key(0), (256, 256)
    normal = trunc_normal(0.02)(key, shape)
    assert normal.std() == pytest.approx(0.02, rel=0.02)
    assert np.abs(trunc_normal(1.0)(key, shape)).max() <= 2
    assert not trunc_normal(0.0)(key, shape).any()
    for fused in (1, 3):
        limit = math.sqrt(6 / (256 * (1 + fused)))
        weights = np.abs(xavier_uniform(fused)(key, shape))
        assert 0.99 * limit < weights.max() <= limit
    for name in WEIGHT_INITS:
        assert weight_init(name).positions(key, (2, 3, 8)).shape == (2, 3, 8)
    with pytest.raises(ConfigError, match="Did you mean 'mae'"):
        weight_init("maee")


def test_layers_stack_and_unstack_anywhere_in_a_tree():
    rng = np.random.default_rng(0)
    block = [{"mlp": {"kernel": rng.normal(size=(2, 3))}} for _ in range(11)]
    tree = {
        "encoder": {
            "norm": {"scale": np.ones(2)},
            **{f"blocks_{i}": b for i, b in enumerate(block)},
        },
        "decoder": {"blocks_0": {"mlp": {"kernel": rng.normal(size=(4, 4))}}},
        "blocks_of_another_kind": np.zeros(3),
    }
    stacked = stack_layers(tree)
    assert set(stacked["encoder"]) == {"norm", "blocks"}
    kernel = stacked["encoder"]["blocks"]["mlp"]["kernel"]
    assert isinstance(kernel, np.ndarray)
    assert kernel.shape == (11, 2, 3)
    # Ten comes after nine, not after one.
    np.testing.assert_array_equal(kernel[10], block[10]["mlp"]["kernel"])
    back = unstack_layers(stacked)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, back, tree)


def test_layer_requests():
    assert resolve_layers("all", 3) == (0, 1, 2)
    assert resolve_layers((-1, 0), 3) == (2, 0)
    with pytest.raises(ConfigError, match="no layer -4"):
        resolve_layers((-4,), 3)


@pytest.mark.parametrize("rate", [0.1, 0.37])
def test_dropout(rate):
    x = jnp.ones((100, 10, 101))  # an odd end: the last word is half used

    @jax.jit
    def dropped(seed):
        return Dropout(rate).apply({}, x, rngs={"dropout": jax.random.key(seed)})

    y = np.asarray(dropped(0))
    kept = y > 0
    deviation = np.sqrt(rate * (1 - rate) / kept.size)
    assert abs(kept.mean() - (1 - rate)) < 5 * deviation
    np.testing.assert_allclose(y[kept], 1 / (1 - rate), rtol=1e-4)
    # Neither the two halves of a word, nor neighbouring words, nor seeds know of each other.
    for distance in (1, 2, 50):
        both = (kept[..., distance:] & kept[..., :-distance]).mean()
        assert abs(both - (1 - rate) ** 2) < 8 * deviation
    both = (kept & (np.asarray(dropped(1)) > 0)).mean()
    assert abs(both - (1 - rate) ** 2) < 8 * deviation
    np.testing.assert_array_equal(y, dropped(0))


def test_dropout_of_nothing_and_of_everything():
    x = jnp.arange(6.0).reshape(2, 3)
    keys = {"dropout": jax.random.key(0)}
    assert Dropout(0.0).apply({}, x) is x  # and asks for no key
    assert Dropout(0.5).apply({}, x, train=False) is x
    np.testing.assert_array_equal(Dropout(1.0).apply({}, x, rngs=keys), jnp.zeros((2, 3)))
    y, gradient = jax.value_and_grad(lambda x: Dropout(0.5).apply({}, x, rngs=keys).sum())(x + 1)
    np.testing.assert_allclose((gradient * (x + 1)).sum(), y, rtol=1e-6)
