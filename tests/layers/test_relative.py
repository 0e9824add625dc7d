"""Distances in attention: T5's buckets, ALiBi's slopes, rotary pairs, windows, gated MLPs."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.errors import ConfigError
from encoders.layers.local import LocalAttention, num_blocks
from encoders.layers.mlp import Mlp
from encoders.layers.position import rotary1d, rotate, sincos1d
from encoders.layers.relative import RelativeBias, alibi, alibi_slopes

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "text_positions.npz")


def test_relative_bias_is_that_of_t5():
    """All distances up to beyond the last bucket, in both directions."""
    variables = {"params": {"table": GOLDEN["table"].astype(np.float32)}}
    bias = RelativeBias(3).apply(variables, 150)
    np.testing.assert_array_equal(bias, GOLDEN["bias"])
    # Where tokens stand may also be said; then the same numbers are looked up one by one.
    places = np.array([[7, 3, 100, 0], [0, 1, 2, 149]])
    found = RelativeBias(3).apply(variables, 4, places)
    for row, place in enumerate(places):
        np.testing.assert_array_equal(found[row], GOLDEN["bias"][0][:, place][:, :, place])


@pytest.mark.parametrize("places", [None, np.arange(6)[None]])
def test_gradients_of_the_relative_bias_count_its_uses(places):
    module = RelativeBias(2, num_buckets=4, max_distance=3)
    table = jnp.zeros((4, 2))
    use = jax.random.normal(jax.random.key(0), (1, 2, 6, 6))
    gradient = jax.grad(lambda t: (module.apply({"params": {"table": t}}, 6, places) * use).sum())(
        table
    )
    expected = np.zeros((4, 2))
    for i in range(6):
        for j in range(6):
            # Of two buckets a side, the first is for distance 0 and the second for all others.
            bucket = min(abs(j - i), 1) + 2 * (j > i)
            expected[bucket] += use[0, :, i, j]
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5)


def test_sinusoidal_positions_are_those_of_distilbert():
    np.testing.assert_allclose(sincos1d(50, 12), GOLDEN["sinusoidal"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "heads, slopes",
    [
        (1, [2**-8]),
        (8, [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]),
        (3, [2**-4, 2**-8, 2**-2]),
        (12, [*(2.0**-i for i in range(1, 9)), 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]),
    ],
)
def test_alibi_slopes(heads, slopes):
    np.testing.assert_allclose(alibi_slopes(heads), slopes, rtol=1e-6)


def test_alibi_falls_off_alike_on_both_sides():
    bias = alibi(3, 5)
    assert bias.shape == (1, 3, 5, 5)
    for i in range(5):
        for j in range(5):
            expected = -np.array([2**-4, 2**-8, 2**-2]) * abs(i - j)
            np.testing.assert_allclose(bias[0, :, i, j], expected, rtol=1e-6)
    places = np.array([[4, 0, 9]])
    spread = alibi(3, 3, places)
    np.testing.assert_allclose(spread[0, :, 0, 2], bias[0, :, 0, 4] / 4 * 5, rtol=1e-6)


def test_rotary_turns_the_halves_of_a_head_against_each_other():
    sin, cos = rotary1d(30, 6, 100.0)
    x = np.random.default_rng(0).normal(size=(2, 30, 3, 6)).astype(np.float32)
    turned = np.asarray(rotate(x, jnp.asarray(sin), jnp.asarray(cos)))
    # As complex numbers: channel i is the real part and channel i + 3 the imaginary one.
    omega = 100.0 ** (-np.arange(3) / 3)
    turn = np.exp(1j * np.arange(30)[:, None] * omega)[None, :, None]
    expected = (x[..., :3] + 1j * x[..., 3:]) * turn
    np.testing.assert_allclose(turned[..., :3], expected.real, rtol=0, atol=1e-5)
    np.testing.assert_allclose(turned[..., 3:], expected.imag, rtol=0, atol=1e-5)


def test_an_odd_head_has_no_pairs():
    with pytest.raises(ConfigError, match="sines and cosines need an even size, got 5"):
        rotary1d(3, 5)


def test_a_window_is_what_a_token_sees():
    """Which inputs an output depends on: near ones of its own text, and real ones."""
    module, x = (
        LocalAttention(3, reach=2),
        np.random.default_rng(0).normal(size=(1, 9, 6)).astype("f4"),
    )
    segments, mask = np.array([[1] * 5 + [2] * 4]), np.arange(9)[None] != 3
    shapes = jax.eval_shape(functools.partial(module.init, local=True), jax.random.key(0), x)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f4"), shapes)

    @jax.jit
    def seen(x):
        def attend(x):
            return module.apply(variables, x, local=True, segments=segments, mask=mask)

        return jnp.abs(jax.jacrev(attend)(x)).sum((0, 2, 3, 5)) > 0

    place = np.arange(9)
    near = np.abs(place[:, None] - place) <= 2
    expected = near & (segments[0][:, None] == segments[0]) & mask
    np.testing.assert_array_equal(seen(x) | np.eye(9, dtype=bool), expected | np.eye(9, dtype=bool))


@pytest.mark.parametrize("length, reach", [(41, 4), (17, 1)])
def test_blocks_compute_what_a_mask_does(length, reach):
    """Outputs and gradients, in packed and padded rows that end within a block."""
    rng = np.random.default_rng(length)
    module = LocalAttention(3, reach=reach)
    assert num_blocks(length, reach) is not None
    x = rng.normal(size=(3, length, 6)).astype("f4")
    place = np.arange(length)
    segments = np.stack([1 + (place > 11) + (place > 12), (place < length - 4) * 1, 0 * place])
    shapes = jax.eval_shape(functools.partial(module.init, local=True), jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f4"), shapes)
    window = np.abs(place[:, None] - place) <= reach

    @jax.jit
    def both(x, local):
        def attend(how):
            def loss(x):
                y = module.apply(variables, x, segments=segments, **how)
                return jnp.where(segments[..., None] > 0, y, 0)

            y, pull = jax.vjp(loss, x)
            return y, pull(jnp.cos(jnp.arange(y.size)).reshape(y.shape))[0]

        masked = np.broadcast_to(window, (3, length, length))
        return attend({"local": local}), attend({"local": False, "mask": masked})

    (ours, gradient), (masked, other) = both(x, True)  # `local` is traced, as under scan
    np.testing.assert_allclose(ours, masked, rtol=0, atol=1e-5)
    np.testing.assert_allclose(gradient, other, rtol=0, atol=1e-5)
    (everywhere, _), _ = both(x, False)
    assert np.abs(everywhere - masked).max() > 1e-2


def test_short_rows_are_not_cut():
    assert num_blocks(256, 64) is None
    assert num_blocks(1024, 64) == 8


@pytest.mark.parametrize("kind", ["geglu", "swiglu"])
def test_gated_mlps_are_their_formula(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4)).astype(np.float32)
    module = Mlp(5, kind, use_bias=False)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)["params"]
    weights = {name: params[name]["kernel"] for name in ("gate", "fc1", "fc2")}
    gate = np.asarray(x @ weights["gate"], np.float64)
    act = np.asarray(jax.nn.gelu(gate, approximate=False) if kind == "geglu" else jax.nn.silu(gate))
    expected = (act * (x @ weights["fc1"])) @ weights["fc2"]
    ours = module.apply({"params": jax.tree.map(jnp.float32, params)}, x)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
