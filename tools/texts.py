"""Texts from a file, for the commands that embed and search them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from encoders.errors import DataError


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts that could be read, in the order of the file.

    Attributes:
      texts: N texts.
      names: their 'id' where the file has such a column, else the number of the row, from 0.
      corrupt: 'where: why' of those that could not be used: empty ones, invalid UTF-8.
    """

    texts: list[str]
    names: list[str]
    corrupt: list[str]


def read_texts(path: str, field: str, flag: str) -> Texts:
    """Reads the texts of txt, jsonl, csv, tsv or parquet files.

    Args:
      path: a file, a folder or a pattern.
      field: column of the text.
      flag: of the command line that the path comes from, named in errors.

    Raises:
      DataError: there is no such file or column, or no usable text.
    """
    from encoders.data import CorruptExample

    source, named = _open(path, field, flag)
    texts, names, corrupt = [], [], []
    for row in range(len(source)):
        try:
            example = source[row]
        except CorruptExample as error:
            corrupt.append(f"{source.describe(row)}: {error}")
            continue
        texts.append(example["text"])
        names.append(str(example["id"] if named else row))
    if not texts:
        raise DataError(f"{flag} {path}: holds no usable text; the first: {corrupt[0]}.")
    return Texts(texts, names, corrupt)


def _open(path: str, field: str, flag: str) -> tuple[Any, bool]:
    """The source, and whether its rows have ids."""
    from encoders.data.sources.text import Text

    plain = {"path": path, "text": field, "other": None, "label": None, "score": None}
    try:
        try:
            return Text(**plain, fields=("id",)), True
        except DataError as error:
            if "no column 'id'" not in str(error):
                raise
            return Text(**plain), False
    except DataError as error:
        if "holds no examples" in str(error):
            raise DataError(f"{flag} {path}: holds no texts.") from error
        reason = str(error).removeprefix("data source: ")
        raise DataError(f"{flag} {path}: {reason}") from error


def report_corrupt(corrupt: Sequence[str], what: str = "text") -> None:
    """Prints how many texts or images were left out, if any were."""
    if corrupt:
        many = "" if len(corrupt) == 1 else "s"
        print(f"{len(corrupt)} {what}{many} left out, such as {corrupt[0]}")
