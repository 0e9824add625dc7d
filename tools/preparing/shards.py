"""Writing one split of a data set as ArrayRecord shards, so that an interrupted run can go on."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import rich.console
import rich.progress
from array_record.python import array_record_module

from encoders.data.sources import CorruptExample, Source
from encoders.data.sources.array_record import SUFFIX
from encoders.errors import DataError, StorageError

_WRITER_OPTIONS = (
    "group_size:1,uncompressed"  # one read per example, and images are compressed already
)
_CHUNK = 256  # examples in memory at once
_PER_SHARD = 8192  # examples: about a gigabyte of photographs


@dataclasses.dataclass
class Recipe:
    """How the examples of a source become records. Subclasses write `make`, and maybe the others.

    Attributes:
      source: the examples.
      job: everything that the shards depend on, as JSON values; a run goes on only if it is the
        same.
    """

    source: Source
    job: dict[str, Any]
    options: ClassVar[str] = _WRITER_OPTIONS

    def make(self, index: int) -> tuple[list[bytes], Any]:
        """The records of an example, and what `finish` needs to know of it.

        Raises:
          CorruptExample: it cannot be used.
        """
        raise NotImplementedError

    def finish(self, path: pathlib.Path, notes: list[Any]) -> dict[str, Any]:
        """Writes what belongs beside a shard; returns more fields of its entry in info.json."""
        del path, notes
        return {}

    def amount(self, shards: list[dict[str, Any]]) -> str:
        """How much is in the shards, in words."""
        return f"{sum(shard['count'] for shard in shards)} examples"

    def describe(self) -> dict[str, Any]:
        """Fields of info.json that all splits share."""
        names = self.source.class_names
        return {"class_names": list(names)} if names else {}

    def check(self, info: dict[str, Any], directory: pathlib.Path) -> None:
        """Raises a DataError where info.json is of another data set."""
        names = list(self.source.class_names) if self.source.class_names else None
        if names and info.get("class_names", names) != names:
            raise DataError(
                f"--to: {directory} holds a data set with other classes "
                f"({info['class_names'][:3]}, ... against {names[:3]}, ...)."
            )


def shard_count(asked: int | None, examples: int) -> int:
    """How many shards to write: as many as asked for, or one per 8,192 examples."""
    return min(asked or -(-examples // _PER_SHARD), examples)


def prepare(recipe: Recipe, directory: pathlib.Path, split: str, threads: int) -> int:
    """Writes the shards of one split, then lists them in info.json.

    Raises:
      DataError: the directory holds another data set or split, or no input was usable.
      StorageError: the disk is full or not writable.
    """
    make_directory(directory)
    job = recipe.job
    info = read_json(directory / "info.json") or {"name": directory.name, "splits": {}}
    done = info["splits"].get(split, {}).get("job")
    if done is not None and done != job:
        raise DataError(
            f"--to: {directory} already has a split '{split}' made with other settings ({done})."
        )
    recipe.check(info, directory)
    if split in info["splits"]:
        amount = recipe.amount(info["splits"][split]["shards"])
        print(f"{directory} already has split '{split}': {amount}")
        return 0
    progress_file = directory / f".{split}.progress.json"
    progress = read_json(progress_file) or {"job": job, "finished": {}}
    if progress["job"] != job:
        raise DataError(
            f"--to: {directory} has unfinished shards of split '{split}' made with other settings "
            f"({progress['job']}); use those, or remove {progress_file}."
        )
    finished = progress["finished"]
    if finished:
        print(f"going on: {len(finished)} of {job['shards']} shards are finished")
    examples, total = job["count"], job["shards"]
    with (
        concurrent.futures.ThreadPoolExecutor(threads) as pool,
        _progress_bar(examples) as advance,
    ):
        for number in range(total):
            name = f"{split}-{number:05d}-of-{total:05d}{SUFFIX}"
            indices = range(number * examples // total, (number + 1) * examples // total)
            if name not in finished:
                finished[name] = _write_shard(directory / name, recipe, indices, pool, advance)
                write_json(progress_file, progress)
            else:
                advance(len(indices), 0)
            if not sys.stderr.isatty():
                print(f"{name}: {recipe.amount([finished[name]])}", flush=True)
    corrupt = [item for shard in finished.values() for item in shard["corrupt"]]
    shards = [
        {"file": name, **{key: value for key, value in shard.items() if key != "corrupt"}}
        for name, shard in finished.items()
        if shard["count"]
    ]
    count = sum(shard["count"] for shard in shards)
    if not count:
        raise DataError(
            f"--input: none of the {examples} examples is usable, such as {': '.join(corrupt[0])}."
        )
    info["splits"][split] = {
        "count": count,
        "corrupt": len(corrupt),
        "shards": shards,
        "job": job,
    }
    info.update(recipe.describe())
    write_json(directory / "info.json", info)
    progress_file.unlink()
    print(f"{directory}: {recipe.amount(shards)} of split '{split}' in {len(shards)} shards")
    for name, reason in corrupt[:20]:
        print(f"left out: {name}: {reason}")
    if corrupt:
        print(f"left out {len(corrupt)} of {examples} examples because they cannot be used")
    return 0


def _write_shard(
    path: pathlib.Path,
    recipe: Recipe,
    indices: range,
    pool: concurrent.futures.Executor,
    advance: Any,
) -> dict[str, Any]:
    """Writes one shard under another name, and renames it when all of it is on the disk."""
    partial = path.with_name(f".{path.name}.partial")
    corrupt: list[tuple[str, str]] = []
    notes: list[Any] = []
    count = 0

    def make(index: int) -> tuple[list[bytes], Any] | tuple[str, str]:
        try:
            return recipe.make(index)
        except CorruptExample as error:
            return recipe.source.describe(index), str(error)

    try:
        writer = array_record_module.ArrayRecordWriter(str(partial), recipe.options)
        for chunk in _chunks(indices):
            for made, note in pool.map(make, chunk):
                if isinstance(made, str):
                    corrupt.append((made, note))
                    continue
                for record in made:
                    writer.write(record)
                count += len(made)
                notes.append(note)
            advance(len(chunk), len(corrupt))
        writer.close()
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        more = recipe.finish(path, notes)
        os.replace(partial, path)
    # The writer reports a full disk as a RuntimeError.
    except (OSError, RuntimeError) as error:
        raise StorageError(f"--to: cannot write {path} ({error}).") from error
    return {"count": count, **more, "corrupt": corrupt}


def _chunks(indices: range) -> Iterator[range]:
    for start in range(0, len(indices), _CHUNK):
        yield indices[start : start + _CHUNK]


@contextlib.contextmanager
def _progress_bar(total: int) -> Iterator[Any]:
    """Yields a function (examples, corrupt so far in this shard) that moves the bar."""
    columns = (
        rich.progress.TextColumn("{task.completed}/{task.total} examples"),
        rich.progress.BarColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[corrupt]} left out"),
    )
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=total, corrupt=0)

        def advance(examples: int, corrupt: int) -> None:
            bar.update(task, advance=examples, corrupt=corrupt)

        yield advance


def make_directory(directory: pathlib.Path) -> None:
    """Creates the directory to write.

    Raises:
      StorageError: it cannot be.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"--to: cannot create {directory} ({error.strerror}).") from error


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file, or None if there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"--to: {path} is not valid JSON ({error}); remove it.") from error


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file so that it is there wholly or not at all."""
    write_bytes(path, json.dumps(value, indent=2).encode())


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a file so that it is there wholly or not at all.

    Raises:
      StorageError: the disk is full or not writable.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise StorageError(f"--to: cannot write {path} ({error.strerror}).") from error
