"""What a text encoder expects of its input; it travels with the weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from encoders.data.tokenizer import Tokenizer
from encoders.data.transforms.tokenize import Tokenize
from encoders.data.vocabulary import Vocabulary
from encoders.errors import ConfigError

# Fields of a batch that text encoders take by name; the last four are of encoders of code.
INPUTS = ("segments", "token_types", "sees_all", "node_spans", "node_sources", "prefix")


@dataclasses.dataclass(frozen=True)
class TextPreprocessing:
    """Tokenizer and length of texts.

    Nothing is opened until a text is tokenised: a config can be built, counted and planned where
    its tokenizer is not.

    Attributes:
      tokenizer: path of a tokenizer.json or of a directory that has one, 'sample:NAME', or the
        content of a tokenizer.json, as it travels with weights.
      max_length: T, the length that texts are cut and padded to, special tokens included.
      vocabulary: special ids of the tokenizer; None reads them from it.
      token_types: whether examples say which text of a pair a token is of; False for encoders that
        have no token types.
    """

    tokenizer: str
    max_length: int = 512
    vocabulary: Vocabulary | None = None
    token_types: bool = True

    def __post_init__(self) -> None:
        if self.max_length < 3:
            raise ConfigError(
                f"preprocessing.max_length: expected room for three tokens, got {self.max_length}."
            )

    @functools.cached_property
    def opened(self) -> Tokenizer:
        """The tokenizer.

        Raises:
          DataError: it is not there, or no tokenizer.
          ConfigError: its special ids are not those of `vocabulary`.
        """
        return Tokenizer.load(self.tokenizer, self.vocabulary)

    @property
    def special(self) -> Vocabulary:
        """The special ids, from the config if it says them."""
        return self.opened.vocabulary if self.vocabulary is None else self.vocabulary

    @property
    def input_size(self) -> int:
        """T, what FLOPs are counted for."""
        return self.max_length

    @property
    def for_objectives(self) -> dict[str, Any]:
        """What objectives may ask for by a parameter of that name."""
        return {"vocabulary": self.special}

    @property
    def for_transforms(self) -> dict[str, Any]:
        """What transforms may ask for by a parameter of that name."""
        return {"preprocessing": self}

    @property
    def for_sources(self) -> dict[str, Any]:
        """What sources may ask for by a parameter of that name."""
        return {"preprocessing": self}

    def eval_transforms(self) -> list[Callable]:
        """Text or pair of texts -> ids, segments, token_types [T] int32, word_start [T] bool."""
        return [Tokenize(preprocessing=self)]

    def example_batch(self, rows: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the shapes and types that training will see."""
        shape = (rows, self.max_length)
        return {
            "ids": np.zeros(shape, np.int32),
            "segments": np.ones(shape, np.int32),
            "row": np.arange(rows, dtype=np.int32),
        }

    def normalize(self, x: Any) -> Any:
        """Ids are taken as they are."""
        return x

    def encoder_inputs(self, batch: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """The arguments (positional, by name) that an encoder is called with for a batch."""
        return (batch["ids"],), {name: batch[name] for name in INPUTS if name in batch}

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, the tokenizer with its content."""
        fields = dataclasses.asdict(self)
        return {"name": "text", **fields, "tokenizer": self.opened.to_json()}
