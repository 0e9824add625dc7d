"""Images with their captions, from a table of file names and texts."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from encoders.data.sources.base import CorruptExample, Source, check_directory
from encoders.data.sources.captions import captions, one_or_all
from encoders.data.text_files import list_files, open_rows
from encoders.errors import DataError, nearest

_TABLES = (".jsonl", ".csv", ".tsv", ".parquet")


@dataclasses.dataclass(kw_only=True, eq=False)
class Pairs(Source):
    """Rows of jsonl, csv, tsv or parquet files: the path of an image, and one or more captions.

    An example is {'image': encoded bytes, 'text': str or list of str}. A row without a caption, or
    whose image cannot be read, is corrupt, and so is one whose path leads out of the folder. A
    column of images may hold the files themselves, as bytes or {'bytes': ...}, as parquet files of
    Hugging Face do.

    Attributes:
      path: a file, a folder, or a pattern such as 'data/*.jsonl'.
      folder: what the paths of images are relative to; None is the folder of the table.
      image: column of the image.
      text: column of the caption, or of a list of captions; or several such columns.
      group: whether rows of the same image are one example with all their captions.
      fields: further columns to keep as they are.
      columns: names of the columns of csv and tsv files whose first line does not name them.
    """

    path: str
    folder: str | None = None
    image: str = "image"
    text: str | tuple[str, ...] = "text"
    group: bool = False
    fields: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        files = [file for file in list_files(self.path) if file.suffix in _TABLES]
        if not files:
            raise DataError(
                f"data source: no table in '{self.path}'; expected files ending in "
                f"{', '.join(_TABLES)}."
            )
        self._readers = [open_rows(file, "line", self.columns) for file in files]
        self._ends = np.cumsum([len(reader) for reader in self._readers])
        folders = [file.parent for file in files]
        if self.folder is not None:
            folder = pathlib.Path(self.folder).expanduser()
            check_directory(folder, "the folder that the paths of images are relative to")
            folders = [folder] * len(files)
        self._folders = folders
        self._texts = (self.text,) if isinstance(self.text, str) else self.text
        known = next((r.columns for r in self._readers if len(r) and r.columns), ())
        for column in (self.image, *self._texts, *self.fields) if known else ():
            if column not in known:
                raise DataError(
                    f"data source: '{self.path}' has no column '{column}'.{nearest(column, known)}"
                )
        self._groups = self._find_groups() if self.group else None
        super().__post_init__()

    def _find_groups(self) -> list[list[int]]:
        """The rows of each image, in the order in which images first come."""
        groups: dict[Any, list[int]] = {}
        for row in range(int(self._ends[-1])):
            reader, offset, number = self._find(row)
            try:
                name = reader.row(offset).get(self.image)
            except CorruptExample:
                name = None
            key = (number, row) if not isinstance(name, str) else (self._folders[number], name)
            groups.setdefault(key, []).append(row)
        return list(groups.values())

    def _count(self) -> int:
        return int(self._ends[-1]) if self._groups is None else len(self._groups)

    def _find(self, row: int) -> tuple[Any, int, int]:
        """The reader of a row, its number there, and the number of the file."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        reader = self._readers[number]
        return reader, row - int(self._ends[number]) + len(reader), number

    def _read(self, index: int) -> dict[str, Any]:
        places = [self._find(row) for row in self._rows(index)]
        rows = [reader.row(offset) for reader, offset, _ in places]
        texts = [text for row in rows for name in self._texts for text in captions(row.get(name))]
        if not texts:
            raise CorruptExample(f"no caption in column {', '.join(map(repr, self._texts))}")
        image = self._image(rows[0].get(self.image), self._folders[places[0][2]])
        others = {name: rows[0][name] for name in self.fields if rows[0].get(name) is not None}
        return {**others, "image": image, "text": one_or_all(texts)}

    def _rows(self, index: int) -> list[int]:
        return [index] if self._groups is None else self._groups[index]

    def _image(self, value: Any, folder: pathlib.Path) -> bytes:
        if isinstance(value, dict) and value.get("bytes") is not None:
            value = value["bytes"]
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str) or not value:
            raise CorruptExample(f"no image in column '{self.image}'")
        if os.path.isabs(value) or ".." in pathlib.PurePath(value).parts or "\0" in value:
            raise CorruptExample(f"the path '{value}' leads out of the folder of images")
        try:
            return (folder / value).read_bytes()
        except OSError as error:
            raise CorruptExample(f"image '{value}' cannot be read ({error.strerror})") from error

    def _describe(self, index: int) -> str:
        reader, offset, _ = self._find(self._rows(index)[0])
        return reader.describe(offset)
