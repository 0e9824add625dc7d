"""Encoders of raw speech: padding, sizes, masks, gradients, and what they refuse."""

import functools

import jax
import numpy as np
import pytest

from encoders.models.data2vec_audio import Data2VecAudio
from encoders.models.wav2vec2 import Wav2Vec2

SIZES = dict(width=24, depth=2, mlp_dim=48, num_heads=3)
TINY = dict(
    SIZES, conv_dim=16, conv_kernels=(10, 3, 2), conv_strides=(5, 2, 2), position_kernel=8,
    position_groups=4,
)  # fmt: skip
MODELS = {
    "base": Wav2Vec2(**TINY),
    "large": Wav2Vec2("large", **TINY, normalize_waveform=True),
    "data2vec": Data2VecAudio(**TINY | dict(position_kernel=3, position_depth=2)),
}
RNG = np.random.default_rng(0)
LENGTHS = np.array([400, 311])
CLIPS = (RNG.normal(size=(2, 400)) + 0.3).astype(np.float32)
MASK = np.arange(400) < LENGTHS[:, None]


@functools.cache
def initialised(name: str):
    module = MODELS[name]
    params = jax.jit(module.init)(jax.random.key(1), CLIPS)["params"]
    # Biases and scales that are not those of the start, so that each of them counts.
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(2)
    leaves = [x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    return module, jax.tree.unflatten(tree, leaves)


@functools.cache
def encode(name: str):
    module, params = initialised(name)

    def apply(clips, mask, masked=None):
        return module.apply({"params": params}, clips, mask=mask, masked=masked, layers="all")

    return jax.jit(apply)


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_gives_what_its_clips_give_alone(name):
    module, _ = initialised(name)
    noise = np.where(MASK, CLIPS, 7)  # what stands behind a clip does not matter
    out = encode(name)(noise, MASK)
    frames = module.frames(LENGTHS)
    np.testing.assert_array_equal(out.mask.sum(1), frames)
    alone = encode(name)(CLIPS[1:, : LENGTHS[1]], None)
    assert alone.tokens.shape == (1, frames[1], 24)
    for got, expected in (
        (out.tokens[1, : frames[1]], alone.tokens[0]),
        (out.pooled[1], alone.pooled[0]),
        *((out.hidden[i][1, : frames[1]], alone.hidden[i][0]) for i in (0, 1)),
    ):
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)


def test_numbers_of_a_model_are_those_of_the_paper():
    module = Wav2Vec2()
    assert (module.stride, module.receptive_field) == (320, 400)
    assert [module.frames(n) for n in (256_000, 399, 400)] == [799, 0, 1]
    np.testing.assert_array_equal(module.frames(np.array([0, 9, 720])), [0, 0, 2])
