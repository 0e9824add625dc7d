"""GraphCodeBERT's tasks: what is hidden and asked for, the loss by loops, sums that add up."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders import config
from encoders.data import PREPROCESSING, TRANSFORMS, TextPreprocessing, data_flow
from encoders.data.tokenizer_training import train_tokenizer
from encoders.errors import ConfigError
from encoders.models import MODELS
from encoders.objectives import OBJECTIVES

LENGTH, NODES = 96, 12
CODES = (
    "def f(a, b):\n    for c in a:\n        b = b + c\n    a, b = b, a\n    return b",
    "def g(self, key):\n    value = self.get(key)\n    value += key\n    return value",
    "def h():\n    return 1",
    "def f(a):\n    b = a\n    c = b\n    return c, b, a",
)


@functools.cache
def preprocessing():
    tokenizer = train_tokenizer([inspect.getsource(data_flow)], "bpe", 330)
    return TextPreprocessing(tokenizer.inner.to_str(), LENGTH)


@functools.cache
def batch():
    section = {"name": "data_flow", "max_nodes": NODES, "max_text": 8}
    context = preprocessing().for_transforms
    transform = config.build(TRANSFORMS, section, "data.transforms", **context)
    rng = np.random.default_rng(0)
    examples = [transform({"text": "what it does", "code": code}, rng) for code in CODES]
    names = ("ids", "segments", "sees_all", "node_spans", "node_sources")
    rows = {name: np.stack([example[name] for example in examples]) for name in names}
    return {**rows, "row": np.arange(4, dtype=np.int32), "valid": np.array([1, 1, 1, 0], bool)}


def objective(**fields):
    model = {"width": 12, "depth": 1, "mlp_dim": 16, "num_heads": 3, "vocab_size": 330}
    model |= {"name": "graphcodebert", "max_length": LENGTH, "pool": "none"}
    encoder = config.build(MODELS, model, "model")
    section = {"name": "data_flow", "max_nodes": NODES, **fields}
    context = preprocessing().for_objectives
    return config.build(OBJECTIVES, section, "objective", encoder=encoder, **context)


@functools.cache
def variables():
    shapes = jax.eval_shape(objective().init, jax.random.key(1), batch())
    rng = np.random.default_rng(2)  # numpy, which compiles nothing
    return jax.tree.map(lambda x: 0.5 * rng.normal(size=x.shape).astype("f4"), shapes)


@functools.cache
def asked():
    """Questions about every row of 50 batches, [50, B, ...]."""
    apply = functools.partial(objective(share=0.4).apply, {}, batch(), method="ask")
    found = jax.jit(jax.vmap(lambda key: apply(rngs={"corrupt": key})))(
        jax.random.split(jax.random.key(3), 50)
    )
    return jax.tree.map(np.asarray, found)


def test_edges_are_hidden_and_asked_for_among_as_many_others():
    real = batch()["segments"][:, -NODES:] > 0
    edges = batch()["node_sources"]
    pairs = np.zeros(edges.shape)
    for sources, wanted in zip(asked().sources, asked().edges, strict=True):
        hidden = edges & ~sources
        assert not (sources & ~edges).any()
        # All that are hidden are asked for, and nothing that is left.
        np.testing.assert_array_equal(wanted & edges, hidden)
        others = wanted & ~edges
        pairs += others
        for row in range(4):
            assert not (others[row] & edges[row].T).any()
            assert not others[row].diagonal().any()
            assert not others[row][~(real[row][:, None] & real[row][None])].any()
            assert others[row].sum() <= hidden[row].sum()
    for row in (0, 1, 3):
        free = (
            real[row][:, None]
            & real[row][None]
            & ~edges[row]
            & ~edges[row].T
            & ~np.eye(NODES, dtype=bool)
        )
        assert (pairs[row] > 0).sum() > 0.7 * free.sum()  # any may be asked for
    counts = (asked().edges & edges).sum((2, 3)), (asked().edges & ~edges).sum((2, 3))
    assert (counts[0] == counts[1]).mean() > 0.9  # there are enough others nearly always
    assert not asked().edges[:, 2].any()  # a row without nodes


def test_alignments_are_hidden_and_asked_for_among_as_many_tokens_of_the_code():
    real = batch()["segments"][:, -NODES:] > 0
    place = np.arange(LENGTH - NODES)
    spans = batch()["node_spans"]
    written = (place >= spans[..., :1]) & (place < spans[..., 1:])
    ends = [np.flatnonzero(row)[1:] for row in batch()["sees_all"]]
    code = np.stack([(place > first) & (place < last) for first, last in ends])
    for aligned, wanted in zip(asked().aligned, asked().alignments, strict=True):
        chosen = ~aligned
        assert not (chosen & ~real).any()
        np.testing.assert_array_equal(
            chosen.sum(1), [max(round(0.4 * n), 1) * (n > 0) for n in real.sum(1)]
        )
        np.testing.assert_array_equal(wanted & written, written & chosen[..., None])
        others = wanted & ~written
        assert not (others & ~(code[:, None] & chosen[..., None])).any()
        np.testing.assert_array_equal(others.sum((1, 2)), (wanted & written).sum((1, 2)))
    often = (~asked().aligned).mean(0)[real]
    assert often.min() > 0.1
    assert often.max() < 0.7


def by_loops(encoded, corrupted, questions, scores):
    """Loss and metrics, as the definitions read."""
    total, sums = 0.0, {}

    def add(name, losses, correct):
        for key, values in ((f"{name}_loss", losses), (f"{name}_accuracy", correct)):
            old = sums.get(key, (0.0, 0))
            sums[key] = (old[0] + sum(values), old[1] + len(values))
        return np.mean(losses) if losses else 0.0

    def judge(vector, other, label):
        product = vector @ other / np.sqrt(len(vector))
        p = 1 / (1 + np.exp(-product))
        return -np.log(p if label else 1 - p), (product > 0) == label

    for row in range(3):  # the last is no example
        losses, correct = [], []
        for k in np.flatnonzero(corrupted.weights[row]):
            log_z = np.log(np.exp(scores[row, k]).sum())
            losses.append(log_z - scores[row, k, corrupted.labels[row, k]])
            correct.append(scores[row, k].argmax() == corrupted.labels[row, k])
        total += add("token", losses, correct)
        tokens, nodes = encoded[row, :-NODES], encoded[row, -NODES:]
        pairs = [
            judge(nodes[i], nodes[j], batch()["node_sources"][row, i, j])
            for i, j in np.argwhere(questions.edges[row])
        ]
        total += 2.0 * add("edge", [p[0] for p in pairs], [p[1] for p in pairs])
        pairs = []
        for i, t in np.argwhere(questions.alignments[row]):
            start, stop = batch()["node_spans"][row, i]
            pairs.append(judge(nodes[i], tokens[t], start <= t < stop))
        total += 3.0 * add("alignment", [p[0] for p in pairs], [p[1] for p in pairs])
    return total, sums


def test_the_loss_is_the_definition():
    module = objective(edge_weight=2.0, alignment_weight=3.0)

    @jax.jit
    def run(variables, rows):
        def everything(module, rows):
            questions, corrupted = module.ask(rows), module.corrupt(rows)
            encoded = module.encode(
                rows,
                corrupted.ids,
                node_sources=questions.sources,
                node_aligned=questions.aligned,
            )
            parts = (encoded.tokens, corrupted, questions, module.scores(encoded, corrupted.places))
            return module(rows), parts

        def loss(variables):
            outcome, parts = module.apply(variables, rows, method=everything)
            return outcome.loss, (outcome, parts)

        return jax.value_and_grad(loss, has_aux=True)(variables)

    (_, (outcome, parts)), gradients = run(variables(), batch())
    parts = jax.tree.map(lambda x: np.asarray(x, "f8" if x.dtype == jnp.float32 else None), parts)
    total, sums = by_loops(*parts)
    np.testing.assert_allclose(outcome.loss, total, rtol=1e-5)
    assert outcome.weight == 3
    assert set(outcome.metrics) == set(sums)
    for name, (value, count) in sums.items():
        np.testing.assert_allclose(outcome.metrics[name][0], value, rtol=1e-5, err_msg=name)
        assert outcome.metrics[name][1] == count, name
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))

    # Rows one at a time add up, to the same loss and gradient.
    ones = [
        run(
            variables(),
            {name: value[[row] * 4] for name, value in batch().items()}
            | {"valid": np.array([batch()["valid"][row], 0, 0, 0], bool)},
        )
        for row in range(4)
    ]
    np.testing.assert_allclose(outcome.loss, sum(one[0][1][0].loss for one in ones), rtol=1e-5)
    added = jax.tree.map(lambda *leaves: sum(leaves), *(one[1] for one in ones))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradients, added)


def test_the_head_and_the_graph_are_counted():
    module = objective()
    graph = 2 * NODES * LENGTH * 12
    scored = round(0.15 * LENGTH) * 2 * 12 * (12 + 330)
    assert module.flops(LENGTH) == module.encoder.flops(LENGTH) + scored + graph
    example = module.example_batch(preprocessing(), 2)
    for name, value in batch().items():
        if name != "valid":
            assert example[name].shape[1:] == value.shape[1:]
            assert example[name].dtype == value.dtype


def test_vectors_of_texts_and_of_code_with_its_graph():
    """Code search: a text and a function are a pair, and the function has nodes."""
    tokenizer = preprocessing().tokenizer
    fields = {"name": "code", "tokenizer": tokenizer, "max_length": LENGTH, "max_nodes": NODES}
    of = config.build(PREPROCESSING, {**fields, "max_text": 8}, "preprocessing")
    section = {"name": "sentence_contrast", "pooling": "cls"}
    module = config.build(
        OBJECTIVES, section, "objective", encoder=objective().encoder, **of.for_objectives
    )
    rows = module.example_batch(of, 2)
    assert rows["node_sources"].shape == (2, 2, NODES, NODES)
    shapes = jax.eval_shape(module.init, jax.random.key(0), rows)
    assert jax.eval_shape(module.apply, shapes, rows).loss.shape == ()


def test_batches_without_nodes_are_refused():
    plain = preprocessing().example_batch(2)
    for module, rows, message in (
        (objective(), plain, "max_nodes: 12, but rows have 0 nodes; the transform 'data_flow'"),
        (objective(max_nodes=13), batch(), "max_nodes: 13, but rows have 12 nodes"),
        (objective(pair="nsp"), batch(), "objective.pair: text and code in one row"),
    ):
        with pytest.raises(ConfigError, match=message):
            jax.eval_shape(module.init, jax.random.key(0), rows)
