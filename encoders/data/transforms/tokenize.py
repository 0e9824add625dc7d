"""From text to the fields that text encoders take."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from encoders.data.sources.base import CorruptExample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenize:
    """[CLS] text [SEP], or [CLS] text [SEP] other [SEP], cut and padded to a length.

    The special tokens are those that the tokenizer itself puts around texts, and of a pair the
    longer text is cut first, both as transformers does. Examples that are tokens already pass.

    Attributes:
      preprocessing: tokenizer and length (supplied).
    """

    preprocessing: Any

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Adds 'ids', 'segments' and 'token_types' [T] int32 and 'word_start' [T] bool.

        Raises:
          CorruptExample: there is no text, or it has characters that no text has.
        """
        del rng
        if "ids" in example:
            return example
        tokenizer, length = self.preprocessing.opened, self.preprocessing.max_length
        names = [name for name in ("text", "other") if name in example]
        if not names:
            raise CorruptExample(f"no field 'text', only {sorted(example)}")
        try:
            parts = [tokenizer.ids(example[name]) for name in names]
        except TypeError as error:  # bytes, None, or the half of a surrogate pair
            raise CorruptExample(f"not a text ({error})") from error
        token_types = self.preprocessing.token_types
        return {**example, **tokenizer.fields(parts, length, token_types=token_types)}
