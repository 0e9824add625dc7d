"""What a text encoder expects of its input; it travels with the weights."""

from __future__ import annotations

import dataclasses
import functools
import string
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from encoders.data.tokenizer import Tokenizer
from encoders.data.transforms.tokenize import Tokenize
from encoders.data.vocabulary import Vocabulary
from encoders.errors import ConfigError

# Fields of a batch that text encoders take by name; the last four are of encoders of code.
INPUTS = ("segments", "token_types", "sees_all", "node_spans", "node_sources", "prefix")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


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
      template: '{}' stands for a text in what is tokenised, as in 'a photo of {}'.
      lowercase: whether texts are lower-cased; tokenizers that do so themselves need it not.
      strip_punctuation: whether ASCII punctuation is taken out and white space becomes single
        spaces; with `lowercase` SigLIP's canonical form (arXiv 2303.15343, big_vision).
      attend_padding: whether padding counts as tokens, as SigLIP's text tower was trained.
    """

    modality = "text"  # of the encoders that it is for

    tokenizer: str
    max_length: int = 512
    vocabulary: Vocabulary | None = None
    token_types: bool = True
    template: str = "{}"
    lowercase: bool = False
    strip_punctuation: bool = False
    attend_padding: bool = False

    def __post_init__(self) -> None:
        if "{}" not in self.template:
            raise ConfigError(
                f"preprocessing.template: expected '{{}}' where the text goes, got "
                f"'{self.template}'."
            )
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

    def prepare(self, text: str) -> str:
        """A text as the tokenizer gets it, the same in training and evaluation.

        Raises:
          TypeError: it is no text.
        """
        if not isinstance(text, str):
            raise TypeError(f"it is {type(text).__name__}")
        text = self.template.replace("{}", text)
        if self.lowercase:
            text = text.lower()
        return " ".join(text.translate(_PUNCTUATION).split()) if self.strip_punctuation else text

    def differences(self, other: TextPreprocessing) -> list[str]:
        """What is prepared otherwise than by `other`, in words; nothing where ids are the same."""
        names = ("max_length", "template", "lowercase", "strip_punctuation", "attend_padding")
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in names}
        pairs["pad_id"] = self.special.pad_id, other.special.pad_id
        found = [
            f"{k} {ours!r} and not {theirs!r}"
            for k, (ours, theirs) in pairs.items()
            if ours != theirs
        ]
        return found + ["another tokenizer"] * (self.opened.hash != other.opened.hash)

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
