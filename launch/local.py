"""Trains one experiment on this machine: python -m launch.local --config C --workdir runs/x."""

from __future__ import annotations

import logging
import sys

from encoders.errors import exit_cleanly
from encoders.parallel.host import retain_freed_memory
from launch.flags import parse_flags


def main() -> int:
    flags, config = parse_flags(__doc__, workdir="where checkpoints, metrics and logs go")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("encoders").setLevel(logging.INFO)
    retain_freed_memory()
    # Imported late: a misspelt flag should not wait for jax.
    from encoders.training.experiment import Experiment
    from encoders.training.loop import train

    train(Experiment(config), flags.workdir)
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
