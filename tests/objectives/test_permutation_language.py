"""Permutation language modelling: what is drawn, against its definition, and that nothing leaks."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders import config
from encoders.data.vocabulary import Vocabulary
from encoders.errors import ConfigError
from encoders.models import MODELS
from encoders.objectives import OBJECTIVES
from encoders.objectives.permutation import Permuted, Prediction, permute, spans

VOCABULARY = Vocabulary(size=40, pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4)
TINY = {"width": 12, "depth": 2, "mlp_dim": 20, "num_heads": 3, "vocab_size": 40}
TINY |= {"dropout": 0.0, "attention_dropout": 0.0}


def rows_of_512(rows=200):
    """ids, words of one to three tokens, special tokens now and then, padding behind."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 40, (rows, 512)).astype(np.int32)
    ids[:, 0] = 2
    ids[rng.random(ids.shape) < 0.02] = 3
    length = rng.integers(200, 513, rows)
    length[: rows // 2] = 512
    segments = (np.arange(512) < length[:, None]).astype(np.int32)
    ids = np.where(segments > 0, ids, 0)
    return ids, segments, rng.random(ids.shape) < 0.6


@functools.cache
def drawn():
    """Over 10^5 tokens: the batch, what was drawn, and the spans alone."""
    ids, segments, starts = rows_of_512()
    can = (segments > 0) & (ids > 4)
    prediction, keys = Prediction(), jax.random.split(jax.random.key(1), len(ids))

    def draw(key, can, starts):
        alone = spans(jax.random.split(key, 3)[0], can, starts, prediction)  # as permute draws them
        return permute(key, can, starts, prediction), alone

    found, found_spans = jax.jit(jax.vmap(draw))(keys, can, starts)
    assert can.sum() > 80_000
    assert ids.size > 100_000
    return can, starts, jax.tree.map(np.asarray, found), np.asarray(found_spans)


def test_a_sixth_of_the_tokens_is_predicted_and_none_that_is_special():
    can, _, found, _ = drawn()
    assert found.places.shape[1] == 85  # of 512, the published number
    used = found.weights > 0
    np.testing.assert_array_equal(used.sum(1), np.minimum(np.round(can.sum(1) / 6), 85))
    np.testing.assert_array_equal(np.sort(~used, axis=1), ~used)  # used ones come first
    for row, places in enumerate(found.places):
        assert len(set(places)) == 85
        assert can[row, places[used[row]]].all()


def test_spans_have_the_lengths_and_the_context_of_the_definition():
    can, starts, found, noise = drawn()
    runs, gaps, inside = [], [], 0
    for row in range(len(can)):
        words = np.cumsum((starts[row] | ~np.pad(can[row], (1, 0))[:-1]) & can[row]) - 1
        count = words[-1] + 1
        hidden = np.zeros(count, bool)
        hidden[words[noise[row] > 0]] = True
        # Whole words, and nothing special.
        np.testing.assert_array_equal(hidden[words] & can[row], noise[row] > 0)
        edges = np.diff(np.pad(hidden.astype(int), 1))
        begin, end = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        runs += list((end - begin)[end < count])  # the row's end may cut the last one
        gaps += list(begin[1:] - end[:-1])
        inside += hidden.sum() / count / len(can)
    shares = np.bincount(runs, minlength=6)[1:] / len(runs)
    assert len(runs) > 3000
    assert max(runs) == 5
    want = 1 / np.arange(1, 6)
    np.testing.assert_allclose(shares, want / want.sum(), atol=0.03)
    np.testing.assert_allclose(inside, 1 / 7, atol=0.004)  # one of 1 + alpha / beta
    assert min(gaps) >= 1  # never next to one another
    assert max(gaps) <= 2 * 5 * 6
    # All of them are predicted, unless there are more than a sixth.
    for row in range(len(can)):
        chosen = set(found.places[row][found.weights[row] > 0])
        hidden = set(np.flatnonzero(noise[row] > 0))
        assert hidden <= chosen or chosen < hidden


def test_the_order_is_seen_as_defined():
    can, _, found, _ = drawn()
    for row in range(8):
        visible = found.visible[row]
        targets = np.zeros(512, bool)
        targets[found.places[row][found.weights[row] > 0]] = True
        context = can[row] & ~targets
        assert visible[:, context].all()
        assert not visible[context][:, ~context].any()
        others = visible[~context][:, ~context]
        # A total order: nobody before itself, and of two one before the other.
        np.testing.assert_array_equal(others ^ others.T, ~np.eye(len(others), dtype=bool))
        np.testing.assert_array_equal(np.sort(others.sum(1)), np.arange(len(others)))


def test_every_order_is_as_likely_and_rows_draw_their_own():
    keys = jax.random.split(jax.random.key(2), 12000)
    can = np.ones((12000, 4), bool)
    prediction = Prediction(rate=1.0, unit="token")
    draw = jax.jit(jax.vmap(lambda key, can: permute(key, can, None, prediction).visible))
    visible = np.asarray(draw(keys, can))
    ranks = visible.sum(2)
    counts = np.unique(ranks, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    np.testing.assert_allclose(counts / len(ranks), 1 / 24, atol=0.007)


def test_reused_tokens_see_nothing_of_the_rest_which_sees_them():
    prediction = Prediction(rate=0.5, unit="token", reuse_length=5)
    draw = jax.jit(lambda key: permute(key, jnp.ones(12, bool), None, prediction))
    found = draw(jax.random.key(0))
    assert not found.visible[:5, 5:].any()
    assert found.visible[5:, :5].all()
    assert not np.diagonal(found.visible)[np.asarray(found.places)].any()


@functools.cache
def draw_16():
    return jax.jit(lambda key, can, starts: permute(jax.random.key(key), can, starts, Prediction()))


@hypothesis.given(
    can=st.lists(st.booleans(), min_size=16, max_size=16),
    starts=st.lists(st.booleans(), min_size=16, max_size=16),
    key=st.integers(0, 99),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_any_row_predicts_its_share_and_hides_it(can, starts, key):
    can = np.array(can)
    places, weights, visible = map(np.asarray, draw_16()(key, can, np.array(starts)))
    used = places[weights > 0]
    assert len(used) == (min(max(round(can.sum() / 6), 1), 3) if can.any() else 0)
    assert len(set(places)) == len(places) == 3
    assert can[used].all()
    assert not visible[used, used].any()
    assert visible[:, can & ~np.isin(np.arange(16), used)].all()


# --- the objective --------------------------------------------------------------------------------


@functools.cache
def tiny(**fields):
    encoder = config.build(MODELS, {"name": "xlnet", **TINY}, "model")
    section = {"name": "permutation", "prediction": {"rate": 0.3, **fields}}
    return config.build(OBJECTIVES, section, "objective", encoder=encoder, vocabulary=VOCABULARY)


@functools.cache
def batch():
    """Two packed rows: texts of 6, 3 and 4 tokens and padding; texts of 13 and 1."""
    rng = np.random.default_rng(3)
    ids = rng.integers(5, 40, (2, 14)).astype(np.int32)
    segments = np.array([[1] * 6 + [2] * 3 + [3] * 4 + [0], [1] * 13 + [2]], np.int32)
    ids[0, [0, 5, 6, 8]] = [2, 3, 2, 3]
    ids[segments == 0] = 0
    return {
        "ids": ids,
        "segments": segments,
        "token_types": rng.integers(0, 2, ids.shape).astype(np.int32),
        "word_start": rng.random(ids.shape) < 0.7,
        "row": np.array([4, 9], np.int32),
        "valid": np.array([True, True]),
    }


@functools.cache
def variables():
    objective = tiny()
    shapes = jax.eval_shape(objective.init, jax.random.key(0), batch())
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda x: 0.4 * rng.normal(size=x.shape).astype("f4"), shapes)


@functools.cache
def compiled(method):
    objective = tiny()
    if method == "scores":
        return jax.jit(functools.partial(objective.apply, method=method))

    def loss(variables, batch, key):
        outcome = objective.apply(variables, batch, train=True, rngs={"corrupt": key})
        return outcome.loss, outcome

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("everything", [False, True])
def test_nothing_that_is_not_visible_changes_a_prediction(everything):
    """Every word in turn is replaced by another: who may not see it says what it said before."""
    given = batch()
    places = np.array([[1, 4, 2, 7, 10], [12, 3, 13, 0, 7]], np.int32)
    weights = np.ones(places.shape, np.float32)
    if everything:  # all are predicted, so that the first of each text sees nothing at all
        places = np.tile(np.arange(14, dtype=np.int32), (2, 1))
        weights = np.ones(places.shape, np.float32)
    hidden = np.zeros((2, 14), bool)
    np.put_along_axis(hidden, places, True, axis=1)
    ranks = np.random.default_rng(5).permuted(np.tile(np.arange(14), (2, 1)), axis=1)
    order = np.where(hidden, ranks, -1)
    visible = (order[:, None] == -1) | (order[:, :, None] > order[:, None])
    drawn = Permuted(places, weights, visible)
    scores = compiled("scores")
    before = np.asarray(scores(variables(), given, drawn))
    assert np.isfinite(before).all()
    # Who a place may see, in any number of layers: the order is transitive, so one step says it.
    segments = given["segments"]
    allowed = visible & (segments[:, :, None] == segments[:, None]) & (segments > 0)[:, None]
    moved = 0
    for place in range(14):
        ids = given["ids"].copy()
        ids[:, place] = (ids[:, place] + 7) % 40
        after = np.asarray(scores(variables(), {**given, "ids": ids}, drawn))
        change = np.abs(after - before).max(-1)
        sees = np.take_along_axis(allowed[:, :, place], places, axis=1)
        # The scores are products with the word table, which is the same before and after.
        np.testing.assert_array_equal(change[~sees], 0)
        moved += (change[sees] > 1e-6).sum()
        assert (change[sees] > 1e-6).all()
    assert moved > 20


def test_what_is_predicted_depends_on_key_and_row_alone():
    run, given = compiled("loss"), batch()
    (loss, _), _ = run(variables(), given, jax.random.key(7))
    swapped = {key: value[::-1] for key, value in given.items()}
    (again, _), _ = run(variables(), swapped, jax.random.key(7))
    np.testing.assert_allclose(loss, again, rtol=1e-6)
    swapped["row"] = given["row"]
    for other, key in ((swapped, 7), (given, 8)):
        (different, _), _ = run(variables(), other, jax.random.key(key))
        assert abs(different - loss) > 1e-3


def test_padding_examples_count_for_nothing():
    run, given, key = compiled("loss"), batch(), jax.random.key(7)
    (_, both), _ = run(variables(), given, key)
    (_, first), _ = run(variables(), {**given, "valid": np.array([True, False])}, key)
    assert 0 < float(first.weight) < float(both.weight)
    (_, none), gradients = run(variables(), {**given, "valid": np.array([False, False])}, key)
    assert float(none.weight) == float(none.loss) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert set(both.metrics) == {"accuracy"}


def test_gradients_are_finite_and_reach_every_parameter():
    _, gradients = compiled("loss")(variables(), batch(), jax.random.key(7))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


def test_flops_count_both_streams_and_the_head():
    d, t, m, hidden, layers = 12, 20, 6, 20, 2
    block = 4 * 2 * t * d * d + 2 * 2 * m * d * d  # queries and outputs of all, keys of the content
    block += (t + m) * 2 * (3 * t * d + 2 * d) + 2 * 2 * (t + m) * d * hidden
    assert tiny().flops(t) == layers * block + m * 2 * d * 40


@pytest.mark.parametrize(
    "prediction, message",
    [
        ({"rate": 0.0}, "objective.prediction.rate: expected a share above 0 and up to 1, got 0.0"),
        ({"alpha": 1, "beta": 2}, "expected alpha 1 to be at least beta 2"),
        ({"max_span": 0}, "expected max_span of 1 or more"),
        ({"rat": 0.1}, "objective.prediction.rat: unknown field. Did you mean 'rate'"),
    ],
)
def test_wrong_fields_are_one_sentence(prediction, message):
    section = {"name": "permutation", "prediction": prediction}
    with pytest.raises(ConfigError, match=message):
        config.build(OBJECTIVES, section, "objective", encoder=tiny().encoder)


def test_an_encoder_of_one_stream_is_refused():
    bert = config.build(MODELS, {"name": "bert", **TINY}, "model")
    objective = config.build(
        OBJECTIVES, {"name": "permutation"}, "objective", encoder=bert, vocabulary=VOCABULARY
    )
    with pytest.raises(ConfigError, match="BERT has one stream; 'permutation' takes"):
        jax.eval_shape(objective.init, jax.random.key(0), batch())
    without = {key: value for key, value in batch().items() if key != "word_start"}
    with pytest.raises(ConfigError, match="'word' needs batches with word_start"):
        jax.eval_shape(tiny().init, jax.random.key(0), without)
    with pytest.raises(ConfigError, match=r"0\.3 of 1 tokens is none"):
        tiny().prediction.places(1)
    assert jnp.isfinite(tiny().flops(20))
