"""Shows what a config means and trains nothing: python -m tools.inspect --config C [--compile]."""

from __future__ import annotations

import argparse

from encoders.errors import exit_cleanly
from launch.flags import parse_flags


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the training step for this machine and show the memory it needs",
    )


def main() -> int:
    flags, config = parse_flags(__doc__, extend=_flags)
    from encoders.training.describe import describe
    from encoders.training.experiment import Experiment

    experiment = Experiment(config)
    print(describe(experiment), end="")
    if flags.compile:
        print("\n# the compiled step, bytes per device")
        for name, size in memory(experiment).items():
            print(f"{name} = {size:,}")
    return 0


def memory(experiment: object) -> dict[str, int]:
    """Bytes per device of the compiled step, by kind, and their peak."""
    import jax

    from encoders.parallel.mesh import batch_sharding

    batch = {
        name: jax.ShapeDtypeStruct(
            value.shape, value.dtype, sharding=batch_sharding(experiment.mesh)
        )
        for name, value in experiment.example_batch(experiment.batch_rows).items()
    }
    found = experiment.step().lower(experiment.abstract_state, batch).compile().memory_analysis()
    return {
        "arguments": found.argument_size_in_bytes,
        "outputs": found.output_size_in_bytes,
        "shared by both": found.alias_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "peak": found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes,
    }


if __name__ == "__main__":
    exit_cleanly(main)
