"""Vectors of texts, for evaluators that compare texts rather than fit to labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from encoders.data import CorruptExample, Source
from encoders.errors import DataError
from encoders.evaluation.base import Evaluator, fingerprint
from encoders.evaluation.features import Feature, FeatureExtractor, Labelled, Split


class Column:
    """One text field of a source, as a source of single texts.

    Args:
      source: whose examples have the field.
      field: its name.
      where: the config field it comes from, named in errors.

    Raises:
      DataError: the examples have no such field.
    """

    def __init__(self, source: Source, field: str, where: str):
        self.source, self.field = source, field
        for index in range(min(len(source), 100)):
            try:
                example = source[index]
            except CorruptExample:
                continue
            if field not in example:
                raise DataError(
                    f"{where}: its examples have no text '{field}', only {sorted(example)}."
                )
            return

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"text": self.source[index][self.field]}

    def describe(self, index: int) -> str:
        return self.source.describe(index)


@dataclasses.dataclass(kw_only=True)
class VectorEvaluator(Evaluator):
    """Base of evaluators that compare vectors of texts.

    Attributes:
      feature: 'pooled'; 'mean' or 'max' of the final tokens, or the 'first' of them; or the number
        of a layer, whose tokens are averaged; or several of these, side by side.
      extractor: where vectors come from; shared by the evaluators of a run (supplied; None makes
        its own).
    """

    feature: Feature = "pooled"
    extractor: FeatureExtractor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.extractor is None:
            self.extractor = FeatureExtractor(self.preprocessing, self.mesh)

    def vectors(
        self,
        module: nn.Module,
        variables: Mapping[str, Any],
        column: Column,
        section: Mapping[str, Any],
    ) -> Labelled:
        """Features [N, D] of one text field of a source, and the rows they are of."""
        name = f"{fingerprint(section)}:{column.field}"
        split = Split(column, name, self.batch_size, self.compute_dtype)
        return self.extractor.encoder(module, variables, split, self.feature)
