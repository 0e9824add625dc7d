"""Clips of sound in batches, for the commands that run encoders over them."""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from encoders.errors import CheckpointError, ConfigError, DataError

_WINDOW = 8  # batches whose clips are sorted by length among each other


@dataclasses.dataclass(frozen=True)
class Clips:
    """Clips that an encoder can be run over.

    Attributes:
      source: of the clips.
      preprocessing: says the rate; clips of other rates are resampled, several channels averaged.
      most: samples of the longest clips that are used.
      corrupt: 'where: why' of those that could not be used, which grows as they are read.
    """

    source: Any
    preprocessing: Any
    most: int
    corrupt: list[str] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.source)


@dataclasses.dataclass(frozen=True)
class ClipBatch:
    """Clips of similar lengths.

    Attributes:
      rows: [N] their numbers in the source.
      first: how many of the clips that were asked for have all come before this batch.
      examples: what is known of each beside its samples.
      waveform: [B, S] int16, zeros behind; B is N or more, the last clip again.
      length: [B] int32.
    """

    rows: np.ndarray
    first: int
    examples: Sequence[dict[str, Any]]
    waveform: np.ndarray
    length: np.ndarray


def open_clips(
    path: str,
    split: str,
    preprocessing: Any,
    *,
    least: int,
    most: int,
    flag: str,
) -> Clips:
    """Clips of a folder, a table, a prepared data set, or one file.

    Args:
      path: where they are.
      split: of a prepared data set.
      preprocessing: of the encoder.
      least, most: samples that clips have at least, and at most.
      flag: of the command line that the path comes from, named in errors.

    Raises:
      DataError: there are none.
    """
    from encoders.data.sound import SUFFIXES
    from encoders.data.sources.audio import Audio

    if path.lower().endswith(SUFFIXES) and pathlib.Path(path).expanduser().is_file():
        source: Any = _OneFile(pathlib.Path(path).expanduser())
    else:
        try:
            source = Audio(path=path, split=split)
        except DataError as error:
            reason = str(error).removeprefix("data source: ")
            raise DataError(f"{flag} {path}: {reason}") from error
    return lenient(source, preprocessing, least, most)


def lenient(source: Any, preprocessing: Any, least: int, most: int) -> Clips:
    """Clips of a source, of any rate and number of channels, from `least` samples to `most`.

    `min_samples` is what training asks for; what can be encoded is all that is asked for here.
    """
    wanted = dataclasses.replace(
        preprocessing,
        resample=True,
        mix=True,
        min_samples=least,
        max_samples=max(least, preprocessing.max_samples),
        bucket_samples=None,
    )
    return Clips(source, wanted, most)


class _OneFile:
    """A file as a source."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self.class_names = None

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"audio": self._path.read_bytes()}

    def describe(self, index: int) -> str:
        return str(self._path)


def preprocessing_of(encoder: Any, path: str) -> Any:
    """What an encoder of speech expects.

    Raises:
      CheckpointError: it encodes something else, or its weights do not say.
    """
    if encoder.module.modality != "audio":
        kind = type(encoder.module).__name__
        raise CheckpointError(f"--model {path}: is a {kind}, which encodes no sound.")
    if encoder.preprocessing is None:
        why = encoder.metadata.get("no_preprocessing") or "they came without any"
        raise CheckpointError(f"--model {path}: its weights say no preprocessing: {why}.")
    return encoder.preprocessing


def limit_seconds(parser: argparse.ArgumentParser) -> None:
    """Adds --max-seconds, which keeps a file of an hour from taking all memory."""
    parser.add_argument(
        "--max-seconds", type=float, default=60.0, help="of clips; longer ones are left out"
    )


def longest(module: Any, seconds: float, sample_rate: int) -> int:
    """Samples of the longest clip that is used.

    Args:
      module: the encoder, which may take no longer ones; None for cepstra.
      seconds: of --max-seconds.
      sample_rate: of the clips.

    Raises:
      ConfigError: no seconds.
    """
    if not 0 < seconds < 1e6:
        raise ConfigError(f"--max-seconds: expected a number above 0, got {seconds:g}.")
    most = int(seconds * sample_rate)
    return min(most, getattr(module, "max_samples", None) or most)


def clip_batches(
    clips: Clips,
    batch_size: int,
    *,
    rows: np.ndarray | None = None,
    shards: int = 1,
) -> Iterator[ClipBatch]:
    """Decodes clips, by a thread for each core, and puts those of similar lengths together.

    What is longer than `clips.most` is corrupt, and no batch is padded to more.

    Args:
      clips: to read.
      batch_size: clips of a batch at most.
      rows: their numbers; None for all.
      shards: B is a multiple of it.
    """
    from encoders.data import CorruptExample
    from encoders.data.buckets import length_batches
    from encoders.data.pipeline import available_cores
    from encoders.data.transforms.audio import DecodeAudio

    decode = DecodeAudio(preprocessing=clips.preprocessing)
    rate = clips.preprocessing.sample_rate
    most = clips.most

    def read(row: int) -> tuple[int, dict[str, Any] | str]:
        try:
            example = decode(clips.source[row], np.random.default_rng(0))
        except (CorruptExample, OSError) as error:
            return row, str(error)
        if (samples := len(example["waveform"])) > most:
            return row, f"{samples / rate:.1f} seconds, expected at most {most / rate:g}"
        return row, example

    rows = np.arange(len(clips)) if rows is None else rows
    with concurrent.futures.ThreadPoolExecutor(available_cores()) as pool:
        for start in range(0, len(rows), _WINDOW * batch_size):
            found = list(pool.map(read, rows[start : start + _WINDOW * batch_size].tolist()))
            clips.corrupt.extend(
                f"{clips.source.describe(row)}: {why}" for row, why in found if isinstance(why, str)
            )
            found = [pair for pair in found if not isinstance(pair[1], str)]
            if not found:
                continue
            lengths = [len(example["waveform"]) for _, example in found]
            for numbers, size, count in length_batches(lengths, batch_size, most):
                chosen = [found[number] for number in numbers]
                count = -(-count // shards) * shards
                yield _batch(chosen, start, size, count)


def _batch(
    chosen: Sequence[tuple[int, dict[str, Any]]], first: int, size: int, count: int
) -> ClipBatch:
    waveform, length = np.zeros((count, size), np.int16), np.zeros(count, np.int32)
    for place in range(count):
        samples = chosen[min(place, len(chosen) - 1)][1]["waveform"]
        waveform[place, : len(samples)], length[place] = samples, len(samples)
    rows, examples = zip(*chosen, strict=True)
    examples = [{k: v for k, v in example.items() if k != "waveform"} for example in examples]
    return ClipBatch(np.array(rows), first, examples, waveform, length)


def over_clips(
    function: Callable[[Any, dict[str, Any]], Any],
    variables: Any,
    clips: Clips,
    batch_size: int,
    *,
    mesh: Any = None,
    rows: np.ndarray | None = None,
) -> Iterator[tuple[ClipBatch, Any]]:
    """Runs a pure function over clips, on all devices.

    Args:
      function: (variables, batch) -> arrays [B, ...]; 'waveform' of the batch is normalised.
      variables: of it.
      clips, batch_size, rows: see `clip_batches`.
      mesh: devices; None for all.

    Yields:
      Batches and what the function made of them, in numpy, for the real rows alone.
    """
    import jax
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from encoders.parallel.mesh import make_mesh, replicated

    mesh = make_mesh() if mesh is None else mesh
    spread = NamedSharding(mesh, P(mesh.axis_names))
    variables = jax.device_put(variables, replicated(mesh))

    def normalized(variables: Any, batch: dict[str, Any]) -> Any:
        waveform = clips.preprocessing.normalize(batch["waveform"])
        return function(variables, {**batch, "waveform": waveform})

    run = jax.jit(normalized)
    pending: collections.deque = collections.deque()

    def collect() -> tuple[ClipBatch, Any]:
        batch, found = pending.popleft()
        found = jax.device_get(found)
        return batch, jax.tree.map(lambda x: x[: len(batch.rows)], found)

    for batch in clip_batches(clips, batch_size, rows=rows, shards=mesh.size):
        given = {"waveform": batch.waveform, "length": batch.length}
        pending.append((batch, run(variables, jax.device_put(given, spread))))
        if len(pending) > 2:  # the device works on the next ones while this one is copied
            yield collect()
    while pending:
        yield collect()


def frames_of(module: Any, preprocessing: Any, layer: int | None = None) -> Callable:
    """(variables, batch) -> ([B, T, D] float32, [B, T] bool) of an encoder of speech.

    The frames are the final ones, or what the block of that number makes, negative from the end.
    """
    from encoders.evaluation.frames import frames_with_mask

    layers = () if layer is None else (layer,)

    def frames(variables: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        inputs, named = preprocessing.encoder_inputs(batch)
        encoded = module.apply(variables, *inputs, **named, layers=layers)
        return frames_with_mask(encoded, next(iter(encoded.hidden), "tokens"))

    return frames
