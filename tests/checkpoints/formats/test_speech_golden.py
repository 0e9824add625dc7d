"""Encoders of speech that transformers wrote: outputs, hidden states, gradients, heads, both ways.

Written by `python -m tools.golden.write_speech`; read here without PyTorch.
"""

import dataclasses
import functools
import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import encoders
from encoders.checkpoints.formats import files
from encoders.models import MODELS

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "speech"
NAMES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
ATOL = 1e-5
HEADS = ("lm_head.", "quantizer.", "project_")
OLD = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}


@functools.cache
def load(name):
    return encoders.load(GOLDEN / name)


@functools.cache
def expected(name):
    with np.load(GOLDEN / name / "expected.npz") as file:
        return dict(file)


def group(name, prefix):
    found = expected(name)
    return {k.removeprefix(prefix): x for k, x in found.items() if k.startswith(prefix)}


@functools.cache
def run(name):
    """Features and outputs, those with hidden frames, and gradients of a function of the last."""
    encoder, given = load(name), group(name, "inputs/")
    waveform, mask = given["waveform"], given["mask"] == 1
    cotangent = expected(name)["cotangents/tokens"]

    def loss(params):
        def apply(**options):
            return encoder.module.apply({"params": params}, waveform, mask=mask, **options)

        features = encoder.module.apply(
            {"params": params}, waveform, mask, method=encoder.module.features
        )
        masked = apply(features=features, masked=given["hidden"]).tokens
        return (masked * cotangent).sum(), (features, apply(layers="all"), masked)

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, found), gradients = compiled(encoder.variables["params"])
    return found, gradients


def real(name, x):
    """Of [..., B, T, D] what stands on real frames."""
    return np.asarray(x)[..., expected(name)["inputs/frames"], :]


@pytest.mark.parametrize("name", NAMES)
def test_features_outputs_and_every_layer(name):
    (features, out, masked), want = run(name)[0], group(name, "outputs/")
    np.testing.assert_array_equal(features[1], expected(name)["inputs/frames"])
    np.testing.assert_array_equal(out.mask, features[1])
    hidden = np.stack([out.hidden[layer] for layer in (0, 1)])
    pairs = {"features": features[0], "hidden": hidden, "tokens": out.tokens}
    pairs["masked_tokens"] = masked
    assert set(want) == set(pairs)
    for key, got in pairs.items():
        np.testing.assert_allclose(
            real(name, got), real(name, want[key]), rtol=0, atol=ATOL, err_msg=key
        )


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name, tmp_path):
    # Written as if they were weights: under the names of transformers.
    carrier = dataclasses.replace(load(name), variables={"params": run(name)[1]})
    encoders.save(carrier, tmp_path / "out", format="hf")
    ours, theirs = files.read_tensors(tmp_path / "out"), group(name, "gradients/")
    theirs = {old_style(key): value for key, value in theirs.items()}
    assert set(ours) == set(theirs)
    for key, gradient in theirs.items():
        np.testing.assert_allclose(ours[key], gradient, rtol=0, atol=2e-5, err_msg=key)


def old_style(key):
    for old, new in OLD.items():
        key = key.replace(new, old)
    return key


@pytest.mark.parametrize("name", NAMES)
def test_export_of_import_is_the_same_bits(name, tmp_path):
    encoder = load(name)
    encoders.save(encoder, tmp_path / "out", format="hf", heads=bool(encoder.heads))
    before = {old_style(k): x for k, x in files.read_tensors(GOLDEN / name).items()}
    chex.assert_trees_all_equal(files.read_tensors(tmp_path / "out"), before)
    # The config means the same; its defaults are spelt out.
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    given = json.loads((GOLDEN / name / "config.json").read_text())
    own = {"encoders", "bos_token_id", "eos_token_id"}
    assert {k: given[k] for k in after if k not in own} == {
        k: x for k, x in after.items() if k not in own
    }
    again = encoders.load(tmp_path / "out")
    assert again.module == encoder.module
    assert again.preprocessing == encoder.preprocessing
    assert again.objective == encoder.objective
    chex.assert_trees_all_equal(again.variables, encoder.variables)


def test_parameters_of_published_sizes_are_those_of_transformers():
    counts = json.loads((GOLDEN / "parameters.json").read_text())
    for name, variants in counts.items():
        for variant, count in variants.items():
            module = MODELS[name](variant, scan=True)
            waveform = jax.ShapeDtypeStruct((1, 400), jnp.float32)
            tree = jax.eval_shape(module.init, jax.random.key(0), waveform)
            assert sum(x.size for x in jax.tree.leaves(tree["params"])) == count, (name, variant)
