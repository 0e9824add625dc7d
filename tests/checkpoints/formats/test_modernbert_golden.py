"""ModernBERTs that transformers wrote: outputs, hidden states, scores, gradients, both ways.

Written by `python -m tools.golden.write_modernbert`; read here without PyTorch.
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
from encoders.checkpoints.formats.mapping import flatten
from encoders.errors import CheckpointError
from encoders.layers.stack import stack_layers
from encoders.objectives.heads import VocabularyHead

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "modernbert"
NAMES = ("biases", "masked", "plain", "untied")


@functools.cache
def load(name):
    return encoders.load(GOLDEN / name)


@functools.cache
def expected(name):
    with np.load(GOLDEN / name / "expected.npz") as file:
        return dict(file)


def score(encoder, params, out):
    """The masked-token scores of an encoder with a head, else its tokens."""
    if not encoder.heads:
        return out.tokens
    tied = (encoder.objective.get("head") or {}).get("tied")
    head, table = VocabularyHead(tied=tied), params["encoder"]["embeddings"]["words"]
    return head.apply({"params": params["head"]}, out.tokens, encoder.module, table)


def value_and_gradients(name, scan=False):
    encoder, want = load(name), expected(name)
    ids, mask = want["input_ids"].astype(np.int32), want["attention_mask"] == 1
    module = encoder.module.clone(scan=scan)
    params = {"encoder": encoder.variables["params"], **encoder.heads}
    params = stack_layers(params) if scan else params

    def loss(params):
        out = module.apply({"params": params["encoder"]}, ids, mask=mask, layers="all")
        scores = score(encoder, params, out)
        return (scores * want["cotangent"]).sum(), (out, scores)

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, (out, scores)), gradients = compiled(jax.tree.map(jnp.asarray, params))
    return out, scores, gradients


run = functools.cache(value_and_gradients)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_every_layer(name):
    (out, scores, _), want = run(name), expected(name)
    # Padding far from any text sees nothing; what it is then, is of no meaning.
    real = want["attention_mask"] == 1
    np.testing.assert_allclose(out.tokens[real], want["tokens"][real], rtol=0, atol=1e-5)
    np.testing.assert_allclose(scores[real], want["output"][real], rtol=0, atol=1e-5)
    assert np.isfinite(out.tokens).all()
    assert sorted(out.hidden) == list(range(len(want["hidden"])))
    for layer, hidden in enumerate(want["hidden"]):
        np.testing.assert_allclose(out.hidden[layer][real], hidden[real], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(out.pooled, out.tokens[:, 0])


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name, tmp_path):
    """Written as if they were weights: under the names of transformers."""
    encoder, (_, _, gradients) = load(name), run(name)
    gradients = jax.tree.map(np.asarray, gradients)
    carrier = dataclasses.replace(
        encoder, variables={"params": gradients.pop("encoder")}, heads=gradients
    )
    encoders.save(carrier, tmp_path / "out", format="hf", heads=bool(gradients))
    ours, prefix = files.read_tensors(tmp_path / "out"), "gradients/"
    theirs = {k.removeprefix(prefix): v for k, v in expected(name).items() if prefix in k}
    assert set(ours) == set(theirs)
    # PyTorch gives no gradient to the row of the padding token where it is looked up.
    words = next(key for key in ours if key.endswith("tok_embeddings.weight"))
    ours[words], theirs[words] = ours[words][1:], theirs[words][1:]
    for key, gradient in theirs.items():
        np.testing.assert_allclose(ours[key], gradient, rtol=0, atol=2e-5, err_msg=key)


def test_scanned_layers_compute_the_same():
    """The first layer stands alone, global and local ones are one program."""
    (out, _, gradients), (scanned, _, others) = run("plain"), value_and_gradients("plain", True)
    np.testing.assert_allclose(scanned.tokens, out.tokens, rtol=0, atol=1e-5)
    for layer in out.hidden:
        np.testing.assert_allclose(scanned.hidden[layer], out.hidden[layer], rtol=0, atol=1e-5)
    assert set(others["encoder"]) == {"embeddings", "norm", "blocks_0", "blocks_rest"}
    chex.assert_trees_all_close(stack_layers(gradients), others, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_export_of_import_is_the_same_bits(name, tmp_path):
    encoder = load(name)
    assert encoder.metadata["dropped"].keys() <= {"decoder.weight"}
    encoders.save(encoder, tmp_path / "out", format="hf", heads=bool(encoder.heads))
    before = files.read_tensors(GOLDEN / name)
    chex.assert_trees_all_equal(files.read_tensors(tmp_path / "out"), before)
    given = json.loads((GOLDEN / name / "config.json").read_text())
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    assert after["architectures"] == given["architectures"]
    again = encoders.load(tmp_path / "out")
    assert again.module == encoder.module
    assert again.objective == encoder.objective
    chex.assert_trees_all_equal(flatten(again.variables), flatten(encoder.variables))


@pytest.mark.parametrize(
    "config, message",
    [
        ({"hidden_activation": "relu"}, "hidden_activation 'relu' is not supported"),
        ({"mlp_dropout": 0.1}, "mlp_dropout=0.1 is not supported, only 0"),
        ({"layer_types": ["sliding_attention"] * 5}, "layer_types are not supported unless every"),
        ({"local_attention": "4"}, "local_attention='4' in config.json makes no sense"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "rope_type 'yarn' is not supported, only 'default'",
        ),
        ({"norm_bias": True}, "missing: embeddings.norm.bias, final_norm.bias"),
    ],
)
def test_what_is_not_supported_is_refused(config, message, tmp_path):
    fields = json.loads((GOLDEN / "plain" / "config.json").read_text())
    files.write_json(tmp_path / "config.json", {**fields, **config})
    files.write_tensors(tmp_path / "model.safetensors", files.read_tensors(GOLDEN / "plain"))
    with pytest.raises(CheckpointError, match=message):
        encoders.load(tmp_path)


def test_words_of_transformers_4_are_read(tmp_path):
    fields = json.loads((GOLDEN / "biases" / "config.json").read_text())
    del fields["layer_types"], fields["rope_parameters"]
    old = {"global_attn_every_n_layers": 2, "local_rope_theta": 500.0}
    files.write_json(tmp_path / "config.json", {**fields, **old})
    files.write_tensors(tmp_path / "model.safetensors", files.read_tensors(GOLDEN / "biases"))
    want = load("biases").module.clone(local_temperature=500.0)
    assert encoders.load(tmp_path).module == want


def test_goldens_are_small():
    assert sum(file.stat().st_size for file in GOLDEN.rglob("*")) < 300_000
