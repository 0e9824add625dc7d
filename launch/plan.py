"""What a run will cost before it runs: python -m launch.plan --config C --topology v5p:8x8x8.

Compiles the real training step for a TPU pod on a machine without one, or counts for GPUs
(--devices 8xH200): memory of a chip by part, collectives, the least time of a step, the whole
schedule. Exit code 1 says that it does not fit.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from encoders.errors import ConfigError, exit_cleanly
from launch import session
from launch.flags import Parser, parse
from launch.planning import target


def main(arguments: Sequence[str] | None = None) -> int:
    flags, overrides = parse(_parser(), arguments)
    if flags.table:
        target.prepare_environment()
        from launch.planning.table import write

        return write(flags.table)
    if flags.config is None:
        raise ConfigError("--config is needed: path/to/config.py[:argument].")
    if (flags.topology is None) == (flags.devices is None):
        raise ConfigError(
            "one of --topology (TPU, compiled) and --devices (GPU, counted) is needed."
        )
    from encoders.config import load_config

    config = load_config(flags.config, overrides)
    if flags.topology is not None:
        session.apply_environment(config)  # the compiler's flags, as the run will have them
    target.prepare_environment()
    # Imported late: jax must not start before its environment is set.
    from launch.planning import report, search

    if flags.topology is not None:
        machine = search.pod(target.parse_topology(flags.topology, flags.slices))
    else:
        if flags.slices:
            raise ConfigError("--slices goes with --topology.")
        machine = search.described(flags.devices)
    if flags.search:
        return search.run(config, machine, flags.keep)
    plan = machine.plan(config)
    print(report.render(plan), end="")
    if plan.seconds:
        print(f"Traced and compiled in {plan.seconds:.0f} s.")
    return 0 if plan.fits else 1


def _parser() -> Parser:
    parser = Parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--config", help="path/to/config.py[:argument]")
    add("--topology", metavar="T", help="TPU slices, such as v5p:8x8x8 or '2x v5e:16x16'")
    add("--slices", type=_positive, metavar="N", help="how many such slices")
    add("--devices", metavar="NxKIND", help="GPUs, such as 8xH200, from counts")
    add("--search", action="store_true", help="tries micro-batches, remat and meshes")
    add("--keep", type=_positive, default=3, metavar="N", help="compiles the best N of a search")
    add("--table", metavar="FILE", help="writes the plans of all large configs to a page")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got '{text}'")
    return int(text)


if __name__ == "__main__":
    exit_cleanly(main)
