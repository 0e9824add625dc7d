"""Worker processes that each make whole local batches, for transforms that hold Python's lock.

A worker is a fresh interpreter running this module: unlike multiprocessing's 'spawn' it never
imports the program's main script, and so never jax. It gets the pickled batcher once, then step
numbers; batches come back through anonymous memory that both sides map, which vanishes with the
processes however they end.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import multiprocessing.connection
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np

from encoders.data.batcher import Batch, Batcher
from encoders.data.sources.base import Corruption
from encoders.errors import DataError

_ALIGNMENT = 64
_SLOTS = 2  # batches a worker may have made or be making: one is read while it makes the next
_PATIENCE = 2.0  # seconds


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the arrays of one local batch lie in a slot of shared memory.

    Attributes:
      fields: (name, shape, dtype, byte offset) of each array.
      size: bytes of a slot.
    """

    fields: tuple[tuple[str, tuple[int, ...], str, int], ...]
    size: int

    @classmethod
    def of(cls, batch: Batch) -> Layout:
        """The layout of a batch like this one."""
        fields, offset = [], 0
        for name, array in batch.items():
            fields.append((name, array.shape, array.dtype.str, offset))
            offset += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        return cls(tuple(fields), max(offset, _ALIGNMENT))

    def views(self, memory: mmap.mmap, start: int) -> Batch:
        """Arrays that lie in a slot, from its first byte on."""
        views = {}
        for name, shape, dtype, offset in self.fields:
            count = math.prod(shape)
            views[name] = np.frombuffer(memory, dtype, count, start + offset).reshape(shape)
        return views


@dataclasses.dataclass(frozen=True)
class Slots:
    """Shared memory for batches, whichever bucket they are of.

    Attributes:
      layouts: of the batches of each bucket.
    """

    layouts: tuple[Layout, ...]

    @property
    def size(self) -> int:
        """Bytes of a slot."""
        return max(layout.size for layout in self.layouts)

    def views(self, memory: mmap.mmap, slot: int, bucket: int) -> Batch:
        """Arrays of a batch of a bucket that lie in a slot."""
        return self.layouts[bucket].views(memory, slot * self.size)


class WorkerPool:
    """Makes the batches of steps start, start + 1, ... in order, ahead of time.

    Step s is made by worker (s - start) % count, at most two steps of each at a time.

    Args:
      batcher: what makes the batches; it must pickle.
      count: number of processes.

    Raises:
      DataError: the batcher cannot be sent to another process.
    """

    def __init__(self, batcher: Batcher, count: int):
        self._batcher = batcher
        buckets = range(batcher.buckets)
        slots = Slots(tuple(Layout.of(batcher.empty(bucket)) for bucket in buckets))
        try:
            payload = pickle.dumps((batcher, slots), protocol=5)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise DataError(
                f"data.processes: a source or transform cannot be sent to a worker ({error}); "
                "define it in a module, or use threads."
            ) from error
        self._workers: list[_Worker] = []
        try:
            for number in range(count):
                self._workers.append(_Worker(number, slots))
            for worker in self._workers:
                worker.send(payload)  # all of them are starting by now
        except (OSError, DataError) as error:
            self.close()
            raise DataError(f"data.processes: cannot start {count} workers ({error}).") from error

    def batches(self, start: int, stop: int | None) -> Iterator[tuple[Batch, list[Corruption]]]:
        """Yields (batch, corruptions) of steps [start, stop).

        Raises:
          DataError: a worker died, or found no usable example.
        """
        count, end = len(self._workers), math.inf if stop is None else stop
        for step in range(start, int(min(end, start + count * _SLOTS))):
            self._workers[(step - start) % count].ask(step)
        step = start
        while step < end:
            worker = self._workers[(step - start) % count]
            result = worker.take(step, self._batcher.bucket_at(step))
            if step + count * _SLOTS < end:
                worker.ask(step + count * _SLOTS)
            yield result
            step += 1

    def close(self) -> None:
        """Ends the workers; safe to call twice."""
        for worker in self._workers:
            worker.connection.close()  # a worker that reads the end of its input leaves
        deadline = time.monotonic() + _PATIENCE
        for worker in self._workers:
            worker.stop(deadline)
        self._workers = []

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Worker:
    """The parent's end of one worker."""

    def __init__(self, number: int, slots: Slots):
        self.number, self._slots = number, slots
        self._asked = 0
        self.connection, theirs = multiprocessing.connection.Pipe()
        memory = _anonymous_file(_SLOTS * slots.size)
        try:
            self._memory = mmap.mmap(memory, _SLOTS * slots.size)
            # One thread of linear algebra per worker: the workers are the parallelism.
            single = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
            program = "from encoders.data.workers import work; work()"
            files = (theirs.fileno(), memory)
            command = [sys.executable, "-c", program, *map(str, files)]
            self._process = subprocess.Popen(
                command,
                pass_fds=files,
                env={**os.environ, **single, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
            )
        finally:
            theirs.close()
            os.close(memory)

    def ask(self, step: int) -> None:
        """Lets the worker make the batch of a step."""
        self.send((step, self._asked % _SLOTS))
        self._asked += 1

    def take(self, step: int, bucket: int) -> tuple[Batch, list[Corruption]]:
        """Waits for the batch of the step that was asked for first, which is of a bucket."""
        try:
            slot, corruptions, failure = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            raise self._death(step) from error
        if failure is not None:
            raise DataError(failure)
        views = self._slots.views(self._memory, slot, bucket)
        # Copied, because the worker writes the next batch there.
        return {name: view.copy() for name, view in views.items()}, corruptions

    def stop(self, deadline: float) -> None:
        """Waits for the worker to leave, then makes it."""
        try:
            self._process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def send(self, message: object) -> None:
        """Sends the batcher, or a step to make."""
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionError) as error:
            raise self._death(None) from error

    def _death(self, step: int | None) -> DataError:
        try:
            code = self._process.wait(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            code = None
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        when = "" if step is None else f" while making the batch of step {step}"
        hint = {
            -9: "; signal 9 is most often the system running out of memory",
            1: "; its own message stands above",
        }.get(code, "")
        return DataError(f"data.processes: worker {self.number} died{when} ({how}){hint}.")


def _anonymous_file(size: int) -> int:
    """A descriptor of `size` bytes of nameless memory, so that nothing can be left behind."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("encoders-batches")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def work() -> None:
    """A worker's life: one batcher, then steps until the connection closes."""
    # A signal to the whole group is for the parent, which may want batches until it has saved;
    # when it ends, however it ends, the connection closes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = multiprocessing.connection.Connection(int(sys.argv[1]))
    memory_file = int(sys.argv[2])
    try:
        batcher, slots = pickle.loads(connection.recv())
        memory = mmap.mmap(memory_file, _SLOTS * slots.size)
        while True:
            step, slot = connection.recv()
            try:
                views = slots.views(memory, slot, batcher.bucket_at(step))
                answer = (slot, batcher.fill(step, views), None)
            except DataError as error:
                answer = (slot, [], str(error))
            connection.send(answer)
    except (EOFError, ConnectionError):
        return
