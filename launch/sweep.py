"""Runs the points of a config's sweep(): python -m launch.sweep --config C --workdir ROOT.

The same command goes on where it was stopped. Each run is in ROOT/<name>.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib
import shlex
import signal
import sys
import time
from collections.abc import Sequence

from encoders.config import load_config, to_json
from encoders.errors import STOPPED, NonFiniteError, exit_cleanly
from launch.children import CONSOLE, Stop, Task, run_all, stop_signals
from launch.flags import Parser, parse
from launch.job import Job
from launch.points import Plan, Point, Record, read_plan
from launch.runs import last_value, read_run

BACKENDS = ("slurm", "tpu", "gke")


class Sweep:
    """One command: what to run, where, and what is known of it."""

    def __init__(self, flags: argparse.Namespace, overrides: Sequence[str]):
        self.flags, self.overrides = flags, tuple(overrides)
        self.plan: Plan = read_plan(flags.config)
        self.record = Record(flags.workdir, flags.config)
        self.metric = flags.metric or self.plan.metric or "train/loss"
        mode = flags.mode or (self.plan.mode if self.metric == self.plan.metric else None)
        self.mode = mode or ("min" if "loss" in self.metric else "max")

    def job(self, point: Point) -> Job:
        """The run of a point."""
        workdir = self.record.workdir(point)
        return Job(self.flags.config, workdir, (*self.overrides, *point.overrides))

    def state(self, point: Point) -> str:
        """A run's own state; 'failed' too where it died without a word; 'waiting' without one."""
        run = read_run(self.record.workdir(point))
        if run is None:
            return "waiting" if point.code is None else "failed"
        if run.state in ("running", "silent") and point.code is not None:
            return "failed"
        return run.state

    def finished(self, point: Point) -> bool:
        """Whether there is nothing left to do: all steps are done that this command asks for."""
        if self.state(point) != "finished":
            return False
        job = self.job(point)
        written = json.loads((pathlib.Path(job.workdir) / "config.json").read_bytes())
        asked = json.loads(to_json(load_config(job.config, job.overrides)))
        return written.get("duration") == asked.get("duration")

    def hopeless(self, point: Point) -> bool:
        """Whether it would fail again at the same step: its numbers stopped being finite."""
        run = read_run(self.record.workdir(point))
        return run is not None and point.code == NonFiniteError.exit_code

    def result(self, point: Point) -> float | None:
        """The last value of the metric, of a run that finished."""
        run = read_run(self.record.workdir(point))
        return last_value(run, self.metric) if run and run.state == "finished" else None

    # --- on this machine ------------------------------------------------------------------------

    def command(self, point: Point, python: str = sys.executable) -> list[str]:
        """The command that trains one point on this machine."""
        job = self.job(point)
        overrides = [f"--config.{override}" for override in job.overrides]
        module = [python, "-m", "launch.local"]
        return [*module, "--config", job.config, "--workdir", job.workdir, *overrides]

    def run(self, points: Sequence[Point], stop: Stop) -> None:
        """Runs points of known fields, --jobs at a time, until they end or are stopped."""
        by_name = {point.name: point for point in points}
        began: dict[str, float] = {}

        def started(task: Task) -> None:
            began[task.name] = time.monotonic()
            print(f"{task.name}: started", flush=True)

        def ended(task: Task, code: int) -> None:
            point = by_name[task.name]
            told = stop and code == -signal.SIGTERM  # before it could listen
            point.code = None if code in (0, STOPPED) or told else code
            self.record.write()
            seconds = time.monotonic() - began[task.name]
            print(f"{task.name}: {self.outcome(point)} after {seconds:.0f} s", flush=True)

        tasks = [Task(p.name, self.command(p), self.record.workdir(p)) for p in points]
        run_all(
            tasks,
            self.flags.jobs,
            stop=stop,
            needless=lambda task: self.finished(by_name[task.name]),
            started=started,
            ended=ended,
        )

    def outcome(self, point: Point) -> str:
        """'finished, train/loss 1.23', or the reason why not."""
        state, value = self.state(point), self.result(point)
        if state == "finished":
            return f"finished, {self.metric} {value:.4g}" if value is not None else "finished"
        return f"{state}: {self.reason(point)}" if state == "failed" else state

    def reason(self, point: Point) -> str:
        """One line on why a run failed."""
        run = read_run(self.record.workdir(point))
        if run is not None and run.message:
            return run.message
        if point.code is not None and point.code < 0:
            return f"killed by {signal.Signals(-point.code).name}"
        try:
            console = pathlib.Path(self.record.workdir(point), CONSOLE).read_text(errors="replace")
        except OSError:
            console = ""
        lines = [line for line in console.splitlines() if line.strip()]
        return lines[-1].removeprefix("error: ") if lines else f"exit code {point.code}"


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    backend = _backend(arguments)
    parser = _parser(backend)
    flags, overrides = parse(parser, arguments)
    sweep = Sweep(flags, overrides)
    points = sweep.record.add(sweep.plan.points)
    todo = [p for p in points if not sweep.finished(p) and not sweep.hopeless(p)]
    if flags.dry_run:
        return _dry_run(sweep, points, todo, backend)
    if backend is not None:
        sweep.record.write()
        return _submit(sweep, todo, backend)
    sweep.record.write()
    with stop_signals() as stop:
        sweep.run(todo, stop)
    states = [sweep.state(point) for point in points]
    if "failed" in states and not stop:
        return 1
    return 0 if all(state == "finished" for state in states) else STOPPED


def _backend(arguments: Sequence[str]) -> object | None:
    """The module of --on, whose flags the parser needs; None for this machine."""
    first = Parser(__doc__)
    first.add_argument("--on", default="local")
    where = "local"
    for index, argument in enumerate(arguments):
        if argument.startswith("--on="):
            where = argument.partition("=")[2]
        elif argument == "--on" and index + 1 < len(arguments):
            where = arguments[index + 1]
    return importlib.import_module(f"launch.{where}") if where in BACKENDS else None


def _parser(backend) -> Parser:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="path/to/config.py[:argument]")
    parser.add_argument("--workdir", required=True, help="the directory of the runs")
    parser.add_argument("--on", choices=("local", *BACKENDS), default="local", help="where")
    parser.add_argument("--dry-run", action="store_true", help="show what would run")
    parser.add_argument("--metric", help="what runs are compared by, such as eval/knn/accuracy")
    parser.add_argument("--mode", choices=("min", "max"), help="which values of it are better")
    if backend is None:
        parser.add_argument("--jobs", type=int, default=1, help="how many runs at a time")
    else:
        backend.add_flags(parser)
    return parser


def _dry_run(sweep: Sweep, points: Sequence[Point], todo: Sequence[Point], backend) -> int:
    print(f"{len(points)} points, {len(todo)} to run")
    if backend is None:
        for point in todo:
            print(shlex.join(sweep.command(point, "python")))
    else:
        for name, text in backend.render([sweep.job(p) for p in todo], sweep.flags).items():
            print(f"--- {name} ---\n{text}", end="")
    return 0


def _submit(sweep: Sweep, todo: Sequence[Point], backend) -> int:
    todo = [point for point in todo if point.job is None]
    if not todo:
        return 0
    ids = backend.submit([sweep.job(point) for point in todo], sweep.flags)
    for index, point in enumerate(todo):
        point.job = ids[index] if len(ids) == len(todo) else ",".join(ids)
    sweep.record.write()
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
