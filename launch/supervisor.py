"""Several processes of one run on one machine: started together, watched, started again."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from encoders.errors import (
    STOPPED,
    ConfigError,
    DeadlineError,
    PeerError,
    StartupError,
    StorageError,
)
from encoders.parallel.host import has_accelerator
from launch.job import Job

log = logging.getLogger("encoders.launch")

# What may go well the next time; any other error would only be made again.
_WORTH_A_RETRY = (StartupError.exit_code, PeerError.exit_code, DeadlineError.exit_code, 1)
_GRACE = 5.0  # seconds for the peers of a dead process to say what they know


def supervise(job: Job, processes: int, devices: int, retries: int) -> int:
    """Runs a job in so many processes until it has finished, was stopped, or cannot go on.

    A SIGTERM or Ctrl-C is passed on: the processes save and stop.

    Args:
      job: what to run.
      processes: how many.
      devices: of each one: accelerators if there are any, else the CPU seen as so many.
      retries: how often to start again after a process died; all start again, from the last
        checkpoint.

    Returns:
      An exit code: 0 finished, 75 stopped with the state saved, else that of the first failure.

    Raises:
      ConfigError: a number below 1.
      StorageError: the directory cannot be written.
    """
    if retries < 0:
        raise ConfigError(f"--retries: counts from 0, got {retries}.")
    with _signals_to_group() as group:
        failures = 0
        while True:
            code = group.run(_commands(job, processes, devices, _free_address()))
            if code in (0, STOPPED) or group.stopping:
                return code
            if code > 0 and code not in _WORTH_A_RETRY:
                return code
            failures += 1
            if failures > retries:
                log.error("%s; giving up after %d retries", _death(code), retries)
                return code if code > 0 else 128 - code
            log.warning("%s; starting again (%d of %d)", _death(code), failures, retries)


def render(job: Job, processes: int, devices: int, address: str = "127.0.0.1:PORT") -> str:
    """The commands of all processes as shell text, with the variables that each one gets."""
    lines = []
    for command, variables, _ in _commands(job, processes, devices, address, python="python3"):
        assignments = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
        lines.append(" ".join([*assignments, shlex.join(command)]))
    return "\n".join(lines)


def _commands(
    job: Job, processes: int, devices: int, address: str, python: str = sys.executable
) -> list[tuple[list[str], dict[str, str], pathlib.Path | None]]:
    """Command, variables and where the output goes (None: here), of every process."""
    if processes < 1 or devices < 1:
        raise ConfigError(
            f"--processes and --devices-per-process count from 1, got {processes} and {devices}."
        )
    found = []
    for index in range(processes):
        command = job.worker(
            *("--cluster", "plain", "--coordinator", address, "--processes", str(processes)),
            *("--process", str(index), "--expect-devices", str(processes * devices)),
            python=python,
        )
        if has_accelerator():
            own = range(index * devices, (index + 1) * devices)
            variables = {"JAX_LOCAL_DEVICE_IDS": ",".join(map(str, own))}
        else:
            forced = f"--xla_force_host_platform_device_count={devices}"
            flags = f"{os.environ.get('XLA_FLAGS', '')} {forced}".strip()
            variables = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        output = None if index == 0 else pathlib.Path(job.workdir) / f"console-{index}.txt"
        found.append((command, variables, output))
    return found


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def _death(code: int) -> str:
    if code < 0:
        return f"a process was killed by {signal.Signals(-code).name}"
    return f"a process failed with exit code {code}"


class _Group:
    """The processes that run now."""

    def __init__(self) -> None:
        self.stopping = False
        self._members: list[subprocess.Popen] = []

    def run(self, commands: Sequence[tuple[list[str], dict, Any]]) -> int:
        """Starts all, waits for all; when one fails the others are killed. The first failure's code
        (negative for a signal), or 75 if all stopped, or 0."""
        with contextlib.ExitStack() as files:
            for command, variables, output in commands:
                where = None
                if output is not None:
                    where = files.enter_context(_open(output))
                self._members.append(
                    subprocess.Popen(
                        command,
                        env={**os.environ, **variables},
                        stdout=where,
                        stderr=where and subprocess.STDOUT,
                        start_new_session=True,  # Ctrl-C comes from here, once
                    )
                )
                log.info("process %d: pid %d", len(self._members) - 1, self._members[-1].pid)
            if self.stopping:
                self.signal(signal.SIGTERM)
            try:
                return self._wait()
            finally:
                self.signal(signal.SIGKILL)
                for member in self._members:
                    member.wait()
                self._members.clear()

    def signal(self, number: int) -> None:
        for member in self._members:
            if member.poll() is None:
                member.send_signal(number)

    def _wait(self) -> int:
        failed: int | None = None
        deadline = float("inf")
        while time.monotonic() < deadline:
            codes = [member.poll() for member in self._members]
            if failed is None:
                failed = next((c for c in codes if c not in (None, 0, STOPPED)), None)
                if failed is not None:
                    deadline = time.monotonic() + _GRACE
            if None not in codes:
                break
            time.sleep(0.05)
        if failed is not None:
            return failed
        return STOPPED if STOPPED in codes else 0


@contextlib.contextmanager
def _signals_to_group() -> Iterator[_Group]:
    """A group that SIGTERM and Ctrl-C are passed on to; a second Ctrl-C kills it."""
    group = _Group()

    def handle(number: int, frame: Any) -> None:
        if group.stopping and number == signal.SIGINT:
            group.signal(signal.SIGKILL)
            return
        group.stopping = True
        group.signal(signal.SIGTERM)

    before = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield group
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _open(path: pathlib.Path) -> Any:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}.") from error
