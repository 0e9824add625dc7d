"""From text to the fields that text encoders take."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


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
        room = length - 1 - len(parts)
        while sum(map(len, parts)) > room:
            longest = max(range(len(parts)), key=lambda i: len(parts[i]))
            parts[longest] = parts[longest][:-1]
        ids, types = [special.cls_id], [0]
        for number, part in enumerate(parts):
            ids += [*part, special.sep_id]
            types += [number] * (len(part) + 1)
        fields = {
            "ids": np.full(length, special.pad_id, np.int32),
            "segments": np.zeros(length, np.int32),
            "token_types": np.zeros(length, np.int32),
        }
        fields["ids"][: len(ids)] = ids
        fields["segments"][: len(ids)] = 1
        fields["token_types"][: len(ids)] = types
        return {**example, **fields}
