"""From text to the fields that text encoders take."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from encoders.data.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenize:
    """[CLS] text [SEP], or [CLS] text [SEP] other [SEP], cut and padded to a length.

    Of a pair, the longer text is cut first.

    Attributes:
      preprocessing: tokenizer and length (supplied).
    """

    preprocessing: Any

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """{'text', maybe 'other'} -> with 'ids', 'segments' and 'token_types', each [T] int32."""
        del rng
        tokenizer, length = self.preprocessing.opened, self.preprocessing.max_length
        special = tokenizer.vocabulary
        parts = [tokenizer.ids(example[name]) for name in ("text", "other") if name in example]
        ids, types = frame(parts, special, length)
        fields = {
            "ids": np.full(length, special.pad_id, np.int32),
            "segments": np.zeros(length, np.int32),
            "token_types": np.zeros(length, np.int32),
        }
        fields["ids"][: len(ids)] = ids
        fields["segments"][: len(ids)] = 1
        fields["token_types"][: len(ids)] = types
        return {**example, **fields}


def frame(
    parts: Sequence[Sequence[int]], special: Vocabulary, length: int
) -> tuple[list[int], list[int]]:
    """Ids of one text or two as [CLS] text [SEP] other [SEP], and the token types.

    Args:
      parts: ids of each text, without special tokens.
      special: the special ids.
      length: tokens that there is room for; of two texts the longer one is cut first.
    """
    parts = [list(part) for part in parts]
    excess = sum(map(len, parts)) - (length - 1 - len(parts))
    for _ in range(excess):
        max(parts, key=len).pop()
    ids, types = [special.cls_id], [0]
    for number, part in enumerate(parts):
        ids += [*part, special.sep_id]
        types += [number] * (len(part) + 1)
    return ids, types
