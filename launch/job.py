"""What is launched: one experiment in one directory, whatever machine it will run on."""

from __future__ import annotations

import dataclasses
import pathlib
import re


@dataclasses.dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
      config: path/to/config.py[:argument], relative to the checkout.
      workdir: where checkpoints, metrics and logs go; the same after every restart.
      overrides: 'a.b=value' of --config.a.b=value.
    """

    config: str
    workdir: str
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A name that every scheduler accepts, from the last part of the workdir."""
        name = re.sub(r"[^a-z0-9]+", "-", pathlib.PurePosixPath(self.workdir).name.lower())
        return name.strip("-")[:40].strip("-") or "run"

    def worker(self, *flags: str, python: str = "python3") -> list[str]:
        """The command that every process of the run executes, in the checkout.

        Args:
          *flags: of `launch.worker`, such as '--cluster', 'slurm'.
          python: the interpreter.
        """
        overrides = [f"--config.{override}" for override in self.overrides]
        command = [python, "-m", "launch.worker", "--config", self.config]
        return [*command, "--workdir", self.workdir, *flags, *overrides]
