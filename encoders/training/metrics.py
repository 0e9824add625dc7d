"""What a run leaves behind to be read: metrics.jsonl, TensorBoard, status.json, run.json.

metrics.jsonl has one JSON object per line: {"step": n, "time": unix seconds, "train/loss": x, ...}
from training and {"step": n, "time": ..., "eval/<evaluator>/<metric>": x} from evaluation. Numbers
that are not finite are null. Lines are appended whole; what a kill leaves of a line is cut off at
the next start.

Of several processes the first one writes; for the others everything here does nothing, so that the
loop need not ask. Only that a run failed may be said by any.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np

from encoders.errors import StorageError

METRICS, STATUS, FACTS = "metrics.jsonl", "status.json", "run.json"
State = Literal["running", "finished", "stopped", "failed"]


class MetricWriter:
    """Appends metrics to `directory`/metrics.jsonl and, if asked, TensorBoard's event files.

    Args:
      directory: of the run; made if missing.
      tensorboard: whether to write `directory`/tensorboard too.

    Raises:
      StorageError: the files cannot be written.
    """

    def __init__(self, directory: str | pathlib.Path, *, tensorboard: bool = True):
        self._path = pathlib.Path(directory) / METRICS
        self._tensorboard_directory = self._path.parent / "tensorboard" if tensorboard else None
        self._tensorboard: Any = None
        self._purge: int | None = None
        self._file: int | None = None
        self._silent = jax.process_index() != 0
        if self._silent:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _cut_torn_line(self._path)
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise _storage_error(self._path, error) from error

    def truncate(self, after: int) -> None:
        """Forgets records of steps greater than `after`: a resumed run writes them again.

        Event files cannot be cut; TensorBoard is told to hide what they say about those steps.
        """
        if self._silent:
            return
        kept, dropped = [], False
        for line in _lines(self._path):
            record = _parse(line)
            if record is not None and record["step"] <= after:
                kept.append(line)
            else:
                dropped = True
        if not dropped:
            return
        os.close(self._file)
        write_atomically(self._path, b"".join(kept))
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        self._purge = after + 1

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one record; values are numbers or arrays of one number.

        Raises:
          StorageError: the disk is full.
        """
        if self._silent:
            return
        now = time.time()
        values = {name: _number(value) for name, value in metrics.items()}
        record = {"step": int(step), "time": round(now, 3), **values}
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            written = os.write(self._file, line)
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError as error:
            raise _storage_error(self._path, error) from error
        if self._tensorboard_directory is not None:
            writer = self._open_tensorboard()
            for name, value in values.items():
                if value is not None:
                    writer.add_scalar(name, value, int(step), walltime=now)

    def close(self) -> None:
        """Flushes and closes the files; safe to call twice."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open_tensorboard(self) -> Any:
        if self._tensorboard is None:
            import tensorboardX  # a second of import time that only a run pays

            self._tensorboard = tensorboardX.SummaryWriter(
                str(self._tensorboard_directory), purge_step=self._purge, flush_secs=30
            )
        return self._tensorboard


def read_metrics(directory: str | pathlib.Path) -> list[dict[str, Any]]:
    """The records of a run, oldest first; an unfinished last line is left out, no file is []."""
    records = [_parse(line) for line in _lines(pathlib.Path(directory) / METRICS)]
    return [record for record in records if record is not None]


def last_values(directory: str | pathlib.Path, step: int) -> dict[str, Any]:
    """What a run that goes on at `step` needs to know of its records.

    Returns:
      {'train/useful_seconds': seconds so far, 'at_step': names of the metrics of `step`}.
    """
    records = [record for record in read_metrics(directory) if record["step"] <= step]
    useful = [r["train/useful_seconds"] for r in records if "train/useful_seconds" in r]
    names = {name for record in records if record["step"] == step for name in record}
    return {"train/useful_seconds": useful[-1] if useful else 0.0, "at_step": sorted(names)}


# --- status -------------------------------------------------------------------------------------


def write_status(
    directory: str | pathlib.Path,
    state: State,
    step: int | None = None,
    total_steps: int | None = None,
    metrics: Mapping[str, Any] | None = None,
    *,
    message: str = "",
) -> None:
    """Replaces status.json: {state, step, total_steps, time, message, metrics}.

    Readers see the old file or the new one, never half of one. A step, total or metrics of None
    stay as they were.

    Raises:
      StorageError: the disk is full.
    """
    if jax.process_index() != 0 and state != "failed":
        return
    before = read_status(directory) or {}
    values = before.get("metrics", {})
    if metrics:
        values = {name: _number(value) for name, value in metrics.items()}
    status = {
        "state": state,
        "step": before.get("step") if step is None else int(step),
        "total_steps": before.get("total_steps") if total_steps is None else int(total_steps),
        "time": round(time.time(), 3),
        "message": message,
        "metrics": values,
    }
    _write_json(pathlib.Path(directory) / STATUS, status)


def read_status(directory: str | pathlib.Path) -> dict[str, Any] | None:
    """What `write_status` wrote, or None if there is nothing."""
    return _read_json(pathlib.Path(directory) / STATUS)


# --- facts --------------------------------------------------------------------------------------


def write_facts(directory: str | pathlib.Path, *, first_step: int, **facts: Any) -> None:
    """Records in run.json what ran: `facts`, and one more session with command, versions, devices.

    Args:
      directory: of the run.
      first_step: where this session starts; above 0 for a resumed run.
      **facts: JSON values about the whole run, such as parameters and flops_per_example.
    """
    if jax.process_index() != 0:
        return
    path = pathlib.Path(directory) / FACTS
    known = _read_json(path) or {}
    session = {
        "first_step": first_step,
        "started": round(time.time(), 3),
        "command": shlex.join(_command()),
        "versions": versions(),
        "devices": {
            "kind": jax.devices()[0].device_kind,
            "platform": jax.devices()[0].platform,
            "count": jax.device_count(),
            "processes": jax.process_count(),
            "host": f"{platform.machine()}, {os.cpu_count()} cores",
        },
    }
    known.update(facts, sessions=[*known.get("sessions", []), session])
    _write_json(path, known)


def end_session(directory: str | pathlib.Path, outcome: State) -> None:
    """Records how and when this session ended; one without an outcome died, or still runs."""
    if jax.process_index() != 0:
        return
    facts = read_facts(directory)
    if facts.get("sessions"):
        facts["sessions"][-1] |= {"outcome": outcome, "ended": round(time.time(), 3)}
        _write_json(pathlib.Path(directory) / FACTS, facts)


def first_start(directory: str | pathlib.Path) -> float | None:
    """When the run was first started, in seconds since 1970; None before that."""
    sessions = read_facts(directory).get("sessions")
    return sessions[0]["started"] if sessions else None


def read_facts(directory: str | pathlib.Path) -> dict[str, Any]:
    """What `write_facts` wrote, or {}."""
    return _read_json(pathlib.Path(directory) / FACTS) or {}


def versions() -> dict[str, str]:
    """Versions of what computes: Python and the packages that matter."""
    found = {"python": platform.python_version()}
    for package in ("encoders", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # encoders runs from a checkout, too
    return found


def _command() -> list[str]:
    """How this process was started, with `python -m` where that is how."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is None:
        return ["python", *sys.argv]
    return ["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]


# --- files --------------------------------------------------------------------------------------


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Replaces a file in one move.

    Raises:
      StorageError: the disk is full; the old file stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _storage_error(path, error) from error


def _write_json(path: pathlib.Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2).encode() + b"\n")


def _read_json(path: pathlib.Path) -> Any:
    return json.loads(path.read_bytes()) if path.exists() else None


def _storage_error(path: pathlib.Path, error: OSError) -> StorageError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = "; free space there and start again" if full else ""
    return StorageError(f"{path}: {error.strerror}{advice}.")


def _lines(path: pathlib.Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def _parse(line: bytes) -> dict[str, Any] | None:
    """The record of a line, or None for one that was not written to its end."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = line.endswith(b"\n") and isinstance(record, dict) and "step" in record
    return record if whole else None


def _cut_torn_line(path: pathlib.Path) -> None:
    lines = _lines(path)
    if lines and not lines[-1].endswith(b"\n"):
        os.truncate(path, sum(map(len, lines[:-1])))


def _number(value: Any) -> float | int | None:
    number = np.asarray(value).item()
    return number if math.isfinite(number) else None
