"""Code search the whole way: Python files, rows with graphs, vectors, ranks in the whole corpus."""

import jax
import numpy as np

from encoders import config
from encoders.data import PREPROCESSING, SOURCES
from encoders.data.tokenizer_training import train_tokenizer
from encoders.evaluation import EVALUATORS
from encoders.models import MODELS

WORDS = ("red", "green", "blue", "large", "small", "round", "flat", "old", "new", "loud")


def test_functions_are_found_by_what_is_said_of_them(tmp_path):
    functions = [
        f'def {word}(thing):\n    """Makes a thing {word}."""\n    {word} = thing\n'
        f"    thing = [{word}]\n    return thing\n"
        for word in WORDS
    ]
    (tmp_path / "things.py").write_text("\n".join(functions))
    source = {"name": "python_code", "path": str(tmp_path)}
    tokenizer = train_tokenizer(functions, "bpe", 280)
    section = {"name": "code", "tokenizer": tokenizer.inner.to_str(), "max_length": 64}
    of = config.build(PREPROCESSING, {**section, "max_nodes": 6, "max_text": 8}, "preprocessing")
    model = {"name": "graphcodebert", "width": 12, "depth": 1, "mlp_dim": 16, "num_heads": 3}
    model |= {"vocab_size": tokenizer.vocabulary.size, "max_length": 64, "pool": "mean"}
    module = config.build(MODELS, model, "model")
    example = {k: v for k, v in of.example_batch(1).items() if k != "row"}
    shapes = jax.eval_shape(module.init, jax.random.key(0), **example)
    rng = np.random.default_rng(1)  # numpy, which compiles nothing
    variables = jax.tree.map(lambda x: 0.5 * rng.normal(size=x.shape).astype("f4"), shapes)

    search = {"name": "retrieval", "test": source, "query": "text", "document": "code"}
    context = {"preprocessing": of, "mesh": None, "label": "search", "extractor": None}
    evaluator = config.build(
        EVALUATORS, {**search, "batch_size": 10, "recall_at": (1, 5)}, "search", **context
    )
    metrics = evaluator.run(module, variables)

    pairs = config.build(SOURCES, source, "data.source")
    assert len(pairs) == len(WORDS)
    [transform] = of.eval_transforms()
    apply = jax.jit(module.apply)
    vectors = []
    for field in ("text", "code"):
        rows = [transform({"text": pairs[i][field]}, rng) for i in range(len(pairs))]
        assert any(row["node_sources"].any() for row in rows) == (field == "code")
        batch = {name: np.stack([row[name] for row in rows]) for name in example}
        found = np.asarray(apply(variables, **batch).pooled)
        vectors.append(found / np.linalg.norm(found, axis=1, keepdims=True))
    similar = vectors[0] @ vectors[1].T
    ranks = (similar > np.diag(similar)[:, None]).sum(1)
    np.testing.assert_allclose(metrics["mrr"], (1 / (1 + ranks)).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["recall@5"], (ranks < 5).mean(), rtol=1e-6)
