"""`launch.sweep` whose runs are `fake_run.py`, as a command of its own: for signals and kills."""

import pathlib
import sys
from unittest import mock

from encoders.errors import exit_cleanly
from launch import sweep

FAKE = pathlib.Path(__file__).with_name("fake_run.py")
real = sweep.Sweep.command


def command(self, point, python=sys.executable):
    words = real(self, point, python)
    return [words[0], str(FAKE), *words[3:]]


def main(arguments=None):
    with (
        mock.patch.object(sweep.Sweep, "command", command),
        mock.patch.object(sweep, "check_points"),  # fake_loss is no field of an experiment
    ):
        return sweep.main(arguments)


if __name__ == "__main__":
    exit_cleanly(main)
