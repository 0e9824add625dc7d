"""The project's record format: one msgpack map per example, and nothing that can run code.

Values are int, float, bool, None, str, bytes, lists of these, and numpy arrays (extension type 1:
dtype, shape, raw C-order bytes).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

_ARRAY = 1
_KINDS = "biufc"  # plain numbers: an object or a structured dtype never comes out of a file


def pack(example: Mapping[str, Any]) -> bytes:
    """Serialises one example.

    Raises:
      TypeError: a value has a type outside the format.
    """
    return msgpack.packb(dict(example), default=_encode)


def unpack(record: bytes) -> dict[str, Any]:
    """Inverse of `pack`; arrays are fresh copies that a transform may write to.

    Raises:
      ValueError: the bytes are not a record.
    """
    example = msgpack.unpackb(record, ext_hook=_decode, strict_map_key=False)
    if not isinstance(example, dict):
        raise ValueError(f"expected a map of fields, got {type(example).__name__}")
    return example


def _encode(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in _KINDS:
        raise TypeError(f"records hold numbers, text, bytes and arrays, got {type(value).__name__}")
    value = value.astype(value.dtype.newbyteorder("<"), copy=False)
    return msgpack.ExtType(
        _ARRAY, msgpack.packb([value.dtype.str, list(value.shape), value.tobytes()])
    )


def _decode(code: int, data: bytes) -> Any:
    if code != _ARRAY:
        raise ValueError(f"unknown extension type {code}")
    try:
        dtype, shape, raw = msgpack.unpackb(data)
        dtype = np.dtype(dtype)
        if dtype.kind not in _KINDS:
            raise ValueError(f"dtype {dtype} is not a number")
        return np.frombuffer(raw, dtype).reshape(shape).copy()
    except TypeError as error:
        raise ValueError(f"damaged array ({error})") from error
