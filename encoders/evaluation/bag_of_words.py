"""What a text's words say without their order: the baseline of probes of text encoders."""

from __future__ import annotations

import numpy as np

from encoders.evaluation.features import Labelled

MAX_TOKENS = 1024  # more columns would make D so large that no probe could be fitted to it


def bag_of_words(train: Labelled, test: Labelled) -> tuple[Labelled, Labelled]:
    """Counts of token ids, weighted by rarity, as features.

    Column j of a text is (1 + log count) * (1 + log((1 + N) / (1 + N_j))) of the j-th token, where
    N_j of the N training texts have it; rows have length 1 (tf-idf, as scikit-learn's
    TfidfVectorizer with sublinear_tf). Columns are the tokens that most training texts have.

    Args:
      train, test: token ids [N, T] int32 as features, negative where there is no token.
    """
    size = int(train.features.max(initial=-1)) + 1
    have = np.zeros(size, np.int64)
    for ids in train.features:
        have[np.unique(ids[ids >= 0])] += 1
    chosen = np.argsort(-have, kind="stable")[:MAX_TOKENS]
    chosen = chosen[have[chosen] > 0]
    column = np.full(size, -1)
    column[chosen] = np.arange(len(chosen))
    rarity = 1.0 + np.log((1.0 + len(train.features)) / (1.0 + have[chosen]))

    def weigh(ids: np.ndarray) -> np.ndarray:
        counts = np.zeros((len(ids), len(chosen)), np.float32)
        known = (ids >= 0) & (ids < size)
        columns = np.where(known, column[np.where(known, ids, 0)], -1)
        rows, places = np.nonzero(columns >= 0)
        np.add.at(counts, (rows, columns[rows, places]), 1.0)
        weighted = np.where(counts > 0, 1.0 + np.log(np.maximum(counts, 1.0)), 0.0) * rarity
        length = np.linalg.norm(weighted, axis=1, keepdims=True)
        return (weighted / np.maximum(length, 1e-12)).astype(np.float32)

    return tuple(
        Labelled(weigh(split.features), split.labels, split.rows, one_scale=True)
        for split in (train, test)
    )
