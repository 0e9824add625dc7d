"""Heads of transformers' pretraining models: scores, losses and gradients, and files both ways.

Written by `python -m tools.golden.write_text`; read here without PyTorch.
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
from encoders.config import build
from encoders.errors import CheckpointError
from encoders.objectives import OBJECTIVES
from encoders.objectives.corruption import Corrupted

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "text"
ATOL = 1e-5


@functools.cache
def expected(name):
    with np.load(GOLDEN / name / "expected.npz") as file:
        return dict(file)


def has_heads(name):
    with np.load(GOLDEN / name / "expected.npz") as file:
        return "heads/loss" in file.files


NAMES = [path.name for path in sorted(GOLDEN.iterdir()) if path.is_dir() and has_heads(path.name)]
MASKED = [name for name in NAMES if name != "electra_pretraining"]


@functools.cache
def load(name):
    return encoders.load(GOLDEN / name)


def objective(encoder, **fields):
    section = {**encoder.objective, **fields}
    return build(OBJECTIVES, section, "objective", encoder=encoder.module)


def batch_of(name):
    """The three texts that have tokens, padded behind, as our objectives take them."""
    batch = {}
    for ours, theirs in (
        ("ids", "input_ids"),
        ("segments", "attention_mask"),
        ("token_types", "token_type_ids"),
    ):
        if f"inputs/{theirs}" in expected(name):
            batch[ours] = expected(name)[f"inputs/{theirs}"][:3].astype(np.int32)
            batch[ours][1] = batch[ours][1, ::-1]
    for key in ("next_sentence_label", "sentence_order_label"):
        if f"heads/labels/{key}" in expected(name):
            batch["label"] = expected(name)[f"heads/labels/{key}"].astype(np.int32)
    return batch


def corrupted_of(name, ids):
    """What is predicted there, at the three places that the most predicted text has."""
    labels = expected(name)["heads/labels/labels"]
    order = np.argsort(labels < 0, axis=1, kind="stable")[:, :3].astype(np.int32)
    labels = np.take_along_axis(labels, order, axis=1)
    used = (labels >= 0).astype(np.float32)
    return Corrupted(ids, order, np.maximum(labels, 0).astype(np.int32), used)


@functools.cache
def run(name):
    """(outcome, scores of all tokens, scores of pairs), and gradients of the loss."""
    encoder, batch = load(name), batch_of(name)
    module = objective(encoder)
    params = {"encoder": encoder.variables["params"], **encoder.heads}

    def masked(module, batch):
        encoded = module.encode(batch)
        outcome = module.outcome(batch, corrupted_of(name, batch["ids"]), encoded)
        pairs = None if module.pair is None else module.pair_scores(encoded)
        # What transformers calls the loss: the mean over tokens, plus that over pairs.
        losses = [outcome.metrics[key] for key in ("token_loss", "pair_loss") if pairs is not None]
        losses = losses or [(outcome.loss, outcome.weight)]
        return sum(total / weight for total, weight in losses), module.scores(encoded), pairs

    def replaced(module, batch):
        scores = module.scores(batch, batch["ids"])
        labels = expected(name)["heads/labels/labels"] == 1
        losses = jax.nn.softplus(jnp.where(labels, -scores, scores)) * batch["segments"]
        return losses.sum() / batch["segments"].sum(), scores, None

    def loss(params):
        method = masked if name in MASKED else replaced
        value, *scores = module.apply({"params": params}, batch, method=method)
        return value, scores

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, scores), gradients = compiled(params)
    return value, scores, gradients


@pytest.mark.parametrize("name", NAMES)
def test_scores_and_loss(name):
    value, (scores, pairs), _ = run(name)
    want = expected(name)
    named = [k for k in ("heads/prediction_logits", "heads/logits") if k in want]
    real = batch_of(name)["segments"] > 0  # padding sees other keys there
    np.testing.assert_allclose(scores[real], want[named[0]][real], rtol=0, atol=ATOL)
    for key in ("heads/seq_relationship_logits", "heads/sop_logits"):
        if key in want:
            np.testing.assert_allclose(pairs, want[key], rtol=0, atol=ATOL)
    np.testing.assert_allclose(value, want["heads/loss"], rtol=0, atol=ATOL)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_heads_and_of_the_tied_table(name, tmp_path):
    _, _, gradients = run(name)
    heads = dict(gradients)
    carrier = dataclasses.replace(
        load(name), variables={"params": heads.pop("encoder")}, heads=heads
    )
    encoders.save(carrier, tmp_path / "out", format="hf", heads=True)
    ours, prefix = files.read_tensors(tmp_path / "out"), "heads/gradients/"
    theirs = {k.removeprefix(prefix): v for k, v in expected(name).items() if prefix in k}
    assert len(theirs) >= 5
    for key, gradient in theirs.items():
        np.testing.assert_allclose(ours[key], gradient, rtol=0, atol=ATOL, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_export_of_import_is_the_same_bits(name, tmp_path):
    encoder = load(name)
    encoders.save(encoder, tmp_path / "out", format="hf", heads=True)
    before = files.read_tensors(GOLDEN / name)
    assert encoder.metadata["dropped"] == {}
    for decoder, other in (
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
        ("lm_head.decoder.bias", "lm_head.bias"),
    ):
        if decoder in before:
            before[other] = before[decoder]  # which untied models do not use
    chex.assert_trees_all_equal(files.read_tensors(tmp_path / "out"), before)
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    given = json.loads((GOLDEN / name / "config.json").read_text())
    for key in ("architectures", "model_type", "tie_word_embeddings"):
        if key in after:
            assert after[key] == given[key]
    again = encoders.load(tmp_path / "out")
    assert again.objective == encoder.objective
    chex.assert_trees_all_equal(again.heads, encoder.heads)


def test_what_heads_there_are():
    assert load("bert_pretraining").objective == {"name": "masked_language", "pair": "nsp"}
    assert load("albert_pretraining").objective == {"name": "masked_language", "pair": "sop"}
    assert load("roberta_tied").objective == {"name": "masked_language"}
    untied = {"name": "masked_language", "head": {"tied": False}}
    assert load("roberta_mlm").objective == load("bert_mlm").objective == untied
    assert load("electra_pretraining").objective == {"name": "replaced_token"}
    assert set(load("bert_mlm").heads["head"]) == {"dense", "norm", "bias", "words"}
    assert set(load("distilbert").heads["head"]) == {"dense", "norm", "bias"}


@pytest.fixture
def copy(tmp_path):
    """Copies a golden directory, with its tensors changed."""

    def make(name, change):
        directory = tmp_path / "changed"
        directory.mkdir()
        files.write_json(
            directory / "config.json", json.loads((GOLDEN / name / "config.json").read_text())
        )
        tensors = dict(files.read_tensors(GOLDEN / name))
        files.write_tensors(directory / "model.safetensors", change(tensors))
        return directory

    return make


def test_a_tied_file_may_hold_the_table_and_the_bias_twice(copy):
    def change(tensors):
        tensors["cls.predictions.decoder.weight"] = tensors[
            "bert.embeddings.word_embeddings.weight"
        ].copy()
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].copy()
        return tensors

    found = encoders.load(copy("bert_pretraining", change))
    assert set(found.metadata["dropped"]) == {
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
    }
    chex.assert_trees_all_equal(found.heads, load("bert_pretraining").heads)


def test_an_untied_file_of_transformers_4_holds_one_bias(copy):
    def change(tensors):
        tensors["lm_head.bias"] = tensors.pop("lm_head.decoder.bias")
        return tensors

    found = encoders.load(copy("roberta_mlm", change))
    chex.assert_trees_all_equal(found.heads, load("roberta_mlm").heads)


@pytest.mark.parametrize(
    "name, section, message",
    [
        (
            "roberta_tied",
            {"head": {"activation": "relu"}},
            "objective.head.activation='relu' cannot be expressed for roberta: there it is 'gelu'",
        ),
        ("roberta_tied", {"pair": "nsp"}, "'masked_language' cannot be expressed for roberta as"),
        ("bert_pretraining", {"pair": "sop"}, "cannot be expressed for bert as it is; heads"),
    ],
)
def test_what_a_family_has_no_heads_for_is_refused(name, section, message, tmp_path):
    encoder = load(name)
    changed = dataclasses.replace(encoder, objective={**encoder.objective, **section})
    with pytest.raises(CheckpointError, match=message):
        encoders.save(changed, tmp_path / "out", format="hf", heads=True)


def test_native_directories_keep_heads(tmp_path):
    encoder = load("bert_mlm")
    encoders.save(encoder, tmp_path / "out", heads=True)
    again = encoders.load(tmp_path / "out")
    assert objective(again) == objective(encoder)
    chex.assert_trees_all_equal(again.heads, encoder.heads)
