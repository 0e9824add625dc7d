"""A tiny encoder, packed texts, and one training step, for the tests of objectives on texts."""

import functools

import jax
import numpy as np

from encoders.data.vocabulary import Vocabulary
from encoders.models.electra import ELECTRA
from tests.objectives.stepping import one_step

VOCABULARY = Vocabulary(29, pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4)
ROWS, LENGTH = 8, 16
ENCODER = ELECTRA(
    width=12,
    depth=1,
    num_heads=3,
    mlp_dim=20,
    embedding_dim=8,
    vocab_size=31,  # more rows than the tokenizer has ids
    max_length=LENGTH,
    dropout=0.0,
    attention_dropout=0.0,
)


@functools.cache
def batch():
    """Rows of one to three texts, with padding; the last row is of padding only."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 29, (ROWS, LENGTH)).astype(np.int32)
    segments = np.ones((ROWS, LENGTH), np.int32)
    segments[1::2, 6:] = 2
    segments[1, 11:], segments[2, 9:], segments[3, 14:], segments[-1] = 3, 0, 0, 0
    begins = np.diff(segments, axis=1, prepend=0) != 0
    ends = np.diff(segments, axis=1, append=0) != 0
    ids[begins], ids[ends], ids[segments == 0] = 2, 3, 0
    return {
        "ids": ids,
        "segments": segments,
        "word_start": (rng.random((ROWS, LENGTH)) < 0.6) | begins,
        "label": np.arange(ROWS, dtype=np.int32) % 2,
        "row": np.arange(ROWS, dtype=np.int32),
    }


@functools.cache
def parameters(module):
    """Random ones of which none is zero or one."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), batch())["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype("f4"), shapes)


def train(module, mesh, micro_batches=1):
    """Metrics and gradients of a step."""
    metrics, grads = one_step(module, parameters(module), batch(), mesh, micro_batches)
    return {k: v for k, v in metrics.items() if isinstance(v, tuple)}, grads
