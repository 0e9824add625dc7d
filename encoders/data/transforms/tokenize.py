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
    longer text is cut first, both as transformers does. Examples that are tokens already pass. Of a
    list of texts, such as the captions of an image, one is drawn.

    Attributes:
      preprocessing: tokenizer and length (supplied).
    """

    preprocessing: Any

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Adds 'ids', 'segments' and 'token_types' [T] int32 and 'word_start' [T] bool.

        Raises:
          CorruptExample: there is no text, or it has characters that no text has.
        """
        if "ids" in example:
            return example
        prepared, tokenizer = self.preprocessing, self.preprocessing.opened
        names = [name for name in ("text", "other") if name in example]
        if not names:
            raise CorruptExample(f"no field 'text', only {sorted(example)}")
        example = {**example, **{name: _one(example[name], rng) for name in names}}
        try:
            parts = [tokenizer.ids(prepared.prepare(example[name])) for name in names]
        except TypeError as error:  # bytes, None, or the half of a surrogate pair
            raise CorruptExample(f"not a text ({error})") from error
        fields = tokenizer.fields(parts, prepared.max_length, token_types=prepared.token_types)
        if prepared.attend_padding:
            fields["segments"] = np.ones_like(fields["segments"])
        return {**example, **fields}


def _one(text: Any, rng: np.random.Generator) -> Any:
    """The text, or one of a list of them."""
    if not isinstance(text, list | tuple):
        return text
    if not text:
        raise CorruptExample("no text, the list of texts is empty")
    return text[int(rng.integers(len(text)))]
