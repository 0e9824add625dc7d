"""Writes a run's report: python -m tools.report --workdir runs/x [--compare runs/y ...].

One file, runs/x/report.html, that needs nothing else: charts are inline SVG, pictures are inside.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from encoders.errors import ConfigError, exit_cleanly
from launch.flags import Parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--workdir", required=True, help="the run")
    parser.add_argument(
        "--compare", nargs="+", default=[], help="other runs, to lay over its curves"
    )
    parser.add_argument("--output", help="where to write, by default WORKDIR/report.html")
    flags = parser.parse(arguments)
    # Imported late: a misspelt flag should not wait for jax.
    from encoders.training.metrics import write_atomically
    from tools.report.charts import COLORS
    from tools.report.page import page
    from tools.report.runs import Run

    directories = [flags.workdir, *flags.compare]
    if len(directories) > len(COLORS):
        raise ConfigError(f"--compare: at most {len(COLORS) - 1} runs fit into one picture.")
    runs = [Run(path, color) for path, color in zip(directories, COLORS, strict=False)]
    if len({run.name for run in runs}) < len(runs):
        for run in runs:
            run.name = str(run.directory)
    output = pathlib.Path(flags.output or pathlib.Path(flags.workdir) / "report.html")
    write_atomically(output, page(runs).encode())
    print(output, file=sys.stdout)
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
