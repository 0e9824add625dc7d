"""Random access to the rows of files of text: txt, jsonl, csv, tsv and parquet.

A reader has `len`, `row(i) -> {column: value}`, `describe(i)` and `columns`. Files of lines are
mapped into memory and only their offsets are kept; csv and tsv are read whole.
"""

from __future__ import annotations

import csv
import functools
import glob
import json
import mmap
import pathlib
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from encoders.data.sources.base import CorruptExample, check_directory
from encoders.errors import DataError

Unit = Literal["line", "blank_line", "file"]

SUFFIXES = (".txt", ".rst", ".md", ".jsonl", ".csv", ".tsv", ".parquet")
_PLAIN = (".txt", ".rst", ".md")
_BLANK = re.compile(rb"(?:\r?\n[ \t]*)+\r?\n")
_SCAN = 64 << 20  # bytes whose line ends are looked for at once
_GROUPS = 4  # row groups of a parquet file in memory at once


def list_files(path: str) -> list[pathlib.Path]:
    """The files that a path, a folder or a glob pattern stands for, sorted by name.

    Raises:
      DataError: there are none.
    """
    expanded = pathlib.Path(path).expanduser()
    if expanded.is_file():
        return [expanded]
    if glob.has_magic(path):
        found = [pathlib.Path(name) for name in glob.glob(str(expanded), recursive=True)]
    else:
        check_directory(expanded, f"a file, a folder or a pattern of files {', '.join(SUFFIXES)}")
        found = list(expanded.rglob("*"))
    files = sorted(file for file in found if file.is_file() and file.suffix in SUFFIXES)
    if not files:
        raise DataError(
            f"data source: no texts in '{path}'; expected files ending in {', '.join(SUFFIXES)}."
        )
    return files


def open_rows(path: pathlib.Path, unit: Unit, columns: Sequence[str] | None) -> Any:
    """The reader of one file, by its suffix.

    Args:
      path: the file.
      unit: what one text of a plain file is: a line, what stands between blank lines, or all of it.
      columns: names of the columns of a csv or tsv file whose first line does not name them.

    Raises:
      DataError: the suffix is unknown, or the file cannot be read.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(
            f"data source: '{path}' has an unknown ending; expected {', '.join(SUFFIXES)}."
        )
    try:
        if path.suffix in (".csv", ".tsv"):
            return Table(path, columns)
        if path.suffix == ".parquet":
            return Parquet(path)
        return Lines(path, "line" if path.suffix == ".jsonl" else unit)
    except OSError as error:
        raise DataError(f"data source: cannot read '{path}' ({error.strerror}).") from error


class Lines:
    """Texts of a plain file as {'text'}, or objects of a jsonl file."""

    def __init__(self, path: pathlib.Path, unit: Unit):
        self.path, self.unit = path, unit
        self._plain = path.suffix in _PLAIN
        self._size = path.stat().st_size
        self._starts, self._ends = self._scan(unit)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_content"}

    def __len__(self) -> int:
        return len(self._starts)

    @functools.cached_property
    def _content(self) -> mmap.mmap | bytes:
        if not self._size:
            return b""
        with open(self.path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _scan(self, unit: Unit) -> tuple[np.ndarray, np.ndarray]:
        size, content = self._size, self._content
        if unit == "file":
            return np.zeros(1, np.int64), np.full(1, size)
        if unit == "line":
            # In pieces, or a mapped file would be copied whole.
            breaks = [
                np.flatnonzero(np.frombuffer(content[at : at + _SCAN], np.uint8) == ord("\n")) + at
                for at in range(0, size, _SCAN)
            ]
            ends = np.concatenate([*breaks, [size]]).astype(np.int64)
            starts = np.concatenate([[0], ends[:-1] + 1])
            # A line of one byte or none is empty, but for files where it holds a letter.
            kept = ends > starts
            blank = [not content[a:b].strip() for a, b in _short(starts, ends, kept)]
            kept[np.flatnonzero(kept & (ends - starts <= 2))[np.array(blank, bool)]] = False
            return starts[kept], ends[kept]
        gaps = np.array([match.span() for match in _BLANK.finditer(content)], np.int64)
        gaps = gaps.reshape(-1, 2)
        starts = np.concatenate([[0], gaps[:, 1]]).astype(np.int64)
        ends = np.concatenate([gaps[:, 0], [size]]).astype(np.int64)
        return starts[ends > starts], ends[ends > starts]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns; those of a jsonl file are its first object's."""
        if self._plain:
            return ("text",)
        try:
            return tuple(self.row(0)) if len(self) else ()
        except CorruptExample:
            return ()

    def row(self, index: int) -> dict[str, Any]:
        """One text, or one object.

        Raises:
          CorruptExample: it is not UTF-8, or no JSON object.
        """
        data = self._content[self._starts[index] : self._ends[index]]
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise CorruptExample(f"invalid UTF-8 (byte {error.start})") from error
        if self._plain:
            return {"text": text.strip()}
        try:
            row = json.loads(text)
        except ValueError as error:
            raise CorruptExample(f"no JSON ({error})") from error
        if not isinstance(row, dict):
            raise CorruptExample(f"expected an object, got {type(row).__name__}")
        return row

    def describe(self, index: int) -> str:
        """Where a person finds the row."""
        if self.unit == "file":
            return str(self.path)
        start, content = int(self._starts[index]), self._content
        pieces = (content[at : min(at + _SCAN, start)] for at in range(0, start, _SCAN))
        number = 1 + sum(piece.count(b"\n") for piece in pieces)
        return f"{self.path} line {number}"


def _short(starts: np.ndarray, ends: np.ndarray, kept: np.ndarray) -> list[tuple[int, int]]:
    chosen = np.flatnonzero(kept & (ends - starts <= 2))
    return list(zip(starts[chosen].tolist(), ends[chosen].tolist(), strict=True))


class Table:
    """Rows of a csv file, or of a tsv file (where quotes mean nothing), as texts by column."""

    def __init__(self, path: pathlib.Path, columns: Sequence[str] | None):
        self.path = path
        # Bytes that are no UTF-8 survive as lone surrogates, and are found when a row is read.
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            dialect: dict[str, Any] = {}
            if path.suffix == ".tsv":
                dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
            try:
                rows = [row for row in csv.reader(file, **dialect) if row]
            except csv.Error as error:
                raise DataError(f"data source: '{path}' is no table ({error}).") from error
        if columns is None:
            columns, rows = (rows[0], rows[1:]) if rows else ((), [])
        self.columns = tuple(columns)
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> dict[str, Any]:
        """One row.

        Raises:
          CorruptExample: it is not UTF-8, or has too few or many cells.
        """
        cells = self._rows[index]
        if len(cells) != len(self.columns):
            raise CorruptExample(f"{len(cells)} cells, expected {len(self.columns)}")
        for cell in cells:
            try:
                cell.encode("utf-8")
            except UnicodeEncodeError as error:
                raise CorruptExample(f"invalid UTF-8 (character {error.start})") from error
        return dict(zip(self.columns, cells, strict=True))

    def describe(self, index: int) -> str:
        """Where a person finds the row."""
        return f"{self.path} row {index + 1}"


class Parquet:
    """Rows of a parquet file; a few of its row groups are kept in memory."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._groups: dict[int, list[dict[str, Any]]] = {}
        metadata = self._file.metadata
        counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._ends = np.cumsum([0, *counts])
        self.columns = tuple(self._file.schema_arrow.names)

    def __getstate__(self) -> dict[str, Any]:
        kept = {key: value for key, value in self.__dict__.items() if key != "_file"}
        return {**kept, "_groups": {}}

    def __len__(self) -> int:
        return int(self._ends[-1])

    @functools.cached_property
    def _file(self) -> Any:
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise DataError(
                f"data source: '{self.path}' needs pyarrow ({error}); "
                f"pip install 'encoders[parquet]'."
            ) from error
        try:
            return pyarrow.parquet.ParquetFile(self.path)
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"data source: '{self.path}' is no parquet file ({error}).") from error

    def row(self, index: int) -> dict[str, Any]:
        """One row."""
        group = int(np.searchsorted(self._ends, index, side="right")) - 1
        rows = self._groups.get(group)
        if rows is None:
            rows = self._file.read_row_group(group).to_pylist()
            while len(self._groups) >= _GROUPS:
                self._groups.pop(next(iter(self._groups)), None)
            self._groups[group] = rows
        return rows[index - self._ends[group]]

    def describe(self, index: int) -> str:
        """Where a person finds the row."""
        return f"{self.path} row {index + 1}"
