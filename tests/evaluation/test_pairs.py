"""The most similar pairs of a corpus, against all of them sorted."""

import numpy as np
import pytest

from encoders.errors import ConfigError, DataError
from encoders.evaluation.pairs import most_similar_pairs


@pytest.mark.parametrize("rows, count, tile", [(23, 7, 5), (23, 300, 8), (4, 2, 1024)])
def test_pairs_are_those_of_the_whole_matrix(rows, count, tile):
    vectors = np.random.default_rng(rows).normal(size=(rows, 6)).astype(np.float32)
    vectors[3] = 2 * vectors[1]  # of equal direction
    similarity, pairs = most_similar_pairs(vectors, count, tile)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    first, second = np.triu_indices(rows, 1)
    expected = (unit @ unit.T)[first, second]
    order = np.argsort(-expected)[:count]
    np.testing.assert_allclose(similarity, expected[order], atol=1e-6)
    assert len(similarity) == min(count, len(expected))
    assert pairs[0].tolist() == [1, 3]
    assert len({tuple(pair) for pair in pairs.tolist()}) == len(pairs)
    np.testing.assert_allclose((unit @ unit.T)[tuple(pairs.T)], similarity, atol=1e-6)


def test_mistakes_are_one_sentence():
    with pytest.raises(DataError, match="expected two rows or more to have pairs of, got 1"):
        most_similar_pairs(np.ones((1, 3)), 1)
    with pytest.raises(ConfigError, match="count: expected a number from 1, got 0"):
        most_similar_pairs(np.ones((3, 3)), 0)
