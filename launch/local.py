"""Trains one experiment on this machine: python -m launch.local --config C --workdir runs/x.

With --processes N it trains in N processes that talk as they would over a network, and starts them
again when one dies.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from encoders.errors import ConfigError, exit_cleanly
from launch import session
from launch.flags import parse_flags
from launch.job import Job


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--processes", type=int, metavar="N", help="how many processes; default: only this one")
    add("--devices-per-process", type=int, metavar="M", help="default: 1")
    add("--retries", type=int, default=3, metavar="R", help="starts after a process died")
    add("--dry-run", action="store_true", help="prints the processes' commands, starts nothing")
    add("--compile-only", action="store_true", help="fills the compilation cache, trains nothing")


def main(arguments: Sequence[str] | None = None) -> int:
    flags, config = parse_flags(
        __doc__, arguments, extend=add_flags, workdir="where checkpoints, metrics and logs go"
    )
    session.log_to_stderr()
    if flags.processes is None:
        if flags.devices_per_process is not None or flags.dry_run:
            raise ConfigError("--devices-per-process and --dry-run need --processes.")
        session.prepare(config)
        if flags.compile_only:
            return session.compile_only(config)
        return session.train(config, flags.workdir)
    if flags.compile_only:
        raise ConfigError("--compile-only works in one process: leave out --processes.")
    from launch import supervisor

    job = Job(flags.config, flags.workdir, tuple(flags.overrides))
    group = (flags.processes, 1 if flags.devices_per_process is None else flags.devices_per_process)
    if flags.dry_run:
        print(supervisor.render(job, *group))
        return 0
    return supervisor.supervise(job, *group, flags.retries)


if __name__ == "__main__":
    exit_cleanly(main)
