"""From the several texts of one example to the fields that sentence objectives take."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from encoders.data.sources.base import CorruptExample
from encoders.data.transforms.code import GRAPH
from encoders.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizeTexts:
    """K texts of an example, each [CLS] text [SEP], stacked; or the first paired with the others.

    Both as `preprocessing` does it in evaluation.

    Attributes:
      fields: names of the texts, in the order in which objectives expect them: anchor, positive,
        negatives.
      pair: whether the first text shares a row with each of the others, [CLS] first [SEP] other
        [SEP], as a cross-encoder reads them; there is one row less than fields.
      preprocessing: tokenizer and length (supplied).
    """

    fields: tuple[str, ...] = ("text", "other")
    pair: bool = False
    preprocessing: Any

    def __post_init__(self) -> None:
        if len(self.fields) < 1 + self.pair:
            raise ConfigError(
                f"tokenize_texts.fields: expected names of {'two texts' if self.pair else 'a text'}"
                f" or more, got {self.fields}."
            )

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Adds 'ids' and 'segments' [K, T] int32, and 'token_types' where they say something.

        And the fields of graphs, likewise stacked, where the preprocessing is 'code'.

        A single pair, which has one row, is [T].

        Raises:
          CorruptExample: the example lacks a text.
        """
        for name in self.fields:
            if not isinstance(example.get(name), str):
                raise CorruptExample(f"no text in field '{name}', only {sorted(example)}")
        first, *others = (example[name] for name in self.fields)
        inputs = [{"text": first, "other": other} for other in others]
        if not self.pair:
            inputs = [{"text": text} for text in (first, *others)]
        [tokenize] = self.preprocessing.eval_transforms()
        rows = [tokenize(texts, rng) for texts in inputs]
        names = ["ids", "segments", *GRAPH]
        if self.pair and self.preprocessing.token_types:
            names.append("token_types")
        names = [name for name in names if name in rows[0]]
        stacked = {name: np.stack([row[name] for row in rows]) for name in names}
        if self.pair and len(rows) == 1:
            stacked = {name: value[0] for name, value in stacked.items()}
        return {**example, **stacked}
