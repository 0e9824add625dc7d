"""Tokenizers of the `tokenizers` library: from text to ids, and which ids are special."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from typing import Any

import numpy as np
import tokenizers

from encoders.data.vocabulary import Vocabulary
from encoders.errors import ConfigError, DataError

# What families call their special tokens, in the order of Vocabulary's fields.
_NAMES = {
    "pad_id": ("[PAD]", "<pad>"),
    "unk_id": ("[UNK]", "<unk>"),
    "cls_id": ("[CLS]", "<s>", "<cls>"),
    "sep_id": ("[SEP]", "</s>", "<sep>"),
    "mask_id": ("[MASK]", "<mask>"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer and its special ids.

    Attributes:
      inner: the library's object; it pickles.
      vocabulary: size and special ids.
    """

    inner: tokenizers.Tokenizer
    vocabulary: Vocabulary

    @classmethod
    def load(cls, source: str, expected: Vocabulary | None = None) -> Tokenizer:
        """Opens a tokenizer.json, or its content.

        Args:
          source: a path, or JSON text.
          expected: the special ids that a config says it has, or None.

        Raises:
          DataError: there is no such file, or it is no tokenizer.
          ConfigError: it has other special ids than expected.
        """
        text = source
        if not source.lstrip().startswith("{"):
            path = pathlib.Path(source).expanduser()
            if not path.is_file():
                raise DataError(f"preprocessing.tokenizer: no file '{source}'.")
            text = path.read_text(encoding="utf-8")
        try:
            inner = tokenizers.Tokenizer.from_str(text)
        except Exception as error:
            raise DataError(f"preprocessing.tokenizer: no tokenizer ({error}).") from error
        inner.no_padding()
        inner.no_truncation()
        found = _vocabulary_of(inner)
        if expected is not None and expected != found:
            raise ConfigError(
                f"preprocessing.vocabulary: the config says {expected}, the tokenizer has {found}."
            )
        return cls(inner, found)

    def ids(self, text: str) -> np.ndarray:
        """int32 ids of a text, without special tokens around it."""
        return np.asarray(self.inner.encode(text, add_special_tokens=False).ids, np.int32)

    def to_json(self) -> str:
        """The content of a tokenizer.json."""
        return self.inner.to_str()

    @property
    def hash(self) -> str:
        """Hexadecimal digest that equal tokenizers share."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _vocabulary_of(inner: Any) -> Vocabulary:
    ids = {}
    for field, names in _NAMES.items():
        found = [i for i in map(inner.token_to_id, names) if i is not None]
        if not found:
            raise DataError(
                f"preprocessing.tokenizer: it has no token for {field}, none of {names}."
            )
        ids[field] = found[0]
    others = [i for i, token in inner.get_added_tokens_decoder().items() if token.special]
    others = tuple(sorted(set(others) - set(ids.values())))
    return Vocabulary(size=inner.get_vocab_size(), **ids, others=others)
