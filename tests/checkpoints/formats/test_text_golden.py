"""Text encoders that transformers wrote: outputs, hidden states, gradients and names, both ways.

Written by `python -m tools.golden.write_text`; read here without PyTorch.
"""

import dataclasses
import functools
import json
import pathlib

import chex
import jax
import numpy as np
import pytest
import round_trip

import encoders
from encoders.checkpoints.formats import files
from encoders.errors import CheckpointError
from encoders.rules import unflatten

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "text"
NAMES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
ATOL = 5e-6
# What heads are called beside the encoder; they are compared in test_heads_golden.py.
HEADS = ("cls.", "lm_head.", "vocab_", "predictions.", "sop_classifier.", "generator_")
HEADS += ("discriminator_", "lm_predictions.")


@functools.cache
def load(name):
    return encoders.load(GOLDEN / name)


@functools.cache
def expected(name):
    with np.load(GOLDEN / name / "expected.npz") as file:
        return unflatten(dict(file))


def inputs(name):
    """As our models take them."""
    given = expected(name)["inputs"]
    found = {"mask": given["attention_mask"] == 1}
    if "token_type_ids" in given:
        found["token_types"] = given["token_type_ids"].astype(np.int32)
    return given["input_ids"].astype(np.int32), found


@functools.cache
def run(name):
    """Outputs, and gradients of the stored linear function of them."""
    encoder, (ids, rest) = load(name), inputs(name)
    cotangents = expected(name)["cotangents"]

    def loss(params):
        out = encoder.module.apply({"params": params}, ids, **rest, layers="all")
        return sum((getattr(out, k) * v).sum() for k, v in cotangents.items()), out

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, out), gradients = compiled(encoder.variables["params"])
    return out, gradients


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_every_layer(name):
    (out, _), want = run(name), expected(name)["outputs"]
    np.testing.assert_allclose(out.tokens, want["tokens"], rtol=0, atol=ATOL)
    assert sorted(out.hidden) == list(range(len(want["hidden"])))
    for layer, hidden in enumerate(want["hidden"]):
        np.testing.assert_allclose(out.hidden[layer], hidden, rtol=0, atol=ATOL)
    pooled = want.get("pooled", want["tokens"][:, 0])
    np.testing.assert_allclose(out.pooled, pooled, rtol=0, atol=ATOL)
    _, rest = inputs(name)
    assert not rest["mask"][3].any()  # a row of only padding
    np.testing.assert_array_equal(out.mask, rest["mask"])


def test_a_loaded_encoder_is_called_with_ids_mask_and_token_types():
    ids, rest = inputs("bert")
    out = load("bert")(ids, **rest)
    want = expected("bert")["outputs"]
    np.testing.assert_allclose(out.tokens, want["tokens"], rtol=0, atol=ATOL)
    np.testing.assert_allclose(out.pooled, want["pooled"], rtol=0, atol=ATOL)


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name, tmp_path):
    _, gradients = run(name)
    # Written as if they were weights: under the names of transformers.
    carrier = dataclasses.replace(load(name), variables={"params": gradients})
    encoders.save(carrier, tmp_path / "out", format="hf")
    ours = files.read_tensors(tmp_path / "out")
    theirs = expected_gradients(name)
    assert set(ours) == set(theirs)
    # PyTorch gives no gradient to the rows of the padding token and its position; ours have one.
    pad_id = json.loads((GOLDEN / name / "config.json").read_text())["pad_token_id"]
    ours["embeddings.word_embeddings.weight"][pad_id] = 0
    if name.startswith("roberta"):
        ours["embeddings.position_embeddings.weight"][pad_id] = 0
    for key, gradient in theirs.items():
        np.testing.assert_allclose(ours[key], gradient, rtol=0, atol=2e-5, err_msg=key)


def expected_gradients(name):
    with np.load(GOLDEN / name / "expected.npz") as file:
        prefix = "gradients/"
        return {k.removeprefix(prefix): file[k] for k in file.files if k.startswith(prefix)}


@pytest.mark.parametrize("name", NAMES)
def test_export_of_import_is_the_same_bits(name, tmp_path):
    encoder, family = load(name), name.split("_")[0]
    before = {
        key.removeprefix(f"{family}."): value
        for key, value in files.read_tensors(GOLDEN / name).items()
    }
    before = {key: value for key, value in before.items() if not key.startswith(HEADS)}
    own = {"architectures", "encoders", "hidden_act"}
    round_trip.export(encoder, GOLDEN / name, before, own, tmp_path / "out")


def test_native_directories_keep_text_encoders(tmp_path):
    encoder = load("albert")
    encoders.save(encoder, tmp_path / "out")
    again = encoders.load(tmp_path / "out")
    assert type(again) is type(encoder)
    assert again.module == encoder.module
    chex.assert_trees_all_equal(again.variables, encoder.variables)


def test_heads_of_other_tasks_are_left_out_and_said(copy):
    def rename(key):
        return key.replace("cls.seq_relationship", "classifier")

    found = encoders.load(copy("bert_pretraining", rename=rename))
    assert set(found.metadata["dropped"]) == {"classifier.weight", "classifier.bias"}
    assert found.objective == {"name": "masked_language"}
    assert load("bert").metadata["dropped"] == {}
    assert load("bert").objective is None
    assert load("bert_pretraining").module.pool == "pooler"
    assert load("roberta_mlm").module.pool == "cls"  # masked-token models have no pooler


@pytest.fixture
def copy(tmp_path):
    """Copies a golden directory, with its config and the names of its tensors changed."""

    def make(name, config=None, rename=lambda key: key):
        return round_trip.copy(GOLDEN / name, tmp_path / name, config, rename)

    return make


def test_names_of_the_first_released_weights(copy):
    """Those of bert-base-uncased are still called so."""

    def rename(key):
        key = key.replace("LayerNorm.weight", "LayerNorm.gamma")
        return key.replace("LayerNorm.bias", "LayerNorm.beta")

    found = encoders.load(copy("bert_pretraining", rename=rename))
    chex.assert_trees_all_equal(found.variables, load("bert_pretraining").variables)


@pytest.mark.parametrize(
    "name, config, message",
    [
        ("bert", {"model_type": "brt"}, "model_type 'brt' is not supported. Did you mean 'bert'"),
        ("bert", {"hidden_act": "mish"}, "hidden_act 'mish' is not supported"),
        ("distilbert", {"activation": "gel"}, "activation 'gel' is not supported. Did you mean"),
        ("bert", {"position_embedding_type": "relative_key"}, "only 'absolute'"),
        ("bert", {"is_decoder": True}, "is_decoder=True is not supported, only False"),
        ("albert", {"num_hidden_groups": 2}, "num_hidden_groups=2 is not supported, only 1"),
        ("roberta", {"pad_token_id": None}, "pad_token_id=None in config.json makes no sense"),
        ("bert", {"vocab_size": 24}, r"word_embeddings.weight is \(23, 12\), not \(24, 12\)"),
        ("bert", {"num_hidden_layers": 1}, "unknown: encoder.layer.1.attention.output.LayerNorm"),
        ("electra", {"hidden_size": "12"}, "hidden_size='12' in config.json makes no sense"),
    ],
)
def test_what_is_not_supported_is_refused(copy, name, config, message):
    with pytest.raises(CheckpointError, match=message):
        encoders.load(copy(name, config))


@pytest.mark.parametrize(
    "name, fields, message",
    [
        ("bert", {"pad_id": 0}, "pad_id=0 cannot be expressed for bert"),
        ("roberta", {"pad_id": None}, "pad_id=None cannot be expressed for roberta"),
        ("albert", {"shared": False}, "shared=False cannot be expressed for albert"),
        ("distilbert", {"norm_eps": 1e-5}, "norm_eps=1e-05 cannot be expressed for distilbert"),
        ("bert", {"pool": "mean"}, "Hugging Face bert: has no place for pooler/bias"),
    ],
)
def test_what_a_family_has_not_is_refused(name, fields, message, tmp_path):
    round_trip.refused(load(name), fields, message, tmp_path / "out")


def test_goldens_are_small():
    assert sum(file.stat().st_size for file in GOLDEN.rglob("*")) < 700_000
