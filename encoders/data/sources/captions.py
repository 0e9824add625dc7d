"""Captions as sources find them: a text, several, bytes, or nested in other fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from encoders.data.sources.base import CorruptExample


def captions(value: Any) -> list[str]:
    """The captions that a field holds: a text, or several; bytes are UTF-8.

    None and what is empty are no captions.

    Raises:
      CorruptExample: one is no text.
    """
    if value is None:
        return []
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CorruptExample(f"invalid UTF-8 in a caption (byte {error.start})") from error
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [text for one in value for text in captions(one)]
    if not isinstance(value, str):
        raise CorruptExample(f"a caption is {type(value).__name__}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair
        raise CorruptExample(f"invalid UTF-8 in a caption (character {error.start})") from error
    return [value] if value.strip() else []


def one_or_all(texts: list[str]) -> str | list[str]:
    """What is one text as such, and several as a list: the field 'text' of an example."""
    return texts if len(texts) > 1 else texts[0]


def captioned(example: Mapping[str, Any], field: str | None) -> dict[str, Any]:
    """The example with the captions of a field as its 'text', in place of that field.

    Other nested fields and lists are left out, which no batch could hold.

    Args:
      example: as a source has it.
      field: a name, or names joined by dots where fields are nested, such as 'captions.text' of
        COCO in TFDS; None leaves the example as it is.

    Raises:
      CorruptExample: there is no such field, or no caption in it.
    """
    if field is None:
        return dict(example)
    value: Any = example
    for name in field.split("."):
        parts = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(part, Mapping) and name in part for part in parts):
            raise CorruptExample(f"no field '{field}' with a caption, only {sorted(example)}")
        value = [part[name] for part in parts] if parts is value else value[name]
    texts = captions(value)
    if not texts:
        raise CorruptExample(f"no caption in field '{field}'")
    rest = {
        key: value
        for key, value in example.items()
        if key != field.split(".")[0] and not isinstance(value, Mapping | list | tuple)
    }
    return {**rest, "text": one_or_all(texts)}
