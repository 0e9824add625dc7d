"""Vectors of sentences and cross-encoders, against sentence-transformers and on many devices."""

import functools
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from encoders.config import build
from encoders.data import TextPreprocessing, Vocabulary
from encoders.errors import ConfigError
from encoders.layers.pooling import POOLINGS, pool
from encoders.models.bert import BERT
from encoders.objectives import OBJECTIVES
from encoders.objectives.base import Objective
from encoders.objectives.ranking import ranking_losses
from encoders.objectives.sentence import contrast, cosent, pair_features, triplet_distances
from encoders.parallel.mesh import make_mesh
from encoders.training.experiment import Experiment
from tests.objectives.stepping import one_step

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "sentence.npz"
TINY = {
    "width": 12,
    "depth": 1,
    "mlp_dim": 20,
    "num_heads": 3,
    "vocab_size": 23,
    "max_length": 9,
    "num_token_types": 2,
}
ENCODER = BERT(**TINY)
ROWS, LENGTH = 8, 5


@functools.cache
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def close(a, b, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


# --- against sentence-transformers ----------------------------------------------------------------


@pytest.mark.parametrize("how", POOLINGS)
def test_pooling_is_that_of_sentence_transformers(how):
    tokens, mask = golden()["pooling/tokens"], golden()["pooling/mask"]
    close(pool(tokens, mask, how), golden()[f"pooling/{how}"], 1e-6)
    nothing = jnp.zeros_like(mask)
    assert not pool(tokens, nothing, how).any()
    gradient = jax.grad(lambda x: jnp.square(pool(x, nothing, how)).sum())(tokens)
    assert not np.asarray(gradient).any()


ALL = np.ones(6, np.float32)
LOSSES = {
    "contrast": lambda x: contrast(x, ALL, 1 / 20)[0].mean(),
    "contrast_hard": lambda x: contrast(x, ALL, 1 / 20)[0].mean(),
    "contrast_cold": lambda x: contrast(x, ALL, 1 / 50)[0].mean(),
    "triplet": lambda x: jax.nn.relu(jnp.subtract(*triplet_distances(x)) + 5).mean(),
    "cosent": lambda x: cosent(x, golden()["cosent/label"], ALL, 20.0),
    "pair": lambda x: optax.softmax_cross_entropy_with_integer_labels(
        pair_features(x) @ golden()["pair/kernel"] + golden()["pair/bias"], golden()["pair/label"]
    ).mean(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_those_of_sentence_transformers(name):
    value, gradient = jax.jit(jax.value_and_grad(LOSSES[name]))(golden()[f"{name}/vectors"])
    close(value, golden()[f"{name}/value"])
    close(gradient, golden()[f"{name}/gradient"])


@pytest.mark.parametrize("name", ["binary", "regression", "pairwise", "listwise"])
def test_losses_of_cross_encoders_are_those_of_sentence_transformers(name):
    losses = ranking_losses(golden()[f"{name}/logits"], golden().get(f"{name}/label"), name)
    close(losses.mean(), golden()[f"{name}/value"])


# --- whole objectives -----------------------------------------------------------------------------


def objective(name, **fields):
    return build(OBJECTIVES, {"name": name, **fields}, "objective", encoder=ENCODER)


def batch(texts, **goal):
    """Texts of 1 to LENGTH tokens."""
    rng = np.random.default_rng(0)
    shape = (ROWS, LENGTH) if texts is None else (ROWS, texts, LENGTH)
    length = rng.integers(1, LENGTH + 1, shape[:-1])[..., None]
    found = {
        "ids": rng.integers(5, 23, shape).astype(np.int32),
        "segments": (np.arange(LENGTH) < length).astype(np.int32),
        "row": np.arange(ROWS, dtype=np.int32),
    }
    return {**found, **goal}


CLASSES = np.arange(ROWS, dtype=np.int32) % 3
SCORES = np.random.default_rng(1).uniform(0, 5, ROWS).astype(np.float32)
CASES = {
    "simcse": (objective("sentence_contrast", num_texts=1, projection=True), batch(1)),
    "contrast": (objective("sentence_contrast", num_texts=3, pooling="mean"), batch(3)),
    "triplet": (objective("sentence_triplet", pooling="max"), batch(3)),
    "score": (objective("sentence_score", pooling="weighted_mean"), batch(2, score=SCORES)),
    "pair": (objective("sentence_pair", num_classes=3), batch(2, label=CLASSES)),
    "listwise": (objective("ranking", loss="listwise", num_candidates=3, dropout=0.1), batch(3)),
    "binary": (objective("ranking"), batch(None, label=SCORES / 5)),
}


@functools.cache
def initial(name):
    module, given = CASES[name]
    init = functools.partial(module.init, jax.random.key(0), train=False)
    shapes = jax.eval_shape(init, given)["params"]
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype("f4"), shapes)


@pytest.mark.parametrize("name", CASES)
def test_padding_examples_count_for_nothing(name):
    """Whatever stands in them, as a loss or as others' negatives."""
    module, given = CASES[name]
    valid = np.arange(ROWS) < 5
    apply = jax.jit(functools.partial(module.apply, train=False))
    given = {**given, "valid": valid}
    others = {key: np.concatenate([x[:5], x[4:1:-1]]) for key, x in given.items()}
    others["valid"] = valid
    outcomes = [apply({"params": initial(name)}, batch) for batch in (given, others)]
    chex.assert_trees_all_close(*outcomes, atol=1e-4)
    assert float(outcomes[0].weight) == 5
    assert np.isfinite(outcomes[0].loss)


def run(name, mesh):
    """Loss and gradients of one training step, dropout included."""
    return run_module(CASES[name][0], name, mesh)


def run_module(module, name, mesh, micro_batches=1):
    metrics, grads = one_step(module, initial(name), CASES[name][1], mesh, micro_batches)
    return metrics["loss"][0] / metrics["loss"][1], grads


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("simcse", {"data": 2, "fsdp": 2, "tensor": 2}),
        ("contrast", {"data": 8, "fsdp": 1}),
    ],
)
def test_negatives_of_other_devices_meet_the_right_anchors(name, sizes):
    """As on one device: with every device holding few examples, labels would show any mix-up."""
    expected_loss, expected = run(name, make_mesh(devices=jax.devices()[:1]))
    loss, grads = run(name, make_mesh(**sizes))
    close(loss, expected_loss)
    chex.assert_trees_all_close(grads, expected, atol=1e-5)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 1e-3


@pytest.mark.parametrize("name", ["contrast", "score"])
def test_parts_of_a_batch_are_compared_as_a_whole(name):
    """Without dropout, which each part draws anew."""
    module, given = CASES[name]
    params = {"params": initial(name)}

    def loss(params):
        outcome = module.apply(params, given)
        return outcome.loss / outcome.weight

    expected = jax.jit(jax.value_and_grad(loss))(params)
    plain = module.clone(encoder=ENCODER.clone(dropout=0.0, attention_dropout=0.0))
    found = run_module(plain, name, make_mesh(devices=jax.devices()[:2]), micro_batches=4)
    chex.assert_trees_all_close(found, (expected[0], expected[1]["params"]), atol=1e-5)


def test_simcse_sees_two_dropouts_and_evaluation_none():
    module, given = CASES["simcse"]
    variables = {"params": initial("simcse")}
    vectors = functools.partial(module.apply, method="vectors", copies=2)
    noisy = jax.jit(functools.partial(vectors, train=True))(
        variables, given, rngs={"dropout": jax.random.key(0)}
    )
    assert np.abs(noisy[:, 0] - noisy[:, 1]).min(1).max() > 0
    plain = jax.jit(vectors)(variables, given)
    close(plain[:, 0], plain[:, 1], 0)


def test_flops_count_every_text():
    one = ENCODER.flops(LENGTH)
    assert CASES["simcse"][0].flops(LENGTH) == 2 * (one + 2 * 12 * 12)
    assert CASES["contrast"][0].flops(LENGTH) == 3 * one
    assert CASES["pair"][0].flops(LENGTH) == 2 * one + 2 * 3 * 12 * 3
    assert CASES["listwise"][0].flops(LENGTH) == 3 * (one + 2 * 12)


# --- configs --------------------------------------------------------------------------------------

CONFIG = {
    "model": {"name": "bert", **TINY},
    "objective": {"name": "sentence_contrast", "num_texts": 3, "pooling": "mean"},
    "preprocessing": {
        "name": "text",
        "tokenizer": "nowhere.json",
        "max_length": LENGTH,
        "vocabulary": Vocabulary(23, 0, 1, 2, 3, 4),
    },
    "data": {
        "source": {"name": "sample"},
        "transforms": [{"name": "tokenize_texts", "fields": ("a", "b", "c")}],
        "examples_per_epoch": 80,
    },
    "optimizer": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "constant"}},
    "batch_size": 32,
    "duration": {"epochs": 1},
}


def test_an_experiment_has_the_shapes_of_its_objective():
    experiment = Experiment(CONFIG)
    assert experiment.example_batch(4)["ids"].shape == (4, 3, LENGTH)
    assert set(experiment.param_shapes) == {"encoder"}


def test_micro_batches_are_refused_where_examples_cannot_be_compared_afterwards(monkeypatch):
    class Whole(Objective):
        whole_batch = True

    monkeypatch.setitem(OBJECTIVES, "whole", Whole)
    micro = {**CONFIG, "hardware": {"micro_batches": 2}}
    with pytest.raises(ConfigError, match="Whole compares the examples of a whole"):
        Experiment({**micro, "objective": {"name": "whole"}})
    for name in ("sentence_contrast", "sentence_triplet"):
        Experiment({**micro, "objective": {"name": name}})


@pytest.mark.parametrize(
    "name, texts, message",
    [
        ("contrast", 2, r"SentenceContrast takes ids \[B, 3, T\], got \[8, 2, 5\]; name 3 fields"),
        ("binary", 2, r"'binary' takes ids \[B, T\], got \[8, 2, 5\]"),
        ("listwise", 2, r"'listwise' takes ids \[B, 3, T\], got \[8, 2, 5\]"),
    ],
)
def test_wrong_batches_are_one_sentence(name, texts, message):
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(CASES[name][0].apply, {"params": initial(name)}, batch(texts))


def test_wrong_fields_are_one_sentence():
    with pytest.raises(ConfigError, match=r"objective\.pooling: expected .*'mean_sqrt'"):
        objective("sentence_contrast", pooling="meen")
    with pytest.raises(ConfigError, match="expected num_texts from 1 and a temperature above 0"):
        jax.eval_shape(objective("sentence_contrast", temperature=0.0).init, {}, batch(2))
    bare = objective("sentence_triplet").clone(encoder=BERT(**TINY, pool="none"))
    with pytest.raises(ConfigError, match="the model does not pool; say how to"):
        jax.eval_shape(bare.init, jax.random.key(0), batch(3))


def test_preprocessing_is_not_opened():
    assert TextPreprocessing("nowhere.json", 8).example_batch(2)["ids"].shape == (2, 8)
