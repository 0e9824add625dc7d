"""Runs the points of a config's sweep(): python -m launch.sweep --config C --workdir ROOT.

Each run is in ROOT/<name>. The same command goes on where it was stopped: what has finished is
skipped, and what sweep() has in addition is added. ROOT/sweep.md and ROOT/sweep.html compare them.
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
from typing import Any

from rich.console import Console

from configs.sweeps import at
from encoders.config import load_config, to_plain
from encoders.errors import (
    STOPPED,
    ConfigError,
    EncodersError,
    NonFiniteError,
    exit_cleanly,
    nearest,
)
from launch.flags import Parser, parse
from launch.job import Job
from launch.runs import read_object, read_run
from launch.sweeping.check import check_metric, check_points
from launch.sweeping.children import CONSOLE, Stop, Task, run_all, stop_signals
from launch.sweeping.points import Fields, Point, Record, read_plan
from launch.sweeping.results import Results, Row
from launch.sweeping.search import propose

BACKENDS = ("slurm", "tpu", "gke")


class Sweep:
    """What to run, where, and what has come of it.

    Raises:
      ConfigError: sweep(), the config or sweep.json is not what it should be.
    """

    def __init__(self, flags: argparse.Namespace, overrides: Sequence[str]):
        self.flags, self.overrides = flags, tuple(overrides)
        self.plan = read_plan(flags.config)
        self.record = Record(flags.workdir, flags.config)
        self.metric = flags.metric or self.plan.metric or "train/loss"
        mode = flags.mode or (self.plan.mode if self.metric == self.plan.metric else None)
        self.mode = mode or ("min" if "loss" in self.metric else "max")
        self.points = self.record.add(self.plan.points)
        if self.plan.trials is not None:
            axes = set(self.plan.axes)
            self.points = [point for point in self.record.points if set(point.fields) == axes]

    def check(self) -> None:
        """Finds before the start what can be found then.

        Raises:
          ConfigError: a point that no run could start, or a directory of another run.
        """
        flags = self.flags
        points: list[Fields] = [point.fields for point in self.points]
        if self.plan.trials is not None:
            points = [*points, *_corners(self.plan.axes)]
        where = f"sweep() of {flags.config}"
        check_points(flags.config, self.overrides, points, where)
        check_metric(flags.config, self.overrides, self.metric)
        from encoders.training.start import check_same_run

        for point in self.points:
            check_same_run(pathlib.Path(self.record.workdir(point)), self._config(point))

    def job(self, point: Point) -> Job:
        """The run of a point."""
        workdir = self.record.workdir(point)
        return Job(self.flags.config, workdir, (*self.overrides, *point.overrides))

    def command(self, point: Point, python: str = sys.executable) -> list[str]:
        """The command that trains one point on this machine."""
        job = self.job(point)
        overrides = [f"--config.{override}" for override in job.overrides]
        module = [python, "-m", "launch.local"]
        return [*module, "--config", job.config, "--workdir", job.workdir, *overrides]

    def next_points(self, count: int) -> list[Point]:
        """More points of a search, from the results so far; none when it is complete."""
        left = (self.plan.trials or 0) - len(self.points)
        history = [(point.fields, self.look(point).value) for point in self.points]
        asked = min(count, left)
        if asked < 1:
            return []
        found = propose(self.plan.axes, history, asked, mode=self.mode, seed=self.plan.seed)
        added = self.record.add(found)
        self.points += added
        return added

    # --- what has come of it --------------------------------------------------------------------

    def look(self, point: Point) -> Row:
        """How the run of a point is doing now."""
        directory = self.record.workdir(point)
        run = read_run(directory)
        state = run.state if run else ("waiting" if point.job is None else "submitted")
        if point.code is not None and state != "finished":
            state = "failed"  # perhaps without a word
        message, progress, value = "", "", None
        if run is not None and run.step is not None:
            progress = f"{run.step}/{run.total_steps}"
        if run is not None and state == "finished":
            value = run.metrics.get(self.metric)
        if state == "failed":
            message = (run.message if run else "") or _last_words(directory, point.code)
        return Row(point.name, point.fields, state, value, progress, message)

    def finished(self, point: Point) -> bool:
        """Whether all steps are done that this command asks for."""
        if self.look(point).state != "finished":
            return False
        written = read_object(pathlib.Path(self.record.workdir(point)) / "config.json")
        return written.get("duration") == json.loads(json.dumps(self._config(point)["duration"]))

    def open_points(self) -> list[Point]:
        """What is left to do; a run whose numbers were not finite would only fail again."""
        hopeless = NonFiniteError.exit_code
        return [
            point
            for point in self.points
            if not self.finished(point)
            and not (point.code == hopeless and read_run(self.record.workdir(point)))
        ]

    def results(self) -> Results:
        """Every run of the directory, the best first.

        Raises:
          ConfigError: runs have finished, and none of them has the metric.
        """
        rows = [self.look(point) for point in self.record.points]
        done = [row for row in rows if row.state == "finished"]
        run = read_run(self.record.root / done[0].name) if done else None
        lacks = run is not None and self.metric not in run.metrics
        if lacks and all(row.value is None for row in done):
            raise ConfigError(
                f"--metric {self.metric}: no run has it.{nearest(self.metric, run.metrics)}"
            )
        axes = (self.plan.axes or {}).items()
        logarithmic = {field: axis["kind"] == "log_uniform" for field, axis in axes}
        title = f"Sweep of {self.flags.config}"
        return Results.of(title, self.metric, self.mode, rows, logarithmic)

    def report(self) -> Results:
        """Writes sweep.md and sweep.html."""
        from encoders.training.metrics import write_atomically
        from tools.report.sweep import page

        results = self.results()
        for name, text in (("sweep.md", results.markdown()), ("sweep.html", page(results))):
            write_atomically(self.record.root / name, text.encode())
        return results

    def _config(self, point: Point) -> dict[str, Any]:
        return to_plain(load_config(self.flags.config, self.job(point).overrides))


def _last_words(directory: str, code: int | None) -> str:
    """One line on why a run failed that left no message."""
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    try:
        console = pathlib.Path(directory, CONSOLE).read_text(errors="replace")
    except OSError:
        console = ""
    lines = [line for line in console.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"exit code {code}"


def _corners(axes: dict[str, Any]) -> list[Fields]:
    """Points that between them touch both ends of every axis, and every choice."""
    most = max([2, *(len(axis["values"]) for axis in axes.values() if "values" in axis)])
    shares = [index / (most - 0.999) for index in range(most)]
    points = []
    for index, share in enumerate(shares):
        points.append({
            field: axis["values"][index % len(axis["values"])] if "values" in axis
            else at(axis, share)
            for field, axis in axes.items()
        })  # fmt: skip
    return points


# --- on this machine ------------------------------------------------------------------------------


def run_here(sweep: Sweep, stop: Stop) -> None:
    """Runs what is left, and for a search goes on from the results, until it is done or stopped."""
    batch = sweep.open_points()
    if sweep.plan.trials is not None and not batch:
        batch = sweep.next_points(sweep.flags.jobs)
    while batch and not stop:
        sweep.record.write()
        _run_batch(sweep, batch, stop)
        sweep.results()  # a metric that no run has is no use to a search
        batch = [] if stop else sweep.next_points(sweep.flags.jobs)


def _run_batch(sweep: Sweep, points: Sequence[Point], stop: Stop) -> None:
    by_name = {point.name: point for point in points}
    began: dict[str, float] = {}

    def started(task: Task) -> None:
        by_name[task.name].code = None
        began[task.name] = time.monotonic()
        print(f"{task.name}: started", flush=True)

    def ended(task: Task, code: int) -> None:
        point = by_name[task.name]
        early = stop and code == -signal.SIGTERM  # it was not listening yet, and had not begun
        point.code = None if code in (0, STOPPED) or early else code
        sweep.record.write()
        row = sweep.look(point)
        text = f"{row.state} after {time.monotonic() - began[task.name]:.0f} s"
        text += f", {sweep.metric} {row.value:.4g}" if row.value is not None else ""
        print(f"{task.name}: {text}" + (f": {row.message}" if row.message else ""), flush=True)

    run_all(
        [Task(p.name, sweep.command(p), sweep.record.workdir(p)) for p in points],
        sweep.flags.jobs,
        stop=stop,
        needless=lambda task: sweep.finished(by_name[task.name]),
        started=started,
        ended=ended,
    )


# --- on a scheduler -------------------------------------------------------------------------------


def submit(sweep: Sweep, backend: Any) -> None:
    """Hands the runs that are not submitted yet to a scheduler; with --resubmit the others, too."""
    left = [p for p in sweep.open_points() if sweep.look(p).state != "running"]
    again = [p for p in left if p.job is not None]
    todo = left if sweep.flags.resubmit else [p for p in left if p.job is None]
    if again and not sweep.flags.resubmit:
        print(
            f"{len(again)} runs were submitted before and have not finished; if the scheduler no "
            f"longer has them, --resubmit submits them again."
        )
    if not todo:
        return
    for point in todo:
        point.job, point.code = "", None
    sweep.record.write()  # first: a backend that watches its runs may stay for days
    try:
        ids = backend.submit([sweep.job(point) for point in todo], sweep.flags)
    except EncodersError:
        for point in todo:
            point.job = None
        sweep.record.write()
        raise
    for point, name in zip(todo, ids, strict=True):
        point.job = name
    sweep.record.write()


# --- the command ----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    backend = _backend(arguments)
    flags, overrides = parse(_parser(backend), arguments)
    if flags.jobs < 1:
        raise ConfigError(f"--jobs: counts from 1, got {flags.jobs}.")
    sweep = Sweep(flags, overrides)
    if backend is not None and sweep.plan.trials is not None:
        raise ConfigError(
            f"--on {flags.on}: a search chooses points from the results of others, which only "
            f"--on local waits for; draw them beforehand with sweeps.sample."
        )
    if flags.report:
        if not sweep.record.root.is_dir():
            raise ConfigError(f"--workdir {flags.workdir}: no sweep has been started there.")
        _show(sweep)
        return 0
    sweep.check()
    if flags.dry_run:
        return _dry_run(sweep, backend)
    stopped = False
    if backend is None:
        with stop_signals() as stop:
            run_here(sweep, stop)
        stopped = bool(stop)
    else:
        submit(sweep, backend)
    sweep.record.write()
    _show(sweep)
    states = [sweep.look(point).state for point in sweep.points]
    if backend is not None:
        return 0
    if "failed" in states and not stopped:
        return 1
    return 0 if set(states) <= {"finished"} and not stopped else STOPPED


def _show(sweep: Sweep) -> None:
    results = sweep.report()
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(results.table())
    console.print(results.summary())
    for row in results.rows:
        if row.message:
            console.print(f"{row.name}: {row.message}", style="red", markup=False)
    console.print(f"{sweep.record.root / 'sweep.html'}", soft_wrap=True)


def _dry_run(sweep: Sweep, backend: Any) -> int:
    todo = sweep.open_points()
    total = len(sweep.points) if sweep.plan.trials is None else sweep.plan.trials
    if sweep.plan.trials is not None and not todo:
        todo = sweep.next_points(sweep.flags.jobs)
    print(f"# {total} points, {len(todo)} to run now, compared by {sweep.metric} ({sweep.mode})")
    if backend is None:
        for point in todo:
            print(shlex.join(sweep.command(point, "python")))
        return 0
    for name, text in backend.render([sweep.job(p) for p in todo], sweep.flags).items():
        print(f"--- {name} ---\n{text}", end="")
    return 0


def _backend(arguments: Sequence[str]) -> Any:
    """The module that --on names, whose flags the parser needs; None for this machine."""
    where = ""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name == "--on":
            where = value if equals else following
    return importlib.import_module(f"launch.{where}") if where in BACKENDS else None


def _parser(backend: Any) -> Parser:
    parser = Parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--config", required=True, help="path/to/config.py[:argument], with a sweep()")
    add("--workdir", required=True, help="the directory that the runs' directories are made in")
    add("--on", choices=("local", *BACKENDS), default="local", help="where they run")
    add("--jobs", type=int, default=1, help="how many run at a time, on this machine")
    add("--metric", help="what they are compared by, such as eval/knn/accuracy")
    add("--mode", choices=("min", "max"), help="which of its values are better")
    add("--dry-run", action="store_true", help="shows what would run, and writes nothing")
    add("--report", action="store_true", help="compares what there is, and starts nothing")
    if backend is not None:
        add("--resubmit", action="store_true", help="also what was submitted and has not finished")
        backend.add_flags(parser)
    return parser


if __name__ == "__main__":
    exit_cleanly(main)
