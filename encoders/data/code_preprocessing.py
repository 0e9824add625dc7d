"""What an encoder of code and its data flow expects of its input; it travels with the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from encoders.data.text import TextPreprocessing
from encoders.data.transforms.code import TextOrCode


@dataclasses.dataclass(frozen=True)
class CodePreprocessing(TextPreprocessing):
    """Texts some of which are Python, whose variables have the last places of the row.

    Attributes:
      tokenizer, vocabulary: as in `TextPreprocessing`.
      max_length: T, the length of a row, variables included.
      token_types: encoders of code have one type, so none.
      max_nodes: N, places for variables.
      max_text: tokens of a text that are kept where it shares a row with code.
    """

    token_types: bool = False
    max_nodes: int = 64
    max_text: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self.eval_transforms()  # refuses rows that are too short

    @property
    def for_transforms(self) -> dict[str, Any]:
        """What transforms may ask for by a parameter of that name."""
        sizes = {"max_nodes": self.max_nodes, "max_text": self.max_text}
        return {**super().for_transforms, **sizes}

    def eval_transforms(self) -> list[Callable]:
        """Text, code, or one of each -> what `GraphCodeBERT` takes."""
        sizes = {"max_nodes": self.max_nodes, "max_text": self.max_text}
        return [TextOrCode(preprocessing=self, **sizes)]

    def example_batch(self, rows: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the shapes and types that training will see."""
        return {
            **super().example_batch(rows),
            "sees_all": np.zeros((rows, self.max_length), bool),
            "node_spans": np.zeros((rows, self.max_nodes, 2), np.int32),
            "node_sources": np.zeros((rows, self.max_nodes, self.max_nodes), bool),
        }

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, the tokenizer with its content."""
        return {**super().to_json(), "name": "code"}
