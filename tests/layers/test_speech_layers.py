"""Convolutions of speech: formulations agree, with XLA's own and with each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.errors import ConfigError
from encoders.layers.conv_features import (
    moments,
    normalized_waveform,
    num_frames,
    receptive_field,
    strided_conv,
)
from encoders.layers.positional_conv import PositionalConv, grouped_conv

RNG = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


# Odd and even kernels; blocks that fill the row and that do not, one longer than the row.
@pytest.mark.parametrize("kernel, length", [(8, 21), (3, 9), (40, 7)])
def test_formulations_of_positions_agree(kernel, length):
    x, weights = draw(2, length, 12), draw(kernel, 4, 12)
    names = ("conv", "blocks", "fft")
    weight = draw(2, length, 12)

    def loss(x, weights, name):
        y = grouped_conv(x, weights, 3, name)
        return (y * weight).sum(), y

    every = jax.value_and_grad(loss, (0, 1), has_aux=True)
    found = jax.jit(lambda x, w: [every(x, w, name) for name in names])(x, weights)
    for other in found[1:]:
        for got, expected in zip(jax.tree.leaves(other), jax.tree.leaves(found[0]), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=3e-5)


def test_strided_convolutions_are_those_of_xla():
    cases = [(10, 5, 1), (3, 2, 6), (2, 2, 6)]
    arguments = [
        (draw(2, 53, channels), draw(kernel, channels, 4)) for kernel, _, channels in cases
    ]

    def plain(x, kernel, stride):
        names = ("NWC", "WIO", "NWC")
        return jax.lax.conv_general_dilated(x, kernel, (stride,), "VALID", dimension_numbers=names)

    def loss(arguments, function):
        every = [function(*a, stride) for a, (_, stride, _) in zip(arguments, cases, strict=True)]
        return sum((y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum() for y in every), every

    gradient = jax.value_and_grad(loss, has_aux=True)
    found = jax.jit(lambda a: (gradient(a, strided_conv), gradient(a, plain)))(arguments)
    for got, expected in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=3e-5)
    with pytest.raises(ConfigError, match="expected a kernel of 2 to 4 for stride 2, got 5"):
        strided_conv(arguments[1][0], draw(5, 6, 4), 2)


def test_frames_and_receptive_fields():
    kernels, strides = (10, 3, 2), (5, 2, 2)
    field = receptive_field(kernels, strides)
    lengths = np.arange(3 * field)
    counted = [jax.eval_shape(_convolved, jax.ShapeDtypeStruct((1, n, 1), np.float32)).shape[1]
               for n in (field, field + 19, field + 20)]  # fmt: skip
    assert counted == [num_frames(n, kernels, strides) for n in (field, field + 19, field + 20)]
    frames = num_frames(lengths, kernels, strides)
    assert (frames[:field] == 0).all()
    assert frames[field] == 1
    assert (np.diff(frames) >= 0).all()


def _convolved(x):
    for kernel, stride in ((10, 5), (3, 2), (2, 2)):
        x = strided_conv(x, jnp.ones((kernel, 1, 1)), stride)
    return x


def test_waveforms_are_normalised_over_their_real_samples():
    waveform = draw(2, 50) * 3 + 2
    mask = np.arange(50) < np.array([50, 30])[:, None]
    waveform[1, 30:] = 1e4
    found = jax.jit(normalized_waveform)(waveform, mask)
    for row, count in enumerate((50, 30)):
        clip = waveform[row, :count].astype(np.float64)
        expected = (clip - clip.mean()) / np.sqrt(clip.var() + 1e-7)
        np.testing.assert_allclose(found[row, :count], expected, rtol=0, atol=2e-6)
    assert (np.asarray(found)[1, 30:] == 0).all()
    padding = np.zeros((1, 4), bool)  # a row of nothing else
    for x in jax.jit(lambda x: moments(x, padding, 1e-5))(np.ones((1, 4, 2), np.float32)):
        assert np.isfinite(x).all()


def test_weight_norm_starts_with_the_kernel_that_was_drawn():
    module = PositionalConv(4, 2)
    x = draw(1, 5, 6)
    params = jax.jit(module.init)(jax.random.key(0), x)["params"]
    norms = np.sqrt(np.square(params["kernel"]).sum((1, 2)))
    np.testing.assert_allclose(params["scale"], norms, rtol=1e-6)
    scaled = {**params, "kernel": 3 * params["kernel"]}  # whose length does not matter

    def apply(params):
        return module.apply({"params": params}, x)

    both = jax.jit(lambda a, b: (apply(a), apply(b)))(params, scaled)
    np.testing.assert_allclose(*both, rtol=0, atol=1e-6)


def test_what_positions_refuse():
    with pytest.raises(ConfigError, match="position_groups: 5 does not divide the width 12"):
        grouped_conv(draw(1, 4, 12), draw(3, 4, 12), 5)
    with pytest.raises(ConfigError, match=r"unknown 'block'. Did you mean 'blocks'"):
        grouped_conv(draw(1, 4, 12), draw(3, 4, 12), 3, "block")
