"""Reads run directories as they are found: while they are written, damaged, or not ours at all.

Needs no jax, so that looking costs nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

STATES = ("running", "finished", "stopped", "failed")
SILENT = 300.0  # seconds without a word after which a running run is called silent


@dataclasses.dataclass(frozen=True)
class Run:
    """What the files of a run say.

    Attributes:
      directory: of the run.
      state: one of STATES, or 'silent' for one that runs but has written nothing for long.
      message: why it failed.
      step, total_steps: how far it is; None before it knows.
      time: of the last word, in Unix seconds.
      metrics: the last value of each; those that were not finite are None.
      seconds_left: at the pace of this session; None if there is none yet.
      sessions: one for each start.
    """

    directory: pathlib.Path
    state: str
    message: str
    step: int | None
    total_steps: int | None
    time: float
    metrics: Mapping[str, float | None]
    seconds_left: float | None
    sessions: Sequence[Mapping[str, Any]]

    @property
    def restarts(self) -> int:
        return max(0, len(self.sessions) - 1)

    @property
    def devices(self) -> dict[str, Any]:
        """Of the last session: kind, count, processes; {} if it has not said yet."""
        devices = self.sessions[-1].get("devices") if self.sessions else None
        return devices if isinstance(devices, dict) else {}


def find_runs(root: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Directories at or below `root` with a status.json, in order; runs hold no other runs."""
    for path, folders, files in os.walk(root):
        folders.sort()
        if "status.json" in files:
            folders.clear()
            yield pathlib.Path(path)


def read_run(directory: str | pathlib.Path, *, now: float | None = None) -> Run | None:
    """Reads one run, or returns None where its status.json is missing, torn, or someone else's."""
    directory = pathlib.Path(directory)
    status = read_object(directory / "status.json")
    if status.get("state") not in STATES or not isinstance(status.get("time"), int | float):
        return None
    now = time.time() if now is None else now
    sessions = read_object(directory / "run.json").get("sessions")
    sessions = [s for s in sessions if isinstance(s, dict)] if isinstance(sessions, list) else []
    records = read_records(directory)
    metrics: dict[str, float | None] = {}
    for record in [*records, status.get("metrics")]:
        if isinstance(record, dict):
            metrics |= {name: _finite(value) for name, value in record.items()}
    for name in ("step", "time"):
        metrics.pop(name, None)
    state, step, total = status["state"], status.get("step"), status.get("total_steps")
    step, total = _whole(step), _whole(total)
    quiet = now - status["time"]
    if state == "running" and quiet > max(SILENT, 3 * _longest_pause(records)):
        state = "silent"
    started = sessions[-1].get("started", 0) if sessions else 0
    return Run(
        directory=directory,
        state=state,
        message=str(status.get("message") or ""),
        step=step,
        total_steps=total,
        time=status["time"],
        metrics=metrics,
        seconds_left=_seconds_left(records, started, step, total) if state == "running" else None,
        sessions=sessions,
    )


def read_records(directory: str | pathlib.Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, without those that cannot be read."""
    try:
        lines = (pathlib.Path(directory) / "metrics.jsonl").read_bytes().splitlines()
    except OSError:
        return []
    records = [_parse(line) for line in lines]
    return [r for r in records if "step" in r and "time" in r]


def _seconds_left(
    records: Sequence[Mapping[str, Any]], started: float, step: int | None, total: int | None
) -> float | None:
    steps = [(r["step"], r["time"]) for r in records if "train/loss" in r and r["time"] >= started]
    if len(steps) < 2 or step is None or total is None:
        return None
    (first, began), (last, ended) = steps[0], steps[-1]
    return (ended - began) / (last - first) * (total - step) if last > first else None


def _longest_pause(records: Sequence[Mapping[str, Any]]) -> float:
    times = [record["time"] for record in records[-20:]]
    return max((b - a for a, b in itertools.pairwise(times)), default=0.0)


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object, or {} where there is none that can be read."""
    try:
        return _parse(path.read_bytes())
    except OSError:
        return {}


def _parse(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _finite(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None
