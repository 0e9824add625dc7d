"""A hang becomes an exit: the stacks of all threads in a file, and a code of its own."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax

from encoders.errors import DeadlineError
from encoders.training.sections import Deadlines

log = logging.getLogger(__name__)


class Watchdog:
    """Ends the process when the phase it is in takes too long.

    Args:
      deadlines: seconds of each phase.
      directory: of the run; stacks-<process>.txt is written there.
      on_expiry: called with the message before the process ends.
    """

    def __init__(
        self,
        deadlines: Deadlines,
        directory: pathlib.Path,
        on_expiry: Callable[[str], None] = lambda message: None,
    ):
        self._deadlines, self._on_expiry = deadlines, on_expiry
        self._stacks = directory / f"stacks-{jax.process_index()}.txt"
        self._phase, self._since = "startup", time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def progress(self, phase: str = "step") -> None:
        """Says that work goes on, and in which phase it is from now on."""
        self._phase, self._since = phase, time.monotonic()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Inside, the deadline of `name` holds; afterwards that of a step, counted anew."""
        self.progress(name)
        yield
        self.progress()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _watch(self) -> None:
        while not self._closed.wait(0.2):
            phase, since = self._phase, self._since
            limit = getattr(self._deadlines, phase)
            if limit is not None and time.monotonic() - since > limit:
                self._expire(phase, limit)

    def _expire(self, phase: str, limit: float) -> None:
        message = (
            f"process {jax.process_index()}: no progress for {limit:g} s "
            f"(deadlines.{phase}); the stacks of all threads are in {self._stacks}."
        )
        with contextlib.suppress(OSError), self._stacks.open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        log.error(message)
        with contextlib.suppress(Exception):  # the disk may be what hangs or is full
            self._on_expiry(message)
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(DeadlineError.exit_code)  # the main thread cannot be woken from a collective
