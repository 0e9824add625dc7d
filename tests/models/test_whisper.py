"""Whisper's encoder against transformers, padded to a length and of any length, in and out.

Written by `python -m tools.golden.write_whisper`; read here without PyTorch.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import encoders
from encoders.checkpoints.formats import files
from encoders.checkpoints.formats.hf_whisper import _rules
from encoders.checkpoints.formats.mapping import flatten
from encoders.data import AudioPreprocessing
from encoders.errors import CheckpointError, ConfigError
from encoders.layers.stack import stack_layers
from encoders.models.whisper import Whisper
from tools.golden.inputs import sound, weight

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "whisper"
POSITIONS, SHORT, SAMPLES = 24, 15, 4937
EXPECTED = np.load(GOLDEN / "expected.npz")


@functools.cache
def load():
    return encoders.load(GOLDEN / "hf")


def batch(samples: int = 6001) -> tuple[np.ndarray, np.ndarray]:
    """The clip of the golden values and a shorter one, padded with what is no silence."""
    mask = np.arange(samples) < np.array([[SAMPLES], [2200]])
    waveform = np.pad(sound(SAMPLES).astype(np.float32) / 32768, ((0, 0), (0, samples - SAMPLES)))
    return np.where(mask, waveform, np.float32(0.7)), mask


@functools.cache
def run(positions: int):
    module, params = load().module, load().variables["params"]
    module = module if positions == POSITIONS else module.clone(pad_to=None, scan=True)
    params = stack_layers(params) if module.scan else params
    waveform, mask = batch()
    direction = weight("direction", (positions, 20))

    def loss(params):
        out = module.apply({"params": params}, waveform, mask=mask, layers="all")
        return (out.tokens[0, :positions] * direction).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return out, gradients


@pytest.mark.parametrize("positions", [POSITIONS, SHORT])
def test_outputs_and_every_layer(positions):
    out, _ = run(positions)
    np.testing.assert_array_equal(out.mask.sum(1), [SHORT, 7])
    want = EXPECTED[f"{positions}.hidden_2"]
    np.testing.assert_allclose(out.tokens[0, :positions], want, atol=1e-5)
    np.testing.assert_allclose(
        out.hidden[0][0, :positions], EXPECTED[f"{positions}.hidden_1"], atol=1e-5
    )


@pytest.mark.parametrize("positions", [POSITIONS, SHORT])
def test_gradients(positions):
    _, gradients = run(positions)
    if positions == SHORT:
        gradients = encoders.loading.unstack_layers(gradients)
    fields = {"width": 20, "mlp_dim": 24, "num_mels": 16, "depth": 2}
    found = {}
    flat = flatten(gradients)
    for rule in _rules(fields, POSITIONS):
        arrays = rule.dump(*(np.asarray(flat[path]) for path in rule.ours))
        found |= {name: x for (name, _), x in zip(rule.theirs, arrays, strict=True)}
    for name in EXPECTED.files:
        if name.startswith(f"{positions}.gradient."):
            theirs = found["encoder." + name.partition(".gradient.")[2]]
            np.testing.assert_allclose(theirs, EXPECTED[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pad_to", [2 * POSITIONS, None])
def test_a_batch_is_its_clips(pad_to):
    module, params = load().module.clone(pad_to=pad_to), load().variables["params"]
    waveform, mask = batch()
    encode = jax.jit(lambda x, m: module.apply({"params": params}, x, mask=m))
    together = encode(waveform, mask)
    alone = encode(waveform[1:, :2200], None)
    count = alone.tokens.shape[1]
    assert count == (7 if pad_to is None else POSITIONS)
    np.testing.assert_allclose(together.tokens[1, :count], alone.tokens[0], atol=1e-5)
    np.testing.assert_allclose(together.pooled[1], alone.pooled[0], atol=1e-5)


def test_masked_frames_are_replaced():
    module = load().module.clone(pad_to=None)
    waveform, mask = batch()

    def both(key):
        features = module.features(waveform, mask)
        hide = jnp.zeros(features[1].shape, bool).at[:, 3:5].set(True)
        variables = module.init(key, waveform, mask=mask, masked=hide)
        encode = functools.partial(module.apply, variables, waveform, mask=mask, masked=hide)
        other = features[0].at[:, 3:5].add(5.0), features[1]
        return variables, encode(features=features), encode(features=other)

    variables, found, other = jax.jit(both)(jax.random.key(0))
    assert variables["params"]["mask_embedding"].shape == (32,)
    np.testing.assert_allclose(found.tokens, other.tokens, atol=1e-6)


def test_saved_again(tmp_path):
    encoders.save(load(), tmp_path / "hf", format="hf")
    again = encoders.load(tmp_path / "hf")
    assert again.module == load().module
    before, after = (flatten(e.variables["params"]) for e in (load(), again))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[path], after[path]) for path in before)
    theirs = files.read_tensors(GOLDEN / "hf")
    written = files.read_tensors(tmp_path / "hf")
    for name, tensor in theirs.items():
        if ".encoder." in name:
            np.testing.assert_allclose(tensor, written[name.removeprefix("model.")], atol=1e-6)


def test_flops_agree_with_xla():
    module = Whisper("tiny", pool="none", pad_to=500)
    clip = jax.ShapeDtypeStruct((1, 64_000), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), clip)
    features = jax.eval_shape(module.features, clip)
    forward = jax.jit(lambda v, x, f: module.apply(v, x, features=f).tokens)
    counted = forward.lower(variables, clip, features).cost_analysis()["flops"]
    assert module.flops(64_000) == pytest.approx(counted, rel=0.05)


def test_loaded_it_encodes_waveforms():
    waveform, mask = batch()
    out = load()(waveform, mask=mask)
    np.testing.assert_allclose(out.tokens, run(POSITIONS)[0].tokens, atol=1e-5)


def test_refusals(tmp_path):
    tensors = dict(files.read_tensors(GOLDEN / "hf"))
    config = files.read_json(GOLDEN / "hf" / "config.json")
    name = "model.encoder.embed_positions.weight"
    files.write_json(tmp_path / "config.json", config)
    files.write_tensors(tmp_path / "model.safetensors", tensors | {name: tensors[name] + 1})
    with pytest.raises(CheckpointError, match="is not Whisper's table of sinusoids"):
        encoders.load(tmp_path)
    with pytest.raises(ConfigError, match="7681 samples are more than the 7680"):
        load().module.features(np.zeros((1, 7681), np.float32))
    assert load().module.max_samples == 7680
    with pytest.raises(ConfigError, match="the encoder hears 16000 samples per second"):
        AudioPreprocessing(sample_rate=8000).check(load().module)


@pytest.mark.parametrize(
    ("name", "count"), json.loads((GOLDEN / "parameters.json").read_text()).items()
)
def test_published_sizes(name, count):
    size, _, mels = name.partition("-")
    module = Whisper(size, num_mels=int(mels), scan=True)
    clip = jax.ShapeDtypeStruct((1, 16000), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), clip)
    total = sum(np.prod(x.shape) for x in jax.tree.leaves(shapes))
    assert total == count + 2 * int(mels)  # what masked frames are replaced by
    assert module.frames(16000) == 1500
    assert module.clone(pad_to=None).frames(16000) == 50
