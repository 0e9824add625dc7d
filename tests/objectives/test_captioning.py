"""Captions written from images: what a token is predicted from, and how losses are weighed."""

import functools

import jax
import numpy as np
import pytest
from test_image_text import CASES, LENGTH, MODEL, ROWS, batch, initial, objective

from encoders.errors import ConfigError


def scores_of(module, params, rows):
    """float32 [B, T, V]."""

    def scores(module, rows):
        (image, _), (text, _) = module.encode(rows, train=False)
        return module.scores(image, text, rows, False)

    return module.apply({"params": params}, rows, method=scores)


@functools.cache
def compiled():
    return jax.jit(functools.partial(scores_of, CASES["coca"]))


def test_a_token_is_predicted_from_those_before_it_and_the_image():
    params, rows = initial("coca"), {**batch(), "segments": np.ones((ROWS, LENGTH), np.int32)}
    expected = compiled()(params, rows)
    later = rows["ids"].copy()
    later[:, 3:] = 7
    found = compiled()(params, {**rows, "ids": later})
    np.testing.assert_allclose(found[:, :3], expected[:, :3], atol=1e-5)
    assert np.abs(found[:, 3:] - expected[:, 3:]).max() > 1e-3
    seen = compiled()(params, {**rows, "image": rows["image"][::-1]})
    assert np.abs(seen - expected).max(axis=(1, 2)).min() > 1e-3


def test_the_loss_is_that_of_the_paper():
    """Twice the mean over tokens, and once the contrast's over examples."""
    params, rows = initial("coca"), batch()
    scores = np.asarray(compiled()(params, rows), np.float64)
    likelihood = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    losses, right = [], 0
    for row in np.flatnonzero(rows["valid"]):
        for place in range(1, int(rows["segments"][row].sum())):
            label = rows["ids"][row, place]
            losses.append(-likelihood[row, place - 1, label])
            right += scores[row, place - 1].argmax() == label
    outcome = jax.jit(CASES["coca"].apply)({"params": params}, rows)
    contrast = outcome.metrics["contrast_loss"]
    total, count = outcome.metrics["caption_loss"]
    assert count == len(losses)
    assert total == pytest.approx(sum(losses), rel=1e-5)
    assert outcome.metrics["caption_accuracy"][0] == right
    expected = float(contrast[0] / contrast[1]) + 2 * np.mean(losses)
    assert float(outcome.loss / outcome.weight) == pytest.approx(expected, rel=1e-5)


def test_a_text_tower_that_looks_ahead_is_refused():
    module = objective("contrast_caption", text=MODEL["text"] | {"causal": False})
    with pytest.raises(ConfigError, match="must be a 'clip_text' with causal=True"):
        jax.eval_shape(module.init, jax.random.key(0), batch())


def test_flops_count_the_decoder():
    module, size = CASES["coca"], ((8, 8), LENGTH)
    plain, width = CASES["softmax"].flops(size), 12
    own = 8 * LENGTH * width**2 + 4 * LENGTH**2 * width
    look = 4 * (LENGTH + 5) * width**2 + 4 * LENGTH * 5 * width
    mlp, head = 4 * LENGTH * width * 20, 2 * LENGTH * width * 23
    assert module.flops(size) == plain + own + look + mlp + head
