"""Spans and negatives are what their definitions say, over 100,000 draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.errors import ConfigError
from encoders.objectives.span_masking import (
    SpanMasking,
    hidden_slots,
    sample_negatives,
    span_mask,
)

FRAMES, DRAWS = 60, 100_000


def draw(masking, lengths, frames, negatives=0):
    """Masks [N, F], and negatives of the hidden frames as frames [N, K, negatives]."""

    def row(key, length):
        mask_key, negative_key = jax.random.split(key)
        hidden = span_mask(mask_key, jnp.arange(frames) < length, masking)
        slots = hidden_slots(hidden, masking.slots(frames))
        found = sample_negatives(negative_key, slots.used, negatives)
        return hidden, slots.frames, slots.used, found

    keys = jax.random.split(jax.random.key(0), len(lengths))
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(row))(keys, jnp.asarray(lengths)))


@functools.cache
def full():
    return draw(SpanMasking(), np.full(DRAWS, FRAMES), FRAMES, negatives=3)


def reference(rng, masking, frames):
    """The definition, one row at a time."""
    count = int(masking.rate * frames / masking.length + rng.random())
    count = max(masking.min_spans, count)
    starts = rng.choice(frames - masking.length + 1, count, replace=False)
    mask = np.zeros(frames, bool)
    mask[(starts[:, None] + np.arange(masking.length)).ravel()] = True
    return mask


def test_masks_are_those_of_the_definition():
    hidden = full()[0]
    rng = np.random.default_rng(0)
    expected = np.stack([reference(rng, SpanMasking(), FRAMES) for _ in range(10_000)])
    # Of every frame, and of pairs at several distances; three standard errors are .015.
    np.testing.assert_allclose(hidden.mean(0), expected.mean(0), rtol=0, atol=0.02)
    for distance in (1, 5, 10, 40):
        ours = (hidden[:, distance:] & hidden[:, :-distance]).mean(0)
        theirs = (expected[:, distance:] & expected[:, :-distance]).mean(0)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.02)
    counts = np.bincount(hidden.sum(1), minlength=FRAMES) / DRAWS
    theirs = np.bincount(expected.sum(1), minlength=FRAMES) / len(expected)
    np.testing.assert_allclose(counts, theirs, rtol=0, atol=0.01)


def test_coverage_is_that_of_the_paper():
    """ "Approximately 49 % of all time steps", of rows as long as there: 15.6 seconds."""
    hidden = draw(SpanMasking(), np.full(2000, 780), 780)[0]
    assert hidden.mean() == pytest.approx(0.49, abs=0.003)
    # Places are enough for all but a few rows, though there are fewer than spans could hide.
    slots = SpanMasking().slots(780)
    assert slots < 450
    assert (hidden.sum(1) == slots).mean() < 0.005


def test_spans_are_whole_and_never_padding():
    lengths = np.resize(np.arange(1, FRAMES + 1), 20_000)
    hidden = draw(SpanMasking(rate=0.3), lengths, FRAMES)[0]
    assert not (hidden & (np.arange(FRAMES) >= lengths[:, None])).any()
    edges = np.diff(np.pad(hidden, ((0, 0), (1, 1))).astype(int), axis=1)
    for row, length in zip(edges[:1000], lengths, strict=False):
        runs = np.flatnonzero(row == -1) - np.flatnonzero(row == 1)
        assert (runs >= min(10, length - 1)).all()
        assert len(runs) or length == 1
    few = hidden[lengths == 11]
    assert few.any(1).all()
    # Rows differ, as far as 333 of the 1275 pairs of starts do.
    whole = hidden[lengths == FRAMES]
    assert len(np.unique(whole, axis=0)) == pytest.approx(1275 * (1 - np.exp(-333 / 1275)), abs=20)


@pytest.mark.parametrize("rate, frames", [(0.0, 50), (0.65, 7), (0.8, 40), (1.0, 30)])
def test_no_row_needs_more_places_than_it_has(rate, frames):
    masking = SpanMasking(rate=rate)
    hidden, places, used, _ = draw(masking, np.full(500, frames), frames)
    assert used.shape[1] == masking.slots(frames) <= frames
    np.testing.assert_array_equal(used.sum(1), hidden.sum(1))
    back = np.zeros_like(hidden)
    for row in range(len(hidden)):
        back[row, places[row, used[row]]] = True
        assert (np.diff(places[row, used[row]]) > 0).all()
    np.testing.assert_array_equal(back, hidden)


def test_negatives_are_other_hidden_frames_of_the_row_all_alike():
    _, _, used, negatives = full()
    own = np.arange(used.shape[1])[:, None]
    assert (negatives[used] != np.broadcast_to(own, negatives.shape)[used]).all()
    assert np.take_along_axis(used[..., None], negatives, axis=1)[used].all()
    # Of rows that hide 30 frames: each of the other 29 of them equally often.
    rows = used.sum(1) == 30
    drawn = negatives[rows][:, 7].ravel()
    counts = np.bincount(drawn, minlength=30)
    assert counts[7] == 0
    assert counts.size == 30
    expected = drawn.size / 29
    deviation = (np.delete(counts, 7) - expected) / np.sqrt(expected)
    assert np.abs(deviation).max() < 4.5


def test_a_row_with_one_hidden_frame_has_no_negatives():
    found = jax.jit(functools.partial(sample_negatives, num_negatives=4))(
        jax.random.key(0), jnp.array([True, False, False])
    )
    np.testing.assert_array_equal(found, np.arange(3)[:, None].repeat(4, 1))


def test_settings_that_cannot_be():
    with pytest.raises(ConfigError, match="expected a share from 0 to 1, got 1"):
        SpanMasking(rate=1.2)
    with pytest.raises(ConfigError, match="length from 1"):
        SpanMasking(length=0)
