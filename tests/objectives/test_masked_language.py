"""Masked-language modelling: sums that add up, packed texts, what the head sees, what it costs."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.data.text import TextPreprocessing
from encoders.errors import ConfigError
from encoders.models.bert import BERT
from encoders.objectives.corruption import Corrupted, Masking
from encoders.objectives.heads import binary_cross_entropy, cross_entropy
from encoders.objectives.masked_language import MaskedLanguage
from encoders.parallel.mesh import make_mesh
from tests.objectives.pretraining import (
    ENCODER,
    LENGTH,
    ROWS,
    VOCABULARY,
    batch,
    parameters,
    train,
)

OBJECTIVES = {
    "tokens": MaskedLanguage(ENCODER, vocabulary=VOCABULARY),
    "words": MaskedLanguage(ENCODER, vocabulary=VOCABULARY, masking=Masking(0.3, "word")),
    "pairs": MaskedLanguage(
        ENCODER, vocabulary=VOCABULARY, masking=Masking(0.3, "span"), pair="sop"
    ),
}


def test_a_batch_is_the_sum_of_its_parts():
    """Tokens hidden, losses and gradients, on many devices and in micro-batches."""
    module = OBJECTIVES["pairs"]
    expected, gradients = train(module, make_mesh(devices=jax.devices()[:1]))
    metrics, grads = train(module, make_mesh(data=2, fsdp=2, sequence=2), micro_batches=2)
    chex.assert_trees_all_close(metrics, expected, rtol=1e-5)
    chex.assert_trees_all_close(grads, gradients, atol=2e-6)
    assert expected["token_loss"][1] > 20


def test_a_resumed_run_hides_the_same_tokens():
    """What is hidden depends on seed, step and row alone."""
    module, params = OBJECTIVES["words"], parameters(OBJECTIVES["words"])

    def corrupt(step, batch):
        key = jax.random.fold_in(jax.random.key(7), step)
        return module.apply({"params": params}, batch, rngs={"corrupt": key}, method="corrupt")

    first, again, other = (jax.jit(corrupt)(step, batch()) for step in (3, 3, 4))
    chex.assert_trees_all_equal(first, again)
    assert (first.places != other.places).any()
    # Half of the rows, in another order.
    rows = np.array([6, 2, 5, 0])
    part = jax.jit(corrupt)(3, {name: value[rows] for name, value in batch().items()})
    chex.assert_trees_all_equal(part, jax.tree.map(lambda x: x[rows], first))


def test_gathering_changes_nothing_but_the_cost():
    module = OBJECTIVES["tokens"]
    everything = module.clone(gather=False)
    params = parameters(module)

    def loss(module):
        return jax.jit(
            jax.value_and_grad(lambda params: module.apply({"params": params}, batch()).loss)
        )

    chex.assert_trees_all_close(loss(module)(params), loss(everything)(params), atol=1e-5)
    head = module.head.flops(ENCODER)
    assert head == 2 * 8 * (12 + 31)
    assert module.flops(LENGTH) == ENCODER.flops(LENGTH) + 2 * head
    assert everything.flops(LENGTH) == ENCODER.flops(LENGTH) + LENGTH * head


def test_packed_texts_are_as_they_are_alone():
    """Loss and gradients, for the same hidden tokens."""
    module, params = OBJECTIVES["tokens"], parameters(OBJECTIVES["tokens"])
    ids, segments = batch()["ids"][1:2], batch()["segments"][1:2]
    texts = [ids[0][segments[0] == number] for number in (1, 2, 3)]
    single = np.zeros((3, LENGTH), np.int32)
    for row, text in zip(single, texts, strict=True):
        row[: len(text)] = text
    starts = np.cumsum([0, *map(len, texts)])[:3]
    places = np.array([[1, 3], [2, 4], [1, 2]], np.int32)
    labels = np.array([[5, 6], [7, 8], [9, 10]], np.int32)

    def loss(params, ids, segments, places, labels):
        given = {"ids": ids, "segments": segments}
        hidden = Corrupted(ids, places, labels, jnp.ones(places.shape))
        return module.apply({"params": params}, given, hidden, method="loss").loss

    run = jax.jit(jax.value_and_grad(loss))
    apart = run(params, single, (single > 0).astype(np.int32), places, labels)
    together = (places + starts[:, None]).reshape(1, 6)
    packed = run(params, ids, segments, together, labels.reshape(1, 6))
    chex.assert_trees_all_close(packed, apart, atol=1e-5)


def test_padding_gives_no_loss_and_no_nan():
    module, params = OBJECTIVES["pairs"], parameters(OBJECTIVES["pairs"])
    last = {name: value[-1:] for name, value in batch().items()}

    def loss(params, batch):
        return module.apply({"params": params}, batch).loss

    run = jax.jit(jax.value_and_grad(loss))
    chex.assert_tree_all_finite(run(params, {**last, "valid": np.ones(1, bool)}))
    value, gradients = run(params, {**last, "valid": np.zeros(1, bool)})
    assert value == 0
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients)) == 0


def test_cross_entropy_and_its_gradient():
    scores = 5 * jax.random.normal(jax.random.key(0), (2, 3, 7))
    labels = jnp.array([[0, 6, 3], [2, 2, 5]])
    weights = jnp.arange(6.0).reshape(2, 3)

    def plain(scores):
        picked = jnp.take_along_axis(jax.nn.log_softmax(scores), labels[..., None], -1)
        return -(picked[..., 0] * weights).sum()

    def ours(scores):
        return (cross_entropy(scores, labels) * weights).sum()

    both = jax.jit(lambda scores: [jax.value_and_grad(f)(scores) for f in (ours, plain)])(scores)
    chex.assert_trees_all_close(*both, atol=1e-5)
    found = binary_cross_entropy(jnp.array([2.0, 2.0]), jnp.array([True, False]))
    np.testing.assert_allclose(found, -np.log([1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2))]), 1e-6)


def test_the_head_of_a_family_unless_the_config_says_otherwise():
    module = OBJECTIVES["tokens"]
    assert module.head.options(ENCODER)["activation"] == "gelu"
    assert module.head.options(BERT(mlp="relu", norm_eps=1e-3)) == {
        **dict.fromkeys(("transform", "dense_bias", "norm_bias", "bias", "tied"), True),
        "activation": "relu",
        "norm_eps": 1e-3,
    }
    plain = module.clone(head=module.head.clone(transform=False, tied=False, bias=False))
    shapes = jax.eval_shape(
        plain.clone(encoder=ENCODER.clone(embedding_dim=12)).init, jax.random.key(0), batch()
    )
    assert jax.tree.map(jnp.shape, shapes["params"]["head"]) == {"words": (31, 12)}
    with pytest.raises(ConfigError, match=r"unknown activation 'gel'. Did you mean 'gelu'"):
        module.head.clone(activation="gel").options(ENCODER)


def test_an_example_batch_has_what_training_sees():
    preprocessing = TextPreprocessing("nowhere.json", LENGTH, VOCABULARY)
    found = OBJECTIVES["pairs"].example_batch(preprocessing, ROWS)
    assert {"ids", "segments", "token_types", "word_start", "label"} <= set(found)
    assert "word_start" not in OBJECTIVES["tokens"].example_batch(preprocessing, ROWS)


def test_a_rate_that_selects_nothing_is_refused():
    module = OBJECTIVES["tokens"].clone(masking=dataclasses.replace(Masking(), rate=0.01))
    with pytest.raises(ConfigError, match=r"objective.masking.rate: 0.01 of 16 tokens is none"):
        jax.eval_shape(module.init, jax.random.key(0), batch())


def test_a_pair_task_needs_a_pooled_vector():
    module = OBJECTIVES["pairs"].clone(encoder=ENCODER.clone(pool="none"))
    with pytest.raises(ConfigError, match="the pair task 'sop' needs a pooled vector"):
        jax.eval_shape(module.init, jax.random.key(0), batch())
