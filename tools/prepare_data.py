"""Writes a data set as ArrayRecord shards that train at full speed from any disk.

    python -m tools.prepare_data --from folder --input PHOTOS --to DIR --split train
    python -m tools.prepare_data --from tfds --input imagenet2012 --to DIR --split train
    python -m tools.prepare_data --from idx --input FOLDER --to DIR --split test

Read it with data.source = dict(name='array_record', path=DIR, split='train'). Run once per split.
An interrupted run goes on where it stopped when the same command is run again: finished shards are
kept. Inputs that cannot be decoded are left out, counted and named.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import rich.console
import rich.progress
import simplejpeg
from array_record.python import array_record_module

from encoders.data import images, records
from encoders.data.pipeline import available_cores
from encoders.data.sources import CorruptExample, Source
from encoders.data.sources.array_record import SUFFIX
from encoders.data.sources.folder import Folder
from encoders.data.sources.tar import Tar
from encoders.data.sources.tfds import Tfds, open_builder
from encoders.errors import ConfigError, DataError, StorageError, exit_cleanly
from launch.flags import Parser
from tools.idx import IdxSource

_PER_SHARD = 8192  # examples: about a gigabyte of photographs
_WRITER_OPTIONS = (
    "group_size:1,uncompressed"  # one read per example, and images are compressed already
)
_CHUNK = 256  # examples in memory at once


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepares one split."""
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--from",
        dest="kind",
        required=True,
        choices=("folder", "tar", "tfds", "idx"),
        help="kind of input",
    )
    parser.add_argument(
        "--input", required=True, help="folder, tar pattern, name in TFDS, or folder of IDX files"
    )
    parser.add_argument("--to", required=True, metavar="DIR", help="directory to write")
    parser.add_argument("--split", default="train", help="its name in DIR; also the split to read")
    parser.add_argument("--shards", type=int, help="default: one per 8,192 examples")
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="shrink larger images to this longer side"
    )
    parser.add_argument("--quality", type=int, default=95, help="of the JPEGs that are shrunk")
    parser.add_argument("--data-dir", help="of TFDS; default ~/tensorflow_datasets")
    parser.add_argument(
        "--download", action="store_true", help="of TFDS: download it first, which needs TensorFlow"
    )
    parser.add_argument("--threads", type=int, default=available_cores())
    flags = parser.parse(arguments)
    for name in ("shards", "image_size", "quality", "threads"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: expected a number from 1, got {value}.")
    source = _open(flags)
    job = Job(
        kind=flags.kind,
        input=flags.input,
        count=len(source),
        shards=min(flags.shards or -(-len(source) // _PER_SHARD), len(source)),
        image_size=flags.image_size,
        quality=flags.quality,
    )
    try:
        return prepare(source, pathlib.Path(flags.to), flags.split, job, flags.threads)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last finished shard", file=sys.stderr)
        return 130


def _open(flags: Any) -> Source:
    if flags.kind == "folder":
        return Folder(path=flags.input)
    if flags.kind == "tar":
        return Tar(path=flags.input)
    if flags.kind == "idx":
        return IdxSource(path=flags.input, split=flags.split)
    if flags.download:
        _download(flags.input, flags.data_dir)
    return Tfds(dataset=flags.input, split=flags.split, data_dir=flags.data_dir)


def _download(dataset: str, data_dir: str | None) -> None:
    try:
        open_builder(dataset, data_dir).download_and_prepare(file_format="array_record")
    except ImportError as error:
        raise DataError(
            f"--download: TFDS prepares '{dataset}' by TensorFlow ({error}); pip install "
            "tensorflow-cpu, on any machine: reading the result needs none."
        ) from error
    # No network, no space, or (AssertionError) files that TFDS wants to be downloaded by hand.
    except (OSError, AssertionError) as error:
        raise DataError(f"--download: TFDS cannot prepare '{dataset}' ({error}).") from error


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything that the shards depend on: a run goes on only if it is the same.

    Attributes:
      kind: of the input.
      input: where it is.
      count: how many examples it has.
      shards: number of shards to write.
      image_size: longer side of shrunk images, or None.
      quality: of their JPEGs.
    """

    kind: str
    input: str
    count: int
    shards: int
    image_size: int | None
    quality: int


def prepare(source: Source, directory: pathlib.Path, split: str, job: Job, threads: int) -> int:
    """Writes the shards of one split, then lists them in info.json.

    Raises:
      DataError: the directory holds another data set or split, or no input was usable.
      StorageError: the disk is full or not writable.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"--to: cannot create {directory} ({error.strerror}).") from error
    info = _read_json(directory / "info.json") or {"name": directory.name, "splits": {}}
    _check_same(info, source, directory, split, job)
    if split in info["splits"]:
        print(f"{directory} already has split '{split}': {info['splits'][split]['count']} examples")
        return 0
    progress_file = directory / f".{split}.progress.json"
    progress = _read_json(progress_file) or {"job": dataclasses.asdict(job), "finished": {}}
    if progress["job"] != dataclasses.asdict(job):
        raise DataError(
            f"--to: {directory} has unfinished shards of split '{split}' made with other settings "
            f"({progress['job']}); use those, or remove {progress_file}."
        )
    finished = progress["finished"]
    if finished:
        print(f"going on: {len(finished)} of {job.shards} shards are finished")
    with (
        concurrent.futures.ThreadPoolExecutor(threads) as pool,
        _progress_bar(job.count) as advance,
    ):
        for number in range(job.shards):
            name = f"{split}-{number:05d}-of-{job.shards:05d}{SUFFIX}"
            indices = range(
                number * job.count // job.shards, (number + 1) * job.count // job.shards
            )
            if name not in finished:
                finished[name] = _write_shard(directory / name, source, indices, job, pool, advance)
                _write_json(progress_file, progress)
            else:
                advance(len(indices), 0)
            if not sys.stderr.isatty():
                print(f"{name}: {finished[name]['count']} examples", flush=True)
    corrupt = [item for shard in finished.values() for item in shard["corrupt"]]
    shards = [{"file": n, "count": s["count"]} for n, s in finished.items() if s["count"]]
    count = sum(shard["count"] for shard in shards)
    if not count:
        raise DataError(
            f"--input: none of the {job.count} examples is usable, such as {corrupt[0]}."
        )
    info["splits"][split] = {
        "count": count,
        "corrupt": len(corrupt),
        "shards": shards,
        "job": dataclasses.asdict(job),
    }
    if source.class_names:
        info["class_names"] = list(source.class_names)
    _write_json(directory / "info.json", info)
    progress_file.unlink()
    print(f"{directory}: {count} examples of split '{split}' in {len(shards)} shards")
    for name, reason in corrupt[:20]:
        print(f"left out: {name}: {reason}")
    if corrupt:
        print(f"left out {len(corrupt)} of {job.count} examples because they cannot be decoded")
    return 0


def _check_same(
    info: dict[str, Any], source: Source, directory: pathlib.Path, split: str, job: Job
) -> None:
    done = info["splits"].get(split, {}).get("job")
    if done is not None and done != dataclasses.asdict(job):
        raise DataError(
            f"--to: {directory} already has a split '{split}' made with other settings ({done})."
        )
    names = list(source.class_names) if source.class_names else None
    if names and info.get("class_names", names) != names:
        raise DataError(
            f"--to: {directory} holds a data set with other classes ({info['class_names'][:3]}, "
            f"... "
            f"against {names[:3]}, ...)."
        )


def _write_shard(
    path: pathlib.Path,
    source: Source,
    indices: range,
    job: Job,
    pool: concurrent.futures.Executor,
    advance: Any,
) -> dict[str, Any]:
    """Writes one shard under another name, and renames it when all of it is on the disk."""
    partial = path.with_name(f".{path.name}.partial")
    corrupt: list[tuple[str, str]] = []
    count = 0

    def make(index: int) -> bytes | tuple[str, str]:
        try:
            return records.pack(_check_image(source[index], job))
        except CorruptExample as error:
            return source.describe(index), str(error)

    try:
        writer = array_record_module.ArrayRecordWriter(str(partial), _WRITER_OPTIONS)
        for chunk in _chunks(indices):
            for made in pool.map(make, chunk):
                if isinstance(made, bytes):
                    writer.write(made)
                    count += 1
                else:
                    corrupt.append(made)
            advance(len(chunk), len(corrupt))
        writer.close()
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    # The writer reports a full disk as a RuntimeError.
    except (OSError, RuntimeError) as error:
        raise StorageError(f"--to: cannot write {path} ({error}).") from error
    return {"count": count, "corrupt": corrupt}


def _chunks(indices: range) -> Iterator[range]:
    for start in range(0, len(indices), _CHUNK):
        yield indices[start : start + _CHUNK]


def _check_image(example: dict[str, Any], job: Job) -> dict[str, Any]:
    """The example with its image as a file that is known to decode, no larger than asked for."""
    if "image" not in example:
        raise CorruptExample(f"no field 'image', only {sorted(example)}")
    image = example["image"]
    if not isinstance(image, bytes):
        return {**example, "image": _png(image)}
    height, width = images.size_of(image)
    shrink = max(height, width) / (job.image_size or max(height, width))
    if shrink <= 1:
        images.decode(image, 3)
        return example
    reduction = next((r for r in images.REDUCTIONS if shrink >= 2 * r), 1)
    size = (max(1, round(height / shrink)), max(1, round(width / shrink)))
    pixels = images.decode(image, 3, reduction)
    box = None
    if pixels.shape[:2] != (height, width):
        box = (0, 0, height / reduction, width / reduction)
    pixels = images.resize(pixels, size, "bicubic", box)
    encoded = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=job.quality, colorsubsampling="420"
    )
    return {**example, "image": encoded}


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    images.to_pillow(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


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


def _read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"--to: {path} is not valid JSON ({error}); remove it.") from error


def _write_json(path: pathlib.Path, value: Any) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise StorageError(f"--to: cannot write {path} ({error.strerror}).") from error


if __name__ == "__main__":
    exit_cleanly(main)
