"""Texts from files, for fine-tuning, evaluation, and as the input of tools.prepare_data."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from encoders.data.sources.base import CorruptExample, Source
from encoders.data.text_files import Unit, list_files, open_rows
from encoders.errors import DataError, nearest

_INTEGER = re.compile(r"[+-]?\d+")


@dataclasses.dataclass(kw_only=True, eq=False)
class Text(Source):
    """Rows of txt, jsonl, csv, tsv or parquet files.

    An example is {'text': str, 'other': str, 'label': int, 'score': float}, of which all but the
    text are there where the files have such a column. Labels that are words are numbered in
    the order of their names. A text that is empty, or not valid UTF-8, is corrupt.

    Attributes:
      path: a file, a folder, or a pattern such as 'data/*.jsonl'.
      text: column of the text.
      other: column of the second text of a pair; None leaves it out.
      label: column of the class; None leaves it out.
      score: column of a number, such as a similarity; None leaves it out.
      fields: further columns to keep as they are.
      columns: names of the columns of csv and tsv files whose first line does not name them.
      classes: names of the labels, where the files do not hold all, or in another order.
      unit: what one text of a txt file is: a line, what stands between blank lines, or the file.
    """

    path: str
    text: str = "text"
    other: str | None = "other"
    label: str | None = "label"
    score: str | None = "score"
    fields: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    unit: Unit = "line"

    def __post_init__(self) -> None:
        files = list_files(self.path)
        self._readers = [open_rows(file, self.unit, self.columns) for file in files]
        self._ends = np.cumsum([len(reader) for reader in self._readers])
        self._columns = self._find_columns()
        super().__post_init__()
        self._names, self._numbers = self._find_classes()

    def _find_columns(self) -> dict[str, str]:
        """Field -> column, for those that the first file with rows has."""
        known = next((r.columns for r in self._readers if len(r) and r.columns), None)
        wanted = {name: getattr(self, name) for name in ("text", "other", "label", "score")}
        wanted.update({name: name for name in self.fields})
        found = {}
        for field, column in wanted.items():
            if column is None or known is None:
                continue
            if column in known:
                found[field] = column
            elif column != field or field == "text" or field in self.fields:
                raise DataError(
                    f"data source: '{self.path}' has no column '{column}'.{nearest(column, known)}"
                )
        return found

    def _find_classes(self) -> tuple[tuple[str, ...] | None, dict[Any, int] | None]:
        """Class names, and which number each stands for; None where the files have numbers."""
        if self.classes is not None:
            return self.classes, {name: number for number, name in enumerate(self.classes)}
        column = self._columns.get("label")
        if column is None:
            return None, None
        values = set()
        for reader in self._readers:
            for index in range(len(reader)):
                try:
                    values.add(reader.row(index).get(column))
                except CorruptExample:
                    continue  # counted when it is met
        values.discard(None)
        if all(_is_integer(value) for value in values):
            return None, None
        if not all(isinstance(value, str) for value in values):
            raise DataError(
                f"data source: column '{column}' of '{self.path}' holds neither names nor whole "
                f"numbers; is it a score?"
            )
        names = tuple(sorted(values))
        return names, {name: number for number, name in enumerate(names)}

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self._names

    def _count(self) -> int:
        return int(self._ends[-1])

    def _find(self, index: int) -> tuple[Any, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        reader = self._readers[number]
        return reader, index - int(self._ends[number]) + len(reader)

    def _read(self, index: int) -> dict[str, Any]:
        reader, offset = self._find(index)
        row = reader.row(offset)
        example: dict[str, Any] = {}
        for field, column in self._columns.items():
            value = row.get(column)
            if value is None:
                raise CorruptExample(f"no '{column}'")
            example[field] = self._convert(field, value)
        return example

    def _convert(self, field: str, value: Any) -> Any:
        if field in ("text", "other"):
            if not isinstance(value, str):
                raise CorruptExample(f"{field} is {type(value).__name__}, not text")
            if not value.strip():
                raise CorruptExample(f"empty {field}")
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair
                raise CorruptExample(f"invalid UTF-8 (character {error.start})") from error
            return value
        if field == "score":
            try:
                return float(value)
            except (TypeError, ValueError) as error:
                raise CorruptExample(f"the score is {value!r}, no number") from error
        if field != "label" or field in self.fields:
            return value
        if self._numbers is None:
            return int(value)
        if value not in self._numbers:
            raise CorruptExample(f"unknown label {value!r}")
        return self._numbers[value]

    def _describe(self, index: int) -> str:
        reader, offset = self._find(index)
        return reader.describe(offset)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and bool(_INTEGER.fullmatch(value)))
