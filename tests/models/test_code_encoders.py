"""Encoders of code: equal to RoBERTas of transformers with the papers' masks, and who sees whom.

Written by `python -m tools.golden.write_code`; read here without PyTorch.
"""

import dataclasses
import functools
import pathlib

import chex
import jax
import numpy as np
import pytest

import encoders
from encoders.checkpoints.formats import files
from encoders.errors import ConfigError
from encoders.models.graphcodebert import GraphCodeBERT, graph_mask
from encoders.models.unixcoder import UniXcoder, prefix_mask
from encoders.rules import unflatten

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "code"
CASES = {"graphcodebert": GraphCodeBERT, "unixcoder": UniXcoder}
ATOL = 5e-6


@functools.cache
def expected(name):
    with np.load(GOLDEN / name / "expected.npz") as file:
        return unflatten(dict(file))


@functools.cache
def load(name):
    """The RoBERTa that is there, as our encoder of code with the same parameters."""
    encoder = encoders.load(GOLDEN / name)
    fields = {
        field.name: getattr(encoder.module, field.name)
        for field in dataclasses.fields(encoder.module)
        if field.name not in ("parent", "name")
    }
    return dataclasses.replace(encoder, module=CASES[name](**{**fields, "pool": "cls"}))


def given(name):
    arrays = expected(name)["inputs"].items()
    return {k: np.array(v, bool if v.dtype == bool else np.int32) for k, v in arrays}


@functools.cache
def run(name):
    encoder, want = load(name), expected(name)
    inputs = given(name)
    params = {k: v for k, v in encoder.variables["params"].items() if k != "pooler"}

    def loss(params):
        out = encoder.module.apply({"params": params}, **inputs, layers="all")
        return (out.tokens * want["cotangents"]["tokens"]).sum(), out

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, out), gradients = compiled(params)
    return out, gradients


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_those_of_transformers(name, tmp_path):
    (out, gradients), want = run(name), expected(name)
    real = want["inputs"]["segments"] > 0
    np.testing.assert_array_equal(out.mask, real)
    # What padding is turned into matters to nobody.
    np.testing.assert_allclose(out.tokens[real], want["outputs"]["tokens"][real], rtol=0, atol=ATOL)
    for layer, hidden in enumerate(want["outputs"]["hidden"]):
        np.testing.assert_allclose(out.hidden[layer][real], hidden[real], rtol=0, atol=ATOL)
    # Written as if they were weights: under the names of transformers.
    roberta = encoders.load(GOLDEN / name)
    module = roberta.module.clone(pool="cls")
    carrier = dataclasses.replace(roberta, module=module, variables={"params": gradients})
    encoders.save(carrier, tmp_path / "out", format="hf")
    ours = files.read_tensors(tmp_path / "out")
    with np.load(GOLDEN / name / "expected.npz") as file:
        keys = [key for key in file.files if key.startswith("gradients/")]
        theirs = {key.removeprefix("gradients/"): file[key] for key in keys}
    assert set(theirs) == set(ours)
    for key, gradient in theirs.items():
        np.testing.assert_allclose(ours[key], gradient, rtol=0, atol=2e-5, err_msg=key)


@pytest.mark.parametrize("name", CASES)
def test_they_are_written_as_robertas_and_read_as_what_they_are(name, tmp_path):
    encoder = load(name)
    params = {k: v for k, v in encoder.variables["params"].items() if k != "pooler"}
    encoder = dataclasses.replace(encoder, variables={"params": params})
    encoders.save(encoder, tmp_path / "out", format="hf")
    assert files.read_json(tmp_path / "out" / "config.json")["model_type"] == "roberta"
    again = encoders.load(tmp_path / "out")
    assert again.module == encoder.module
    chex.assert_trees_all_equal(again.variables, encoder.variables)


def test_without_nodes_and_prefix_they_are_robertas():
    ids = np.arange(5, 13, dtype=np.int32)[None]
    segments = np.array([[1, 1, 1, 1, 1, 1, 0, 0]], np.int32)
    outs = []
    for name in CASES:
        plain = encoders.load(GOLDEN / name)
        pair = (load(name).module, plain.module.clone(pool="cls"))
        params = {k: v for k, v in plain.variables["params"].items() if k != "pooler"}
        for module in pair:
            apply = jax.jit(module.apply)
            outs.append(apply({"params": params}, ids, segments=segments).tokens)
        np.testing.assert_array_equal(outs[-2], outs[-1])


def test_the_graph_says_who_sees_whom():
    """[CLS] w [SEP] a b [SEP] pad, and nodes a, b, none: b comes from a."""
    segments = np.array([[1, 1, 1, 1, 1, 1, 0, 1, 1, 0]], np.int32)
    sees_all = np.zeros((1, 10), bool)
    sees_all[0, [0, 2, 5]] = True
    spans = np.array([[[3, 4], [4, 5], [0, 0]]], np.int32)
    sources = np.zeros((1, 3, 3), bool)
    sources[0, 1, 0] = True
    mask = np.asarray(graph_mask(segments, sees_all, spans, sources))[0]
    want = """
        XXXXXX.XX.
        XXXXXX....
        XXXXXX.XX.
        XXXXXX.X..
        XXXXXX..X.
        XXXXXX.XX.
        ..........
        ...X...X..
        ....X..XX.
        ..........
    """
    drawn = ["".join(".X"[int(cell)] for cell in row) for row in mask]
    assert drawn == want.split()
    hidden = np.asarray(
        graph_mask(segments, sees_all, spans, sources, np.array([[True, False, True]]))
    )[0]
    changed = mask & ~hidden
    assert np.argwhere(changed).tolist() == [[4, 8], [8, 4]]
    assert not (hidden & ~mask).any()


def test_the_mode_says_who_sees_whom():
    segments = np.array([[1, 1, 1, 1, 0]] * 3, np.int32)
    masks = np.asarray(prefix_mask(segments, np.array([5, 0, 2], np.int32)))
    drawn = [["".join(".X"[int(cell)] for cell in row) for row in mask[:4]] for mask in masks]
    assert drawn == [
        ["XXXX.", "XXXX.", "XXXX.", "XXXX."],  # encoder-only
        ["X....", "XX...", "XXX..", "XXXX."],  # decoder-only
        ["XX...", "XX...", "XXX..", "XXXX."],  # encoder-decoder, a source of two
    ]
    assert not masks[:, 4].any()


def test_a_node_has_no_word_of_its_own():
    other = given("graphcodebert")
    other["ids"][:, 11:] = 7
    (out, _), encoder = run("graphcodebert"), load("graphcodebert")
    params = {k: v for k, v in encoder.variables["params"].items() if k != "pooler"}
    apply = jax.jit(encoder.module.apply)
    real = out.mask
    again = apply({"params": params}, **other)
    np.testing.assert_allclose(again.tokens[real], out.tokens[real], rtol=0, atol=1e-6)


def test_nodes_need_a_graph():
    module = load("graphcodebert").module
    ids, spans = np.ones((1, 8), np.int32), np.zeros((1, 2, 2), np.int32)
    with pytest.raises(ConfigError, match="nodes come with segments, sees_all and node_sources"):
        jax.eval_shape(module.init, jax.random.key(0), ids, node_spans=spans)
    ids, spans = np.ones((1, 20), np.int32), np.zeros((1, 2, 2), np.int32)
    graph = {"sees_all": ids > 0, "node_sources": np.zeros((1, 2, 2), bool), "segments": ids}
    with pytest.raises(ConfigError, match="18 tokens are more than the 12 that there are"):
        jax.eval_shape(module.init, jax.random.key(0), ids, node_spans=spans, **graph)
