"""Encoders of raw speech: padding, sizes, masks, gradients, and what they refuse."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import encoders
from encoders.config import build
from encoders.errors import ConfigError, DataError
from encoders.layers.stack import stack_layers
from encoders.models import MODELS
from encoders.models.data2vec_audio import Data2VecAudio
from encoders.models.hubert import HuBERT
from encoders.models.wav2vec2 import Wav2Vec2
from encoders.speech import SpeechEncoder

SIZES = dict(width=24, depth=2, mlp_dim=48, num_heads=3)
TINY = dict(
    SIZES, conv_dim=16, conv_kernels=(10, 3, 2), conv_strides=(5, 2, 2), position_kernel=8,
    position_groups=4,
)  # fmt: skip
TINY_MODELS = {
    "base": Wav2Vec2(**TINY),
    "large": Wav2Vec2("large", **TINY, normalize_waveform=True),
    "hubert": HuBERT(**TINY, feature_norm=False),
    "data2vec": Data2VecAudio(**TINY | dict(position_kernel=3, position_depth=2)),
}
RNG = np.random.default_rng(0)
LENGTHS = np.array([400, 311])
CLIPS = (RNG.normal(size=(2, 400)) + 0.3).astype(np.float32)
MASK = np.arange(400) < LENGTHS[:, None]
HIDDEN = RNG.random((2, 19)) < 0.3


@functools.cache
def initialised(name: str):
    module = TINY_MODELS[name]
    params = jax.jit(module.init)(jax.random.key(1), CLIPS)["params"]
    # Biases and scales that are not those of the start, so that each of them counts.
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("f4"), params)
    return module, params


@functools.cache
def encode(name: str):
    module, params = initialised(name)

    def apply(clips, mask, masked=None, masked_channels=None):
        hidden = {"masked": masked, "masked_channels": masked_channels}
        return module.apply({"params": params}, clips, mask=mask, layers="all", **hidden)

    return jax.jit(apply)


@pytest.mark.parametrize("name", TINY_MODELS)
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
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_numbers_of_a_model_are_those_of_the_paper():
    module = Wav2Vec2()
    assert (module.stride, module.receptive_field) == (320, 400)
    assert [module.frames(n) for n in (256_000, 399, 400)] == [799, 0, 1]
    np.testing.assert_array_equal(module.frames(np.array([0, 9, 720])), [0, 0, 2])


def test_flops_are_those_of_the_compiled_program():
    module = Wav2Vec2(**TINY, position_formulation="conv", pool="none")
    params = initialised("base")[1]

    def apply(waveform):
        return module.apply({"params": params}, waveform).tokens

    compiled = jax.jit(apply).lower(CLIPS[:1]).compile()
    # What ours leaves out, elementwise work, is much of so small a network.
    assert 0.6 < module.flops(400) / compiled.cost_analysis()["flops"] < 1
    # Ten seconds in Base, 499 frames: 12 blocks of 7.08 M weights, attention, positions, and 4.9 G
    # of convolutions for every second.
    parts = 2 * 12 * 7.08e6 * 499 + 4 * 12 * 499**2 * 768 + 2 * 499 * 128 * 768 * 48 + 49e9
    assert Wav2Vec2().flops(160_000) == pytest.approx(parts, rel=0.01)


def test_hidden_frames_and_channels_are_not_seen():
    module, params = initialised("base")
    features = jax.jit(lambda: module.apply({"params": params}, CLIPS, method=module.features))()
    noisy = features[0] + HIDDEN[..., None] * 5.0

    @jax.jit
    def apply(features, masked, channels=None):
        given = {"features": (features, jnp.ones((2, 19), bool)), "masked": masked}
        return module.apply({"params": params}, CLIPS, **given, masked_channels=channels).tokens

    seen = apply(features[0], jnp.zeros((2, 19), bool))
    np.testing.assert_allclose(seen, encode("base")(CLIPS, None).tokens, rtol=0, atol=1e-5)
    hidden = apply(features[0], HIDDEN)
    np.testing.assert_array_equal(hidden, apply(noisy, HIDDEN))
    assert np.abs(hidden - seen).max() > 0.1
    # A channel of the projected features: its weights do not matter any more.
    channels = np.arange(24) < 5
    kernel = params["projection"]["linear"]["kernel"]
    changed = {**params["projection"], "linear": {**params["projection"]["linear"]}}
    changed["linear"]["kernel"] = kernel + 3.0 * channels

    @jax.jit
    def both(channels):
        every = ({**params, "projection": changed}, params)
        return [module.apply({"params": p}, CLIPS, masked_channels=channels).tokens for p in every]

    np.testing.assert_array_equal(*both(np.stack([channels, channels])))


def test_features_have_an_energy_and_their_gradient_a_scale():
    module, params = initialised("base")

    def loss(params, module):
        found = module.apply({"params": params}, CLIPS, MASK, energy=True, method=module.features)
        features, _, energy = found
        return jnp.sin(features).sum() + energy.sum(), energy

    def gradient(scale):
        return jax.grad(loss, has_aux=True)(params, module.clone(feature_gradient=scale))

    whole, tenth, none = (
        found[0] for found in jax.jit(lambda: [gradient(x) for x in (1, 0.1, 0)])()
    )
    for path, x in jax.tree.leaves_with_path(whole):
        small, still = tenth[path[0].key], none[path[0].key]
        for key in path[1:]:
            small, still = small[key.key], still[key.key]
        scaled = path[0].key == "convolutions"
        np.testing.assert_allclose(small, 0.1 * x if scaled else x, rtol=1e-4, atol=1e-4)
        if scaled:
            assert not np.any(still)


def test_scanned_blocks_are_the_unrolled_ones_and_layers_are_dropped_in_training_only():
    module, params = initialised("large")
    dropping = module.clone(layer_drop=0.5, dropout=0.0, attention_dropout=0.0, input_dropout=0.0)
    rngs = {"dropout": jax.random.key(3)}

    @jax.jit
    def apply(params, stacked):
        plain = encode("large").__wrapped__(CLIPS, MASK).tokens
        scanned = module.clone(scan=True).apply({"params": stacked}, CLIPS, mask=MASK).tokens
        options = {"mask": MASK, "train": True, "layers": "all", "rngs": rngs}
        found = dropping.apply({"params": params}, CLIPS, **options)
        over = dropping.clone(scan=True).apply({"params": stacked}, CLIPS, **options)
        return plain, scanned, found, over

    plain, scanned, found, over = apply(params, stack_layers(params))
    np.testing.assert_allclose(scanned, plain, rtol=0, atol=1e-5)
    chex.assert_trees_all_close(found.hidden, over.hidden, rtol=0, atol=1e-5)
    kept = [bool(np.any(found.hidden[1][row] != found.hidden[0][row])) for row in (0, 1)]
    draw = jax.jit(lambda key: dropping.apply(
        {"params": params}, CLIPS, mask=MASK, train=True, layers="all", rngs={"dropout": key}
    ).hidden)  # fmt: skip
    for number in range(12):
        hidden = draw(jax.random.key(number))
        kept += [bool(np.any(hidden[1][row] != hidden[0][row])) for row in (0, 1)]
    assert 0.25 < np.mean(kept) < 0.75


@pytest.mark.parametrize(
    "fields, waveform, message",
    [
        ({"variant": "big"}, CLIPS, "unknown size 'big'. Known"),
        ({"position_groups": 5}, CLIPS, "position_groups: 5 does not divide the width 24"),
        ({}, CLIPS[0], r"Wav2Vec2 encodes float waveforms \[B, S\], not float32 \[400\]"),
        ({}, CLIPS.astype(np.int16), r"not int16 \[2, 400\]"),
        ({}, CLIPS[:, :29], "waveforms of 29 samples are shorter than a frame, .* from 30"),
    ],
)
def test_what_a_model_refuses(fields, waveform, message):
    module = TINY_MODELS["base"].clone(**fields)
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), waveform)


def test_a_section_makes_the_model():
    section = dict(name="hubert", conv_kernels=[10, 3], conv_strides=[5, 2], conv_norm="layer")
    module = build(MODELS, section, "model")
    assert (module.stride, module.size.conv_norm, module.size.pre_norm) == (10, "layer", False)
    with pytest.raises(ConfigError, match=r"conv_nrm.*Did you mean 'conv_norm'"):
        build(MODELS, dict(name="wav2vec2", conv_nrm="layer"), "model")


# --- the encoder that users call ------------------------------------------------------------------


@functools.cache
def loaded() -> SpeechEncoder:
    module, params = initialised("base")
    return SpeechEncoder(module, {"params": params})


def test_an_encoder_takes_floats_int16_and_masks():
    expected = encode("base")(CLIPS, MASK)
    out = loaded()(CLIPS.astype(np.float64), mask=MASK.astype(int), layers=(-1,))
    np.testing.assert_allclose(out.tokens, expected.tokens, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(out.mask, expected.mask)
    assert set(out.hidden) == {1}
    whole = np.round(CLIPS * 1000).astype(np.int16)
    np.testing.assert_array_equal(loaded().checked(whole), whole / np.float32(32768))


def with_sample(value):
    return np.where(np.arange(400) == 5, value, CLIPS)


@pytest.mark.parametrize(
    "waveform, mask, message",
    [
        (CLIPS[0], None, r"got one clip \(400,\); add the batch axis, waveform\[None\]"),
        (CLIPS[None], None, r"expected a batch \[B, S\], got \(1, 2, 400\)"),
        (CLIPS.astype(int), None, "expected int16 or floats, got int64"),
        (with_sample(np.nan), None, "clip 0 has samples that are no finite numbers"),
        (with_sample(np.inf), None, "clip 0 has samples that are no finite numbers"),
        (CLIPS[:, :29], None, "clip 0 has 29 samples, too few for a frame, .* from 30"),
        (CLIPS, np.arange(400) < [[400], [20]], "clip 1 has 20 samples, too few for a frame"),
        (CLIPS, MASK[:1], r"mask: expected the shape of waveform, \(2, 400\), got \(1, 400\)"),
        (CLIPS, MASK[:, ::-1], "mask: clip 1 has padding before its last real sample"),
        (CLIPS, MASK * 2, "mask: expected True where a sample is real"),
    ],
)
def test_what_an_encoder_refuses(waveform, mask, message):
    with pytest.raises(DataError, match=message):
        loaded()(waveform, mask=mask)


def test_directories_keep_encoders_of_speech(tmp_path):
    encoders.save(loaded(), tmp_path / "out")
    again = encoders.load(tmp_path / "out")
    assert type(again) is SpeechEncoder
    assert again.module == loaded().module
    chex.assert_trees_all_equal(again.variables, loaded().variables)
