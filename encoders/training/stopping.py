"""Stopping when a signal asks for it: at one step on all processes, with the state saved."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from typing import Any

from encoders.parallel import processes

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """An evaluation was left because the run is to stop."""


class Stop:
    """SIGTERM or the first Ctrl-C asks to stop; the second Ctrl-C interrupts at once.

    Attributes:
      requested: whether the run is to stop, as of the last `poll`.
    """

    def __init__(self) -> None:
        self.requested = False
        self._signalled = False
        self._polls = 0

    def poll(self) -> bool:
        """Asks whether to stop now; every process asks equally often and gets one answer."""
        if not self.requested:
            self.requested = self._signalled
            if processes.connected():
                self.requested = processes.stop_agreed(self._polls)
                self._polls += 1
            if self.requested:
                log.info("asked to stop: saving, then stopping")
        return self.requested

    def interrupt(self) -> None:
        """`poll` for work that can be left in the middle.

        Raises:
          Interrupted: the run is to stop.
        """
        if self.poll():
            raise Interrupted

    def handle(self, number: int, frame: Any) -> None:
        """The signal handler."""
        if self._signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signalled = True
        if processes.connected():
            os.kill(os.getpid(), signal.SIGTERM)  # jax's handler, which tells the other processes


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """A `Stop` that listens to signals meanwhile."""
    stop = Stop()
    # Among processes SIGTERM belongs to jax's preemption service.
    own = (signal.SIGINT,) if processes.connected() else (signal.SIGTERM, signal.SIGINT)
    before = {}
    try:
        for number in own:
            before[number] = signal.signal(number, stop.handle)
    except ValueError:
        log.info("not in the main thread: signals keep their handlers")
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
