"""Scores against scikit-learn's numbers, scipy, and their definitions on small cases."""

import numpy as np
import pytest
import scipy.stats

from encoders.evaluation import scores


def test_scores_of_classes_are_those_of_scikit_learn():
    labels = np.array([0, 1, 2, 2, 1, 0, 3, 1, 2, 0, 1, 1])
    predicted = np.array([0, 1, 2, 1, 1, 3, 3, 1, 0, 0, 2, 1])
    assert scores.f1(predicted, labels) == pytest.approx(0.6333333333333333)
    assert scores.matthews(predicted, labels) == pytest.approx(0.5346796732074042)
    labels = np.array([0, 1, 1, 1, 0, 0, 1, 0, 1, 0])
    predicted = np.array([0, 1, 0, 1, 1, 0, 1, 0, 1, 1])
    assert scores.f1(predicted, labels) == pytest.approx(0.7272727272727273)
    assert scores.matthews(predicted, labels) == pytest.approx(0.408248290463863)
    assert scores.matthews(np.zeros(4, int), np.array([0, 1, 1, 0])) == 0.0
    assert scores.f1(np.zeros(4, int), np.array([0, 1, 1, 0])) == 0.0


def test_correlations_with_ties_are_those_of_scipy():
    rng = np.random.default_rng(1)
    left, right = rng.integers(0, 5, 40), rng.normal(size=40).round(1)
    assert scores.spearman(left, right) == pytest.approx(scipy.stats.spearmanr(left, right)[0])
    assert scores.pearson(left, right) == pytest.approx(scipy.stats.pearsonr(left, right)[0])
    assert scores.pearson(np.ones(4), right[:4]) == 0.0


def test_entities_are_whole_spans():
    tags = ["B-per", "I-per", "O", "I-loc", "B-loc", "I-org", "I-org"]
    expected = {("per", 0, 1), ("loc", 3, 3), ("loc", 4, 4), ("org", 5, 6)}
    assert scores.entities(tags) == expected
    assert scores.entities([]) == set()
    # Two of four are right, and two of five were found.
    guess = ["B-per", "I-per", "B-loc", "I-loc", "B-loc", "O", "O"]
    truth = ["B-per", "I-per", "O", "I-loc", "B-loc", "I-org", "O"]
    assert scores.span_f1([guess], [truth]) == pytest.approx(2 * 2 / (3 + 4))
    assert scores.span_f1([["O"]], [["O"]]) == 0.0


def test_answers_are_compared_without_case_articles_and_punctuation():
    assert scores.answer_scores("The Cat!", ["cat"]) == (1.0, 1.0)
    assert scores.answer_scores("black cat", ["a cat", "the big black dog"]) == (
        0.0,
        pytest.approx(2 / 3),
    )
    assert scores.answer_scores("", []) == (1.0, 1.0)
    assert scores.answer_scores("cat", []) == (0.0, 0.0)
    assert scores.answer_scores("", ["cat"]) == (0.0, 0.0)


def test_ndcg_is_that_of_scikit_learn():
    gains = np.array([0, 2, 0, 1, 0, 3, 0, 0, 1, 0, 0, 2])  # best first
    assert scores.ndcg(gains, gains, 5) == pytest.approx(0.2784056260796453)
    assert scores.ndcg(gains, gains, 10) == pytest.approx(0.503699909061725)
    assert scores.ndcg(np.zeros(3), np.ones(1), 10) == 0.0
