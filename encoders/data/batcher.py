"""One process's part of the global batch at a step, as a pure function of (seed, step)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from encoders.data.sources.base import CorruptExample, Corruption, Source, read
from encoders.errors import ConfigError, DataError

_TRIES = 100
_NARROW = {"i8": "i4", "u8": "u4", "f8": "f4"}  # jax keeps 32 bits

Spec = dict[str, tuple[tuple[int, ...] | None, np.dtype]]  # None: of any shape
Batch = dict[str, np.ndarray]


def packer_of(transforms: Sequence[Callable]) -> Any:
    """The transform that packs several examples into a row, as `PackPatches` does, or None.

    Raises:
      ConfigError: there are two.
    """
    found = [transform for transform in transforms if hasattr(transform, "pack")]
    if len(found) > 1:
        raise ConfigError("data.transforms: two of them pack rows, where one can.")
    return found[0] if found else None


class Batcher:
    """Makes local batches. Picklable, so that worker processes make the same ones.

    Example p = step * batch_size + row of the endless stream is source[source.indices_at(p)],
    transformed with random numbers keyed by (seed, p): no state moves from step to step or from
    row to row, so any split of the rows over processes, workers and threads gives the same global
    batch. Where a transform packs, neighbouring examples share a row, and are the same examples.
    Where the source has buckets, every batch is of one, and its shapes are those of the bucket.

    Args:
      source: random access to examples.
      transforms: callables (example, rng) -> example, applied in order.
      batch_size: examples of the global batch.
      seed: of the order and of the transforms.
      shuffle: False keeps the source's order.
      rows: sorted positions in the global batch of the examples to make; None makes all.
    """

    def __init__(
        self,
        source: Source,
        transforms: Sequence[Callable],
        batch_size: int,
        seed: int,
        *,
        shuffle: bool = True,
        rows: np.ndarray | None = None,
    ):
        if batch_size < 1:
            raise ConfigError(f"batch_size: must be at least 1, got {batch_size}.")
        if not 0 <= seed < 2**64:
            raise ConfigError(f"seed: expected a number in [0, 2**64), got {seed}.")
        self.source, self.transforms = source, tuple(transforms)
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.packer = packer_of(self.transforms)
        self.per_row = 1 if self.packer is None else self.packer.images
        rows = np.arange(batch_size) if rows is None else np.asarray(rows)
        if len(rows) % self.per_row:
            raise ConfigError(f"batch_size: rows of {self.per_row} images do not make {len(rows)}.")
        self.rows = rows.reshape(-1, self.per_row)  # those of each row
        self._specs: dict[int, tuple[Spec, Spec]] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    @property
    def local_size(self) -> int:
        """Rows of a local batch."""
        return len(self.rows)

    @property
    def buckets(self) -> int:
        """How many shapes batches come in."""
        return getattr(self.source, "num_buckets", 1)

    def bucket_at(self, step: int) -> int:
        """Which of the shapes the batch at a step has."""
        return self.source.bucket_at(step) if hasattr(self.source, "bucket_at") else 0

    def _both_specs(self, bucket: int) -> tuple[Spec, Spec]:
        """Of an example, and of a row: as the bucket's first example has them, and all others.

        Of a mixture, of those fields that the first examples of all its sources have.
        """
        with self._lock:
            if bucket not in self._specs:
                if hasattr(self.source, "first_of"):
                    index = self.source.first_of(bucket)
                else:
                    start = np.zeros(1, np.int64)
                    index = int(self.source.indices_at(start, self.seed, self.shuffle)[0])
                fields, _ = self._make(0, index)
                for start in getattr(self.source, "starts", ()):
                    others, _ = self._make(0, start)
                    fields = {name: value for name, value in fields.items() if name in others}
                spec = _spec(fields)
                if self.packer is None:
                    self._specs[bucket] = spec, spec
                else:
                    row = self.packer.pack([fields] * self.per_row)
                    varying = {name: (None, spec[name][1]) for name in self.packer.varying}
                    self._specs[bucket] = spec | varying, _spec(row)
            return self._specs[bucket]

    def empty(self, bucket: int = 0) -> Batch:
        """Uninitialised arrays [local rows, ...] for one local batch of a bucket."""
        _, spec = self._both_specs(bucket)
        return {
            name: np.empty((self.local_size, *shape), dtype)
            for name, (shape, dtype) in {**spec, "row": ((), np.dtype("i4"))}.items()
        }

    def fill(
        self, step: int, out: Batch, start: int = 0, stop: int | None = None
    ) -> list[Corruption]:
        """Writes rows [start, stop) of the local batch at `step` into `out`.

        Returns:
          The corrupt examples, and parts of examples, that were met and replaced.

        Raises:
          DataError: nothing usable was found, or an example has another shape than the first one.
        """
        spec, _ = self._both_specs(self.bucket_at(step))
        rows = self.rows[start:stop]
        positions = step * self.batch_size + rows
        indices = self.source.indices_at(positions.reshape(-1), self.seed, self.shuffle)
        corruptions: list[Corruption] = []
        indices = indices.reshape(rows.shape)
        for place, (row, places, examples) in enumerate(
            zip(rows.tolist(), positions.tolist(), indices.tolist(), strict=True), start
        ):
            made = []
            for position, index in zip(places, examples, strict=True):
                fields, met = self._make(position, index, spec)
                made.append(fields)
                corruptions += met
            fields = made[0] if self.packer is None else self.packer.pack(made)
            for name, value in fields.items():
                out[name][place] = value
            out["row"][place] = row[0] // self.per_row
        return corruptions

    def _make(
        self, position: int, index: int, spec: Spec | None = None
    ) -> tuple[Batch, list[Corruption]]:
        corruptions: list[Corruption] = []
        low, high = self.source.span(index)
        for attempt in range(_TRIES):
            # Another counter block of the same key: independent of the block before, and of other
            # positions.
            bits = np.random.Philox(key=[self.seed, position], counter=[0, 0, 0, attempt])
            rng = np.random.Generator(bits)
            if attempt:
                index = int(rng.integers(low, high))
            try:
                fields = make_example(self.source, index, self.transforms, rng, corruptions)
                return check_fields(fields, spec, self.source, index), corruptions
            except CorruptExample as error:
                corruptions.append(Corruption(self.source.describe(index), str(error)))
        last = corruptions[-1]
        raise DataError(
            f"data source: no usable example in {_TRIES} tries; the last was {last.name} "
            f"({last.reason})."
        )


def make_example(
    source: Source,
    index: int,
    transforms: Sequence[Callable],
    rng: np.random.Generator,
    met: list[Corruption] | None = None,
) -> Batch:
    """Reads and transforms one example; its numeric fields as arrays of 32 bits or less, text and
    bytes left out.

    Args:
      source, index, rng, met: see `read`.
      transforms: applied in order.

    Raises:
      CorruptExample: from the source or a transform.
    """
    example = read(source, index, rng, met)
    for transform in transforms:
        example = transform(example, rng)
    fields = {}
    for name, value in example.items():
        texts = isinstance(value, list) and value and isinstance(value[0], str)
        if texts or isinstance(value, str | bytes):
            continue  # no accelerator takes text: a transform turns what a model needs into numbers
        array = np.asarray(value)
        fields[name] = array.astype(_NARROW.get(array.dtype.str[1:], array.dtype), copy=False)
    return fields


def _spec(fields: Batch) -> Spec:
    return {name: (value.shape, value.dtype) for name, value in fields.items()}


def check_fields(fields: Batch, spec: Spec | None, source: Source, index: int) -> Batch:
    """The fields that `spec` names, which must have its shapes.

    Raises:
      CorruptExample: a field is missing.
      DataError: a field has another shape or type, so that no batch can be stacked.
    """
    if spec is None:
        return fields
    for name, (shape, dtype) in spec.items():
        if name not in fields:
            raise CorruptExample(f"no field '{name}', only {sorted(fields)}")
        found = fields[name]
        if shape is None:
            shape = found.shape
        if found.shape != shape or found.dtype != dtype:
            raise DataError(
                f"{source.describe(index)}: field '{name}' is {found.dtype} "
                f"{list(found.shape)}, but {dtype} "
                f"{list(shape)} in the first example; add a transform that gives all one size."
            )
    return {name: fields[name] for name in spec}
