"""Positions: sin-cos values, resizing as timm and PyTorch do it, rotary geometry."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.errors import ConfigError
from encoders.layers.position import (
    Rotary,
    resize_matrix,
    resize_positions,
    rotary2d,
    rotary_of_tokens,
    rotate,
    sincos2d,
)

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("method", ["antialias", "plain"])
def test_resize_matches_pytorch(method):
    arrays = np.load(GOLDEN / "vision_positions.npz")
    cases = [name for name in arrays if name.startswith(method)]
    assert len(cases) == 5
    for name in cases:
        grid = tuple(int(size) for size in name.split("/")[1].split("x"))
        resized = resize_positions(jnp.asarray(arrays["positions"]), grid, method)
        np.testing.assert_allclose(resized, arrays[name], rtol=0, atol=5e-6, err_msg=name)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["antialias", "plain"]))
def test_resize_keeps_constants(old, new, method):
    matrix = resize_matrix(old, new, method)
    assert matrix.shape == (new, old)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-5)
    if old == new:
        np.testing.assert_allclose(matrix, np.eye(old), atol=1e-6)


def test_resize_keeps_dtype_and_the_same_grid():
    positions = jnp.ones((2, 3, 4), jnp.bfloat16)
    assert resize_positions(positions, (2, 3)) is positions
    assert resize_positions(positions, (5, 4)).dtype == jnp.bfloat16


@pytest.mark.parametrize("convention, last", [("mae", 10000 ** -(3 / 4)), ("big_vision", 1e-4)])
def test_sincos_channels(convention, last):
    table = sincos2d((3, 5), 16, convention)
    assert table.shape == (3, 5, 16)
    omega = 10000 ** -np.linspace(0, 3 / 4 if convention == "mae" else 1, 4)
    assert omega[-1] == pytest.approx(last)
    for y in range(3):
        for x in range(5):
            parts = [np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)]
            np.testing.assert_allclose(table[y, x], np.concatenate(parts), atol=1e-6)


def test_rotary_products_depend_on_the_difference_of_places_only():
    grid = (4, 5)
    sin, cos = rotary2d(grid, 8, Rotary(temperature=10.0))
    query, key = jax.random.normal(jax.random.key(0), (2, 8))
    spread = [jnp.broadcast_to(x, (1, 20, 1, 8)) for x in (query, key)]
    turned = [rotate(x, sin, cos)[0, :, 0].reshape(4, 5, 8) for x in spread]
    products = jnp.einsum("abd,ijd->abij", *turned)
    for dy, dx in ((1, 0), (0, 2), (2, 1)):
        same = [products[y, x, y + dy, x + dx] for y in range(4 - dy) for x in range(5 - dx)]
        np.testing.assert_allclose(same, same[0], rtol=0, atol=1e-5)
    assert abs(products[0, 0, 1, 0] - products[0, 0, 0, 1]) > 1e-3


def test_rotary_leaves_prefix_tokens_alone_and_follows_kept_patches():
    sin, cos = rotary2d((2, 3), 4, Rotary())
    keep = jnp.array([[4, 0], [1, 5]])
    x = jax.random.normal(jax.random.key(0), (2, 3, 2, 4))
    turned = rotate(x, *rotary_of_tokens(sin, cos, 1, keep))
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])
    for example, patches in enumerate(np.asarray(keep)):
        alone = rotate(x[example : example + 1, 1:], sin[patches], cos[patches])
        np.testing.assert_allclose(turned[example, 1:], alone[0], atol=1e-6)


def test_rotary_reference_grid_spans_the_same_range():
    small = rotary2d((4, 4), 8, Rotary(reference_grid=(4, 4)))
    large = rotary2d((8, 8), 8, Rotary(reference_grid=(4, 4)))
    for a, b in zip(small, large, strict=True):
        every_second = b.reshape(8, 8, 8)[::2, ::2]
        np.testing.assert_allclose(a.reshape(4, 4, 8), every_second, atol=1e-6)


def test_sizes_that_do_not_split_are_errors():
    with pytest.raises(ConfigError, match="divisible by 4"):
        sincos2d((2, 2), 6)
    with pytest.raises(ConfigError, match="divisible by 4"):
        rotary2d((2, 2), 6, Rotary())
