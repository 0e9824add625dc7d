"""Where clips lie: sound files in folders or tables, or records that tools.prepare_data wrote.

Prepared clips are an ordinary prepared data set whose records are {'audio': a FLAC file or int16
samples, 'transcript', 'speaker': str, 'label': int}, of which only the first is always there, whose
info.json has 'sample_rate', and beside whose shards lies <shard>.index.npz with

    lengths   [N] uint32, samples of each clip
    speakers  [N] of texts, '' where unknown; not there where all are

so that neither buckets nor a choice of speakers read a clip.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from encoders.data.sound import SUFFIXES, samples_of
from encoders.data.sources.array_record import ArrayRecord, read_info
from encoders.data.sources.base import CorruptExample
from encoders.data.sources.folder import list_below
from encoders.data.text_files import open_rows
from encoders.data.token_store import INDEX_SUFFIX, read_index
from encoders.errors import DataError, nearest

logger = logging.getLogger(__name__)

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
# What a table may call its columns: as here, as NeMo, as Hugging Face, as Common Voice.
_PATHS = ("path", "audio_filepath", "file_name")
_COLUMNS = {
    "transcript": ("text", "transcription", "sentence"),
    "label": ("label",),
    "speaker": ("speaker", "client_id"),
}
_LJSPEECH, _LIBRISPEECH = "metadata.csv", ".trans.txt"


@dataclasses.dataclass(frozen=True)
class ClipFiles:
    """Clips that are files.

    Attributes:
      files: where each is; None for one that the table names nowhere that is allowed.
      fields: 'transcript', 'label' or 'speaker' -> one value per file, None where it has none.
      names: of each, as a person finds it.
      class_names: of labels; None where labels are numbers, or there are none.
    """

    files: Sequence[pathlib.Path | None]
    names: Sequence[str]
    fields: dict[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def speakers(self) -> np.ndarray | None:
        """[N] of texts, '' where unknown; None where all are."""
        given = self.fields.get("speaker")
        return None if given is None else np.array(["" if x is None else x for x in given], str)

    def lengths(self, rate: int) -> np.ndarray:
        """int64 [N] samples at a rate, from the files' headers; 0 for unreadable ones."""
        return np.array([0 if f is None else samples_of(f, rate) for f in self.files], np.int64)

    def read(self, index: int) -> dict[str, Any]:
        """{'audio': the file's bytes, ...}; raises CorruptExample where it cannot be read."""
        path = self.files[index]
        if path is None:
            raise CorruptExample("the path leads out of the folder of clips, or there is none")
        try:
            example = {"audio": path.read_bytes()}
        except OSError as error:
            raise CorruptExample(f"cannot be read ({error.strerror})") from error
        values = {name: column[index] for name, column in self.fields.items()}
        return {**example, **{k: v for k, v in values.items() if v is not None}}

    def describe(self, index: int) -> str:
        """Where a person finds a clip."""
        return self.names[index]


class PreparedClips:
    """Clips in records, see the module.

    Args:
      directory: with info.json.
      split: which split of it.

    Raises:
      DataError: it is none that `tools.prepare_data --from audio` wrote, or damaged.
    """

    def __init__(self, directory: pathlib.Path, split: str):
        info = read_info(directory)
        if "sample_rate" not in info:
            raise DataError(
                f"data source: '{directory}' holds no clips; expected a directory written by "
                f"tools.prepare_data --from audio."
            )
        self._records = ArrayRecord(path=str(directory), split=split)
        self._rate = int(info["sample_rate"])
        self.class_names = self._records.class_names
        indices = _indices(directory, info["splits"][split])
        self._lengths = np.concatenate([one["lengths"] for one in indices]).astype(np.int64)
        if len(self._lengths) != len(self._records):
            raise DataError(
                f"data source: the indices of '{directory}' list {len(self._lengths)} clips, but "
                f"the shards hold {len(self._records)}; prepare it again."
            )
        self.speakers, self.speaker_names = _speakers(indices), None
        if self.speakers is not None:
            splits = info["splits"].values()
            everyone = _speakers([one for other in splits for one in _indices(directory, other)])
            self.speaker_names = tuple(np.unique(everyone[everyone != ""]).tolist())

    def __len__(self) -> int:
        return len(self._records)

    def lengths(self, rate: int) -> np.ndarray:
        """int64 [N] samples at a rate."""
        return -(-self._lengths * rate // self._rate)

    def read(self, index: int) -> dict[str, Any]:
        """The record; raises CorruptExample where it is damaged."""
        return {"sample_rate": self._rate, **self._records[index]}

    def describe(self, index: int) -> str:
        """Where a person finds a clip."""
        return self._records.describe(index)


def _indices(directory: pathlib.Path, split: dict[str, Any]) -> list[dict[str, Any]]:
    return [read_index(directory / f"{shard['file']}{INDEX_SUFFIX}") for shard in split["shards"]]


def _speakers(indices: list[dict[str, Any]]) -> np.ndarray | None:
    if not any("speakers" in one for one in indices):
        return None
    unknown = [np.zeros(len(one["lengths"]), "U1") for one in indices]
    return np.concatenate([one.get("speakers", u) for one, u in zip(indices, unknown, strict=True)])


def find_clips(path: pathlib.Path, folder: pathlib.Path | None = None) -> ClipFiles:
    """The clips of a table, or of a folder.

    Args:
      path: a table with columns 'path' and maybe 'text', 'label' and 'speaker', or named as NeMo,
        Hugging Face or Common Voice name these; a manifest of fairseq (tsv: the folder on the first
        line, then path and samples), with transcripts where .wrd or .ltr is beside it; or a folder:
        with LJSpeech's metadata.csv and wavs/, with LibriSpeech's *.trans.txt beside the clips, of
        one subfolder per class, or with the clips in it.
      folder: what paths in a table are relative to, and must not leave; None is that of the table,
        or the one that a manifest names. A row that leaves it, absolute or by '..', names a clip
        that is corrupt.

    Raises:
      DataError: there are none, or none of a table's rows stays in the folder.
    """
    if path.is_file():
        return _of_table(path, folder)
    if (path / _LJSPEECH).is_file() and (path / "wavs").is_dir():
        return _of_ljspeech(path)
    transcripts = sorted(path.rglob(f"*{_LIBRISPEECH}"))
    if transcripts:
        return _of_librispeech(path, transcripts)
    return _of_folder(path)


def _lines(path: pathlib.Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"data source: cannot read '{path}' ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"data source: '{path}' is no UTF-8 (byte {error.start}).") from error


def _of_folder(root: pathlib.Path) -> ClipFiles:
    with os.scandir(root) as entries:
        classes = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    found = {name: list_below(root / name, SUFFIXES) for name in classes}
    found = {name: files for name, files in found.items() if files}
    if found:
        paths = [root / name / file for name, files in found.items() for file in files]
        labels = [number for number, files in enumerate(found.values()) for _ in files]
        return ClipFiles(paths, [*map(str, paths)], {"label": labels}, tuple(found))
    paths = [root / file for file in list_below(root, SUFFIXES)]
    if not paths:
        raise DataError(
            f"data source: no clips in '{root}'; expected files ending in {', '.join(SUFFIXES)}, "
            f"or one subfolder of them per class."
        )
    return ClipFiles(paths, [*map(str, paths)])


def _of_ljspeech(root: pathlib.Path) -> ClipFiles:
    """Rows 'id|text|normalised text', of which the last is what is said."""
    lines = _lines(root / _LJSPEECH)
    rows = [line.split("|") for line in lines if line]
    there = {name: root / "wavs" / name for name in list_below(root / "wavs", SUFFIXES)}
    by_stem = {pathlib.PurePath(name).stem: path for name, path in there.items()}
    kept = [row for row in rows if row[0] in by_stem]
    if not kept:
        raise DataError(
            f"data source: no clip of {root / _LJSPEECH} is in {root / 'wavs'}; expected files "
            f"such as '{rows[0][0] if rows else 'LJ001-0001'}.wav'."
        )
    if len(kept) < len(rows):
        logger.warning("%s: %d of %d rows have no file", root, len(rows) - len(kept), len(rows))
    paths = [by_stem[row[0]] for row in kept]
    texts = [row[-1] if len(row) > 1 else None for row in kept]
    return ClipFiles(paths, [*map(str, paths)], {"transcript": texts})


def _of_librispeech(root: pathlib.Path, transcripts: list[pathlib.Path]) -> ClipFiles:
    """Lines 'speaker-chapter-number TEXT', beside files of that name."""
    paths, texts, speakers = [], [], []
    for file in transcripts:
        here = {pathlib.PurePath(name).stem: name for name in list_below(file.parent, SUFFIXES)}
        for line in _lines(file):
            name, _, text = line.partition(" ")
            if name:
                paths.append(file.parent / here.get(name, f"{name}.flac"))
                texts.append(text)
                speakers.append(name.split("-")[0])
    if not paths:
        raise DataError(f"data source: the files *{_LIBRISPEECH} below '{root}' are empty.")
    return ClipFiles(paths, [*map(str, paths)], {"transcript": texts, "speaker": speakers})


def _of_table(table: pathlib.Path, folder: pathlib.Path | None) -> ClipFiles:
    if table.suffix not in TABLES:
        raise DataError(
            f"data source: '{table}' is no table of clips; expected {', '.join(TABLES)}, or a "
            f"folder."
        )
    reader = open_rows(table, "line", None)
    known = reader.columns or () if len(reader) else ()
    if _is_manifest(table, known):
        return _of_manifest(table, folder)
    column = next((name for name in _PATHS if name in known), None)
    if column is None:
        raise DataError(f"data source: '{table}' has no column 'path'.{nearest('path', known)}")
    rows = [_row(reader, number) for number in range(len(reader))]
    paths = [row.get(column) for row in rows]
    files, names = _files(paths, folder or table.parent, table, reader.describe)
    fields: dict[str, list[Any]] = {}
    for field, columns in _COLUMNS.items():
        present = next((name for name in columns if name in known), None)
        if present is not None:
            values = [row.get(present) for row in rows]
            fields[field] = [None if value in (None, "") else value for value in values]
    if "speaker" in fields:
        fields["speaker"] = [None if s is None else str(s) for s in fields["speaker"]]
    classes = None
    if "label" in fields:
        fields["label"], classes = _numbered(fields["label"], table)
    return ClipFiles(files, names, fields, classes)


def _is_manifest(table: pathlib.Path, columns: Sequence[str]) -> bool:
    return table.suffix == ".tsv" and len(columns) == 1 and columns[0] not in _PATHS


def _of_manifest(table: pathlib.Path, folder: pathlib.Path | None) -> ClipFiles:
    """fairseq's: the folder; then lines 'path<TAB>samples'. Words or letters lie beside it."""
    reader = open_rows(table, "line", ("path", "samples"))
    folder = folder or table.parent / _lines(table)[0].strip()
    paths = [_row(reader, number).get("path") for number in range(1, len(reader))]
    files, names = _files(paths, folder, table, lambda number: reader.describe(number + 1))
    for suffix in (".wrd", ".ltr"):
        said = table.with_suffix(suffix)
        if said.is_file():
            texts = _lines(said)
            if len(texts) != len(files):
                raise DataError(
                    f"data source: '{said}' has {len(texts)} lines, '{table}' {len(files)} clips; "
                    f"expected one line for each."
                )
            if suffix == ".ltr":  # T H E | E N D |
                texts = [text.replace(" ", "").replace("|", " ").strip() for text in texts]
            return ClipFiles(files, names, {"transcript": [text or None for text in texts]})
    return ClipFiles(files, names)


def _row(reader: Any, number: int) -> dict[str, Any]:
    try:
        return reader.row(number)
    except CorruptExample:
        return {}


def _files(
    paths: Sequence[Any],
    folder: pathlib.Path,
    table: pathlib.Path,
    describe: Callable[[int], str],
) -> tuple[list[pathlib.Path | None], list[str]]:
    """The files that a table's paths say, None for those that leave the folder, and their names."""
    # An absolute path is below the folder, however that is written.
    roots = tuple({pathlib.Path(os.path.abspath(folder)), folder.resolve()})
    files = [_inside(folder, roots, path) for path in paths]
    if not any(files):
        raise DataError(
            f"data source: no row of '{table}' names a clip below '{folder}'; set folder to where "
            f"the clips lie."
        )
    return files, [describe(i) if file is None else str(file) for i, file in enumerate(files)]


def _inside(
    folder: pathlib.Path, roots: tuple[pathlib.Path, ...], value: Any
) -> pathlib.Path | None:
    """The path that a table says, if it stays in the folder, whose full names are `roots`."""
    if not isinstance(value, str) or not value or "\0" in value:
        return None
    pure = pathlib.PurePath(value)
    if ".." in pure.parts or (pure.is_absolute() and not any(map(pure.is_relative_to, roots))):
        return None
    return folder / pure


def _numbered(
    labels: list[Any], table: pathlib.Path
) -> tuple[list[int | None], tuple[str, ...] | None]:
    """Labels as numbers, and their names where they are words."""
    given = {label for label in labels if label is not None}
    try:
        numbers = {label: int(label) for label in given if not isinstance(label, float)}
    except ValueError:
        numbers = {}
    if len(numbers) == len(given):
        return [None if label is None else numbers[label] for label in labels], None
    if not all(isinstance(label, str) for label in given):
        raise DataError(
            f"data source: column 'label' of '{table}' holds neither names nor whole numbers."
        )
    names = tuple(sorted(given))
    where = {name: number for number, name in enumerate(names)}
    return [None if label is None else where[label] for label in labels], names
