"""How runs are doing: python -m launch.status --workdir ROOT [--json].

Shows every run at or below ROOT, at any depth. It only reads files, so it works while runs go on,
from any machine that sees them.
"""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from encoders.errors import ConfigError, exit_cleanly
from launch.flags import Parser
from launch.runs import Run, find_runs, read_run
from launch.sweeping.results import COLORS

WIDTH = 200  # columns where the output is not a terminal
# column -> (metric, how it is shown)
UTILISATION: dict[str, tuple[str, Callable[[float], str]]] = {
    "examples/s": ("train/examples_per_second", lambda v: f"{v:,.0f}" if v >= 10 else f"{v:.2g}"),
    "MFU": ("train/mfu", lambda v: f"{100 * v:.1f}%"),
    "goodput": ("train/goodput", lambda v: f"{100 * v:.1f}%"),
    "data wait": ("train/data_wait", lambda v: f"{100 * v:.1f}%"),
    "loss": ("train/loss", lambda v: f"{v:.4g}"),
}

# What is left out where a terminal is narrow, in this order; --json has it all.
EXPENDABLE = ("devices", "data wait", "examples/s", "restarts", "goodput", "MFU")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="a run, or a directory of runs")
    parser.add_argument("--json", action="store_true", help="for programs: a list of objects")
    flags = parser.parse(arguments)
    root = pathlib.Path(flags.workdir)
    if not root.is_dir():
        raise ConfigError(f"--workdir {root}: there is no such directory.")
    now = time.time()
    runs = [run for run in (read_run(path, now=now) for path in find_runs(root)) if run]
    if flags.json:
        print(json.dumps([as_json(run, root, now) for run in runs], indent=2, allow_nan=False))
        return 0
    if not runs:
        print(f"{root}: no run has started yet.")
        return 0
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    console.print(table(runs, root, now, console))
    for run in runs:
        if run.message:
            console.print(Text(f"{name_of(run, root)}: {run.message}", style="red"))
    console.print(summary(runs), style="dim")
    return 0


def name_of(run: Run, root: pathlib.Path) -> str:
    """The run's directory as seen from `root`."""
    relative = run.directory.relative_to(root)
    return str(relative) if relative.parts else run.directory.resolve().name


def as_json(run: Run, root: pathlib.Path, now: float) -> dict[str, Any]:
    """What the table shows, in plain units: seconds, shares from 0 to 1, counts."""
    return {
        "run": name_of(run, root),
        "directory": str(run.directory),
        "state": run.state,
        "message": run.message,
        "step": run.step,
        "total_steps": run.total_steps,
        "seconds_left": run.seconds_left,
        "seconds_since_last_word": round(max(0.0, now - run.time), 3),
        "restarts": run.restarts,
        "devices": run.devices,
        "metrics": dict(run.metrics),
    }


def table(runs: Sequence[Run], root: pathlib.Path, now: float, console: Console) -> Table:
    """One line for each run, with as many columns as fit."""
    unbounded = console.options.update_width(10_000)
    for count in range(len(EXPENDABLE) + 1):
        grid = _table(runs, root, now, EXPENDABLE[:count])
        if console.measure(grid, options=unbounded).maximum <= console.width:
            break
    return grid


def _table(runs: Sequence[Run], root: pathlib.Path, now: float, left_out: Sequence[str]) -> Table:
    rows = []
    for run in runs:
        left = run.seconds_left
        row: dict[str, Text | str] = {
            "run": Text(name_of(run, root)),
            "state": Text(_state(run, now), style=COLORS.get(run.state, "yellow")),
            "step": _progress(run),
            "ETA": "" if left is None else duration(left),
        }
        for column, (metric, form) in UTILISATION.items():
            value = run.metrics.get(metric)
            row[column] = "" if value is None else form(value)
        row["evaluation"] = Text(_evaluation(run))
        row["restarts"] = str(run.restarts or "")
        row["devices"] = Text(_devices(run))
        rows.append(row)
    grid = Table(box=None, pad_edge=False, header_style="dim")
    shown = [c for c in rows[0] if c not in left_out and any(str(row[c]) for row in rows)]
    for column in shown:
        text = column in ("run", "state", "evaluation", "devices")
        overflow = "fold" if column == "run" else "ellipsis"
        grid.add_column(
            column,
            justify="left" if text else "right",
            no_wrap=column != "run",
            overflow=overflow,
        )
    for row in rows:
        grid.add_row(*(row[column] or "–" for column in shown))
    return grid


def summary(runs: Sequence[Run]) -> str:
    """'4 runs: 3 finished, 1 running.'"""
    states = [run.state for run in runs]
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states))]
    return f"{len(runs)} run{'s' if len(runs) > 1 else ''}: {', '.join(counts)}."


def _state(run: Run, now: float) -> str:
    if run.state != "silent":
        return run.state
    return f"silent for {duration(now - run.time)} (no heartbeat)"


def _progress(run: Run) -> str:
    if run.step is None:
        return ""
    if not run.total_steps:
        return f"{run.step:,}"
    return f"{run.step:,}/{run.total_steps:,} {100 * run.step / run.total_steps:3.0f}%"


def _evaluation(run: Run) -> str:
    """One metric of evaluation: the first accuracy if there is one; --json has all."""
    shown = ""
    for name, value in run.metrics.items():
        kind, _, rest = name.partition("/")
        if kind != "eval" or value is None:
            continue
        evaluator, _, metric = rest.partition("/")
        text = f"{evaluator} {metric} {value:.4g}"
        if metric == "accuracy":
            return text
        shown = shown or text
    return shown


def _devices(run: Run) -> str:
    devices = run.devices
    if not devices:
        return ""
    text = f"{devices.get('count', '?')} × {devices.get('kind', '?')}"
    processes = devices.get("processes", 1)
    return text if processes == 1 else f"{text}, {processes} processes"


def duration(seconds: float) -> str:
    """'42 s', '12 min', '3 h 04 min' or '2 d 03 h'."""
    minutes = int(seconds) // 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 60 * 24:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60:02d} h"


if __name__ == "__main__":
    exit_cleanly(main)
