"""Whatever texts a row is packed from, wherever padding stands: each is as if alone, in any family.

The families here differ in how positions and masks reach their attention: learned and restarted,
counted from the padding id, local windows, buckets of distances, a stream of its own.
"""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from encoders import config
from encoders.layers.attention import same_segment
from encoders.layers.embedding import restarted_positions
from encoders.models import MODELS

LENGTH, TEXTS = 12, 4
TINY = {"width": 12, "mlp_dim": 10, "num_heads": 3, "vocab_size": 23, "depth": 1}
FAMILIES = {
    "bert": {"max_length": LENGTH},
    "roberta": {"max_length": LENGTH, "pad_id": 1},
    "modernbert": {"max_length": LENGTH, "window": 4, "global_every": 2, "depth": 2},
    "deberta": {"max_length": LENGTH, "position_buckets": 4, "max_distance": 8},
    "xlnet": {},
}


@functools.cache
def encode(family):
    """ids, segments [TEXTS + 1, LENGTH] -> tokens; in the weights nothing is zero or one."""
    model = config.build(MODELS, {"name": family, **TINY, **FAMILIES[family]}, "model")
    ids = np.ones((TEXTS + 1, LENGTH), np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(1), ids)
    rng = np.random.default_rng(2)
    variables = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype("f4"), shapes)

    def tokens(ids, segments):
        return model.apply(variables, ids, segments=segments).tokens

    return jax.jit(tokens)


@st.composite
def layouts(draw):
    """(begin, end) of up to four texts in a row, with padding anywhere between them."""
    spans, place = [], 0
    for _ in range(draw(st.integers(0, TEXTS))):
        begin = place + draw(st.integers(0, 2))
        end = begin + draw(st.integers(1, 6))
        if end > LENGTH:
            break
        spans.append((begin, end))
        place = end
    return spans


@pytest.mark.parametrize("family", FAMILIES)
@hypothesis.given(spans=layouts(), seed=st.integers(0, 9))
@hypothesis.settings(max_examples=25, deadline=None)
def test_any_layout_gives_every_text_its_own_output(family, spans, seed):
    words = np.random.default_rng(seed).integers(5, 23, LENGTH)
    ids = np.ones((TEXTS + 1, LENGTH), np.int32)
    segments = np.zeros_like(ids)
    for number, (begin, end) in enumerate(spans, start=1):
        ids[0, begin:end] = ids[number, : end - begin] = words[begin:end]
        segments[0, begin:end], segments[number, : end - begin] = number, 1
    tokens = np.asarray(encode(family)(ids, segments))
    assert np.isfinite(tokens).all()
    for number, (begin, end) in enumerate(spans, start=1):
        alone = tokens[number, : end - begin]
        np.testing.assert_allclose(tokens[0, begin:end], alone, rtol=0, atol=1e-5)


@hypothesis.given(
    segments=st.lists(st.integers(0, 3), min_size=LENGTH, max_size=LENGTH).map(sorted)
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_segments_say_who_sees_whom_and_where_positions_restart(segments):
    found = np.asarray(same_segment(np.array([segments])))[0]
    positions = np.asarray(restarted_positions(np.array([segments])))[0]
    for query, own in enumerate(segments):
        for key, other in enumerate(segments):
            assert found[query, key] == (own == other != 0)
        assert positions[query] == query - segments.index(own)
