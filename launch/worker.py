"""One process of a run, started by a scheduler: python -m launch.worker --cluster slurm ...

Exit codes: 0 finished; 75 stopped by a signal with the state saved, and the same command goes on;
anything else is the error's own.
"""

from __future__ import annotations

from collections.abc import Sequence

from encoders.errors import exit_cleanly
from launch import session
from launch.flags import parse_flags


def add_flags(parser: object) -> None:
    add = parser.add_argument
    add("--cluster", required=True, choices=("slurm", "openmpi", "tpu", "gke", "plain"))
    add("--coordinator", metavar="HOST:PORT", help="where process 0 is, in a plain cluster")
    add("--processes", type=int, metavar="N", help="how many there are, in a plain cluster")
    add("--process", type=int, metavar="I", help="which one this is, in a plain cluster")
    add("--expect-devices", type=int, metavar="N", help="devices of all processes together")
    add("--startup-seconds", type=float, default=300.0, help="deadline for finding each other")


def main(arguments: Sequence[str] | None = None) -> int:
    flags, config = parse_flags(
        __doc__, arguments, extend=add_flags, workdir="shared by all nodes; same after a restart"
    )
    session.log_to_stderr()
    session.prepare(config)
    # Imported late: a misspelt flag should not wait for jax.
    from encoders.parallel import processes

    with processes.joined(
        flags.cluster,
        coordinator=flags.coordinator,
        processes=flags.processes,
        process=flags.process,
        expect_devices=flags.expect_devices,
        seconds=flags.startup_seconds,
    ):
        return session.train(config, flags.workdir)


if __name__ == "__main__":
    exit_cleanly(main)
