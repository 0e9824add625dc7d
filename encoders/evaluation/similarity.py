"""Semantic textual similarity: does the cosine of two texts follow what people say of them?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from encoders.errors import DataError
from encoders.evaluation.knn import unit
from encoders.evaluation.scores import pearson, spearman
from encoders.evaluation.vectors import Column, VectorEvaluator


@dataclasses.dataclass(kw_only=True)
class Similarity(VectorEvaluator):
    """Correlation of cosine similarities with scores, over all of `test`.

    Metrics: 'spearman' (of ranks; what papers on sentence embeddings report, as SentEval's 'all'
    setting) and 'pearson'.

    Attributes:
      left, right: fields with the two texts.
      score: field with the number that people gave the pair; only its order and scale matter.
    """

    left: str = "text"
    right: str = "other"
    score: str = "score"

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"evaluators.{self.label}.test"
        self._columns = [Column(self.test_source, f, where) for f in (self.left, self.right)]

    def run(
        self, module: nn.Module, variables: Mapping[str, Any], *, step: int | None = None
    ) -> dict[str, float]:
        left, right = (
            self.vectors(module, variables, column, self.test) for column in self._columns
        )
        rows, of_left, of_right = np.intersect1d(left.rows, right.rows, return_indices=True)
        scores = self._scores(rows)
        pair = unit(left.features[of_left]), unit(right.features[of_right])
        cosine = (pair[0] * pair[1]).sum(1, dtype=np.float64)
        return {"spearman": spearman(cosine, scores), "pearson": pearson(cosine, scores)}

    def _scores(self, rows: np.ndarray) -> np.ndarray:
        where = f"evaluators.{self.label}.test"
        scores = [self.test_source[row].get(self.score) for row in rows.tolist()]
        if any(score is None for score in scores):
            raise DataError(f"{where}: its pairs have no '{self.score}' to compare with.")
        scores = np.asarray(scores, np.float64)
        if len(scores) < 2 or (scores == scores[0]).all():
            raise DataError(
                f"{where}: a correlation needs two different scores; these {len(scores)} pairs "
                "have fewer."
            )
        return scores
