"""Batches as a function of the step, made ahead of time by threads or processes."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from encoders.config import build
from encoders.data.batcher import Batch, Batcher
from encoders.data.preprocessing import Preprocessing
from encoders.data.sources import Source
from encoders.data.sources.base import Corruption
from encoders.data.transforms import TRANSFORMS
from encoders.data.workers import WorkerPool
from encoders.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_AHEAD = 2  # batches under way while one is in use
_RATE_SAMPLE = 1000  # examples before a corruption rate means anything


def build_transforms(
    sections: Sequence[Any], preprocessing: Preprocessing, where: str = "data.transforms"
) -> list[Callable]:
    """Builds transforms from their config sections.

    What the preprocessing has for transforms is passed where a section does not set it itself.

    Raises:
      ConfigError: an unknown name or field.
    """
    transforms = []
    for number, section in enumerate(sections):
        shared = {k: v for k, v in preprocessing.for_transforms.items() if k not in section}
        transforms.append(build(TRANSFORMS, section, f"{where}[{number}]", **shared))
    return transforms


@dataclasses.dataclass
class PipelineStats:
    """What went wrong so far, in this process.

    Attributes:
      examples: examples delivered.
      corrupt: unusable ones met and replaced; one met in two epochs counts twice.
      names: where each is -> what was wrong.
      filled, places: samples of clips of sound that were delivered, and those with their padding.
    """

    examples: int = 0
    corrupt: int = 0
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    filled: int = 0
    places: int = 0

    @property
    def corrupt_rate(self) -> float:
        """Unusable examples as a fraction of those tried."""
        return self.corrupt / max(1, self.examples + self.corrupt)

    def metrics(self) -> dict[str, float]:
        """What a run logs: corrupt examples, and the padding and mean row of clips of sound."""
        found = {"corrupt_examples": self.corrupt}
        if self.places:
            found["padding"] = 1 - self.filled / self.places
            found["row_samples"] = self.places / self.examples
        return found


class Pipeline:
    """This process's rows of every global batch.

    Args:
      source: random access to examples.
      transforms: callables (example, rng) -> example; one may pack several into a row.
      batch_size: examples of the global batch.
      seed: of the order and of the transforms.
      shuffle: False keeps the source's order in every epoch.
      rows: sorted positions in the global batch of this process's examples, as `local_rows` gives
        them for a mesh; None means all.
      threads: threads that make batches ahead in `iterate`; None takes one per core, 0 makes them
        in the caller.
      processes: worker processes instead of threads, for transforms that hold Python's lock.
      max_corrupt_rate: fraction of unusable examples above which the run stops; None only logs
        them. It is judged once 1,000 examples were made here, or one epoch if that is shorter.
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
        threads: int | None = None,
        processes: int = 0,
        max_corrupt_rate: float | None = None,
    ):
        if (threads or 0) < 0 or processes < 0:
            raise ConfigError(
                f"data: threads and processes count from 0, got {threads} and {processes}."
            )
        self.batcher = Batcher(source, transforms, batch_size, seed, shuffle=shuffle, rows=rows)
        self.threads = available_cores() if threads is None else threads
        self.processes = processes
        self.max_corrupt_rate = max_corrupt_rate
        self.stats = PipelineStats()
        epoch = -(-len(source) * self.batcher.rows.size // batch_size)
        self._rate_sample = min(_RATE_SAMPLE, epoch)

    @property
    def examples_per_epoch(self) -> int:
        """Examples in one pass over the source, over all processes."""
        return len(self.batcher.source)

    @property
    def sizes(self) -> Mapping[int, float] | None:
        """Length -> the share of batches that have it; None where all have one."""
        return getattr(self.batcher.source, "shares", None)

    def batch(self, step: int) -> Batch:
        """This process's rows at `step`: field -> [rows, ...], and 'row', their int32 position in
        the global batch.

        Raises:
          DataError: too many examples are corrupt, or all are.
        """
        out = self.batcher.empty(self.batcher.bucket_at(step))
        return self._deliver(out, self.batcher.fill(step, out))

    def iterate(self, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """`batch(start)`, `batch(start + 1)`, ... made ahead; closing it ends the workers."""
        if self.processes:
            return self._iterate_processes(start, stop)
        if self.threads == 0:
            steps = itertools.count(start) if stop is None else range(start, stop)
            return (self.batch(step) for step in steps)
        return self._iterate_threads(start, stop)

    def _iterate_threads(self, start: int, stop: int | None) -> Iterator[Batch]:
        batcher = self.batcher
        chunk = max(1, batcher.local_size // (4 * self.threads))
        starts = range(0, batcher.local_size, chunk)
        pool = concurrent.futures.ThreadPoolExecutor(self.threads, thread_name_prefix="data")
        pending: collections.deque = collections.deque()
        steps = iter(itertools.count(start) if stop is None else range(start, stop))

        def submit() -> None:
            for step in itertools.islice(steps, 1):
                out = batcher.empty(batcher.bucket_at(step))
                parts = [
                    pool.submit(
                        batcher.fill, step, out, first, min(first + chunk, batcher.local_size)
                    )
                    for first in starts
                ]
                pending.append((out, parts))

        try:
            for _ in range(1 + _AHEAD):
                submit()
            while pending:
                out, parts = pending.popleft()
                corruptions = [met for part in parts for met in part.result()]
                submit()
                yield self._deliver(out, corruptions)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _iterate_processes(self, start: int, stop: int | None) -> Iterator[Batch]:
        with WorkerPool(self.batcher, self.processes) as pool:
            for batch, corruptions in pool.batches(start, stop):
                yield self._deliver(batch, corruptions)

    def _deliver(self, batch: Batch, corruptions: list[Corruption]) -> Batch:
        stats = self.stats
        stats.examples += self.batcher.rows.size
        stats.corrupt += len(corruptions)
        if "waveform" in batch and "length" in batch:
            stats.filled += int(batch["length"].sum(dtype=np.int64))
            stats.places += batch["waveform"].size
        for met in corruptions:
            if met.name not in stats.names:
                stats.names[met.name] = met.reason
                logger.warning("corrupt example %s: %s; replaced by another", met.name, met.reason)
        limit = self.max_corrupt_rate
        if (
            limit is not None
            and stats.corrupt_rate > limit
            and stats.examples + stats.corrupt >= self._rate_sample
        ):
            worst = list(stats.names.items())[:3]
            raise DataError(
                f"data.max_corrupt_rate: {stats.corrupt} of {stats.examples + stats.corrupt} "
                f"examples are corrupt "
                f"({stats.corrupt_rate:.2%}, allowed {limit:.2%}), such as "
                + "; ".join(f"{name} ({reason})" for name, reason in worst)
                + "."
            )
        return batch


def available_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
