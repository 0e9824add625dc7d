"""Runs of a sweep as processes of this machine: so many at a time, stopped together."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

POLL = 0.1  # seconds
CONSOLE = "console.txt"


@dataclasses.dataclass(frozen=True)
class Task:
    """One command, and the directory that is its own."""

    name: str
    command: Sequence[str]
    directory: str


class Stop:
    """Set by SIGTERM or Ctrl-C: commands are told to save and end. The second one kills them."""

    def __init__(self) -> None:
        self.requested = 0

    def __bool__(self) -> bool:
        return self.requested > 0


def run_all(
    tasks: Sequence[Task],
    jobs: int,
    *,
    stop: Stop,
    needless: Callable[[Task], bool],
    started: Callable[[Task], None],
    ended: Callable[[Task, int], None],
    environment: Mapping[str, str] | None = None,
) -> None:
    """Runs every task, `jobs` at a time; one that fails does not stop the others.

    The output of a task goes to console.txt in its directory. That file stays locked for as long
    as the process lives, so a task that an earlier command left running is waited for, not run
    twice.

    Args:
      tasks: what to run, in this order.
      jobs: how many at a time.
      stop: checked all the time; once it is set, nothing more is started.
      needless: asked before a task is started, as another process may have done it meanwhile.
      started, ended: told about every task; `ended` with its exit code, which is below 0 for a
        signal.
      environment: of the tasks, by default this process's own.
    """
    waiting = list(tasks)
    slots: dict[int, tuple[Task, subprocess.Popen]] = {}
    signalled = 0
    while slots or (waiting and not stop):
        for slot in range(jobs):
            if slot in slots or stop:
                continue
            for task in waiting:
                console = _lock(pathlib.Path(task.directory) / CONSOLE)
                if console is None:
                    continue
                waiting.remove(task)
                with console:
                    if not needless(task):
                        started(task)
                        share = share_of_gpus(slot, jobs, os.environ)
                        slots[slot] = (
                            task,
                            _start(task, console, {**(environment or os.environ), **share}),
                        )
                break
        if stop.requested > signalled:
            signalled = stop.requested
            for _, process in slots.values():
                _signal(process, signal.SIGTERM if signalled == 1 else signal.SIGKILL)
        for slot, (task, process) in list(slots.items()):
            code = process.poll()
            if code is not None:
                del slots[slot]
                ended(task, code)
        time.sleep(POLL)


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turns SIGTERM and Ctrl-C into a request, for as long as the context lasts."""
    stop = Stop()

    def handle(number: int, frame: object) -> None:
        stop.requested += 1

    before = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def share_of_gpus(slot: int, jobs: int, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment that gives each of several runs at a time its own NVIDIA GPUs.

    With fewer GPUs than runs they share them, and each takes its part of the memory.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        nodes = pathlib.Path("/dev").glob("nvidia[0-9]*")
        gpus = [str(index) for index in range(len(list(nodes)))]
    else:
        gpus = [name for name in visible.split(",") if name]
    if jobs == 1 or not gpus:
        return {}
    each = len(gpus) // jobs
    if each:
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[slot * each : (slot + 1) * each])}
    together = -(-jobs // len(gpus))
    share = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]}
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in environment:
        share["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / together:.2f}"
    return share


def _start(task: Task, console, environment: Mapping[str, str]) -> subprocess.Popen:
    # In a session of its own: Ctrl-C reaches it once, through us.
    return subprocess.Popen(
        task.command,
        stdin=subprocess.DEVNULL,
        stdout=console,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        start_new_session=True,
    )


def _lock(path: pathlib.Path):
    """The file, open and locked until the last process that has it open ends; None if it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:
        pass  # a file system without locks
    return file


def _signal(process: subprocess.Popen, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
