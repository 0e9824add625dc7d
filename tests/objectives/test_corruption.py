"""What is hidden, by its definitions: over 10^5 tokens, and in rows that have little to hide."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.data.vocabulary import Vocabulary
from encoders.errors import ConfigError
from encoders.objectives import corruption
from encoders.objectives.corruption import Masking, corrupt, ordinary_ids

VOCABULARY = Vocabulary(60, pad_id=0, unk_id=7, cls_id=2, sep_id=3, mask_id=4, others=(59,))
ROWS, LENGTH = 1024, 128


@functools.cache
def texts():
    """Rows [CLS] text [SEP] text [SEP] padding, where 60 % of the tokens begin a word."""
    rng = np.random.default_rng(0)
    ordinary = np.setdiff1d(np.arange(60), VOCABULARY.special_ids)
    ids = rng.choice(ordinary, (ROWS, LENGTH)).astype(np.int32)
    ids[:, 0], ids[:, 40] = 2, 3
    lengths = rng.integers(100, LENGTH + 1, ROWS)
    ids[np.arange(ROWS), lengths - 1] = 3
    ids[np.arange(LENGTH) >= lengths[:, None]] = 0
    can = ~np.isin(ids, VOCABULARY.special_ids)
    return ids, can, rng.random((ROWS, LENGTH)) < 0.6


@functools.cache
def compiled(masking):
    def row(key, ids, can, starts):
        noise = (jax.random.bits(key, (4, LENGTH), jnp.uint32)[0] >> 8) / 2**24
        groups = corruption._groups(noise, can, starts, masking.unit)
        return corrupt(key, ids, can, starts, masking, VOCABULARY), groups

    return jax.jit(jax.vmap(row))


@functools.cache
def run(masking, seed=0):
    """Corrupted texts, and the words and runs that they were made from, in numpy."""
    keys = jax.random.split(jax.random.key(seed), ROWS)
    found, (words, runs) = compiled(masking)(keys, *texts())
    return jax.tree.map(np.asarray, found), np.asarray(words), np.asarray(runs)


def chosen_of(found):
    """[B, T] bool."""
    chosen = np.zeros((ROWS, LENGTH), bool)
    row, column = np.nonzero(found.weights)
    chosen[row, found.places[row, column]] = True
    return chosen


def test_as_many_tokens_as_the_rate_says():
    ids, can, _ = texts()
    found, _, _ = run(Masking(0.15))
    assert found.places.shape == (ROWS, round(0.15 * LENGTH))
    np.testing.assert_array_equal(found.weights.sum(1), np.round(0.15 * can.sum(1)))
    # Places are distinct, and what stood there is the label.
    assert all(len(set(row)) == len(row) for row in found.places)
    np.testing.assert_array_equal(np.take_along_axis(ids, found.places, 1), found.labels)
    # Every token is as likely as every other: in front, in the middle, before the end.
    share = chosen_of(found)[:, can.all(0)].mean(0)
    assert abs(share - 0.15).max() < 5 * np.sqrt(0.15 * 0.85 / ROWS)


def test_special_tokens_and_padding_are_left_alone():
    ids, can, _ = texts()
    for unit in ("token", "word", "ngram", "span"):
        found, _, _ = run(Masking(0.15, unit))
        assert not chosen_of(found)[~can].any()
        changed = found.ids != ids
        assert not changed[~chosen_of(found)].any()
        assert not np.isin(found.ids[changed], sorted({*VOCABULARY.special_ids} - {4})).any()


def test_shares_of_masked_random_and_kept_tokens():
    now, before = [], []
    for found, _, _ in (run(Masking(0.15), seed) for seed in range(4)):
        used = found.weights > 0
        now.append(np.take_along_axis(found.ids, found.places, 1)[used])
        before.append(found.labels[used])
    now, before = np.concatenate(now), np.concatenate(before)
    assert len(now) > 60_000
    masked, kept = (now == 4).mean(), (now == before).mean()
    ordinary = 60 - len(VOCABULARY.special_ids)
    assert abs(masked - 0.8) < 0.01
    assert abs(kept - (0.1 + 0.1 / ordinary)) < 0.006  # a random token may be the same
    drawn = now[(now != 4) & (now != before)]
    counts = np.bincount(drawn, minlength=60)
    assert (counts[list(VOCABULARY.special_ids)] == 0).all()
    assert abs(counts[counts > 0] / len(drawn) - 1 / ordinary).max() < 0.006


def test_electra_masks_or_keeps():
    found, _, _ = run(Masking(0.15, mask=0.85, random=0.0))
    used = found.weights > 0
    now = np.take_along_axis(found.ids, found.places, 1)[used]
    assert abs((now == 4).mean() - 0.85) < 0.01
    assert ((now == 4) | (now == found.labels[used])).all()


def test_random_ids_are_uniform_over_ordinary_ones():
    ids = np.asarray(ordinary_ids(jax.random.bits(jax.random.key(0), (100_000,)), VOCABULARY))
    counts = np.bincount(ids, minlength=60)
    special = np.isin(np.arange(60), VOCABULARY.special_ids)
    assert counts[special].sum() == 0
    expected = 100_000 / (~special).sum()
    chi_square = ((counts[~special] - expected) ** 2 / expected).sum()
    assert chi_square < 54 + 4 * np.sqrt(2 * 54)


def words_of(chosen, words, can):
    """Chosen and all tokens of every word, [B, words]."""
    shape = (ROWS, LENGTH)
    row = np.broadcast_to(np.arange(ROWS)[:, None], shape)
    hidden, total = np.zeros(shape, int), np.zeros(shape, int)
    np.add.at(hidden, (row[can], words[can]), chosen[can])
    np.add.at(total, (row[can], words[can]), 1)
    return hidden, total


@pytest.mark.parametrize("unit", ["word", "ngram", "span"])
def test_words_are_hidden_whole(unit):
    _, can, starts = texts()
    found, words, _ = run(Masking(0.15, unit))
    hidden, total = words_of(chosen_of(found), words, can)
    assert np.isin(hidden, [0, 1]).mean() < 1  # some words have several pieces
    np.testing.assert_array_equal(hidden[hidden > 0], total[hidden > 0])
    # A word that would exceed the number is passed over, so few tokens are wanting.
    wanted, got = np.round(0.15 * can.sum(1)), found.weights.sum(1)
    assert (got <= wanted).all()
    assert got.sum() > 0.99 * wanted.sum()
    # Words begin where the batch says so, and after every token that is no part of the text.
    begins = can & (starts | ~np.pad(can, ((0, 0), (1, 0)))[:, :-1])
    np.testing.assert_array_equal(np.diff(words)[:, 1:][can[:, 2:]], begins[:, 2:][can[:, 2:]])


@pytest.mark.parametrize(
    "unit, shares",
    [
        ("word", [1.0]),
        ("ngram", [6 / 11, 3 / 11, 2 / 11]),
        ("span", 0.2 * 0.8 ** np.arange(10) / (1 - 0.8**10)),
    ],
)
def test_lengths_of_runs(unit, shares):
    _, can, _ = texts()
    _, words, runs = run(Masking(0.15, unit))
    lengths = []
    for row in range(ROWS):
        # Of the second text, without its last run, which the end cuts short.
        inside = slice(41, int(np.flatnonzero(can[row])[-1]) + 1)
        pairs = np.unique(np.stack([runs[row, inside], words[row, inside]]), axis=1)
        lengths += list(np.unique(pairs[0], return_counts=True)[1][1:-1])
    counts = np.bincount(lengths, minlength=len(shares) + 1)[1:]
    assert len(counts) == len(shares)
    if unit == "span":  # of long runs, fewer are whole within a text
        assert abs(np.mean(lengths) - 3.8) < 0.25
    else:
        np.testing.assert_allclose(counts / counts.sum(), shares, atol=0.01)


def test_runs_are_hidden_together_and_spans_in_one_way():
    found, _, runs = run(Masking(0.15, "span"))
    chosen, can = chosen_of(found), texts()[1]
    whole, pieces, one_way = 0, 0, 0
    for row in range(200):
        for number in np.unique(runs[row][chosen[row]]):
            inside = (runs[row] == number) & can[row]
            pieces += 1
            whole += chosen[row][inside].all()
            one_way += len({i == 4 for i in found.ids[row][inside & chosen[row]]}) == 1
    assert pieces - whole < 1.5 * 200  # but the last of a row, or the last two
    # 80 % are masked, all of them; of those that are not, a random token may not be the mask.
    assert one_way == pieces


def test_rows_with_little_to_hide():
    masking = Masking(0.15, "word")
    ids = jnp.asarray([2, 10, 11, 12, 13, 3, 0, 0, 0, 0])
    can = np.asarray([0, 1, 1, 1, 1, 0, 0, 0, 0, 0], bool)
    starts = np.asarray([1, 1, 0, 1, 0, 1, 1, 1, 1, 1], bool)
    run = jax.jit(lambda key, can, starts: corrupt(key, ids, can, starts, masking, VOCABULARY))
    # Two words of two pieces, and one token to choose: neither fits.
    assert run(jax.random.key(0), can, starts).weights.sum() == 0
    # With a word of one piece there is one that does.
    starts[2] = True
    hidden = {int(run(jax.random.key(i), can, starts).places[0]) for i in range(20)}
    assert hidden == {1, 2}
    nothing = run(jax.random.key(0), np.zeros(10, bool), starts)
    assert nothing.weights.sum() == 0
    np.testing.assert_array_equal(nothing.ids, ids)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"rate": 0.0}, "objective.masking.rate: expected a share above 0 and up to 1, got 0.0"),
        ({"mask": 0.8, "random": 0.3}, "mask 0.8 and random 0.3 are no shares of one whole"),
        ({"unit": "letter"}, "unknown unit 'letter'"),
    ],
)
def test_masking_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        Masking(**fields)


def test_a_rate_that_selects_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"0.01 of 32 tokens is none; 0.03125 or more"):
        Masking(0.01).places(32)


def test_words_need_their_beginnings():
    ids, can, _ = texts()
    with pytest.raises(ConfigError, match="'word' needs batches with word_start"):
        corrupt(jax.random.key(0), ids[0], can[0], None, Masking(unit="word"), VOCABULARY)
