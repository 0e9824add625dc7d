"""What happens around training in one process, alone or among peers."""

from __future__ import annotations

import logging
import os
import pathlib
import sys
from typing import Any

from encoders.config import to_plain
from encoders.errors import STOPPED
from encoders.parallel.host import (
    look_for_garbage_rarely,
    retain_freed_memory,
    settle_platform,
)


def log_to_stderr() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("encoders").setLevel(logging.INFO)


def prepare(config: Any) -> None:
    """Everything that must be set before jax starts, and its compilation cache."""
    apply_environment(config)
    settle_platform()
    retain_freed_memory()
    look_for_garbage_rarely()
    keep_compiled()


def apply_environment(config: Any) -> None:
    """Sets config.hardware.environment, before jax starts; what the user has set comes last.

    XLA reads its flags from left to right and keeps the last value of each, so for lists of flags
    the user's are appended; any other variable that is set stays as it is.
    """
    wanted = to_plain(config).get("hardware", {}).get("environment", {})
    for name, value in wanted.items():
        own = os.environ.get(name)
        if own is None:
            os.environ[name] = str(value)
        elif name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"):
            os.environ[name] = f"{value} {own}"


def keep_compiled() -> None:
    """Turns jax's persistent compilation cache on: a restart compiles nothing anew.

    JAX_COMPILATION_CACHE_DIR says where; by default it is in the user's cache directory. An empty
    value turns it off.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "encoders" / "jax"))


def train(config: Any, workdir: str) -> int:
    """Trains, and returns the exit code.

    Raises:
      EncodersError: bad config, data, checkpoint, disk or numbers.
    """
    from encoders.parallel import processes
    from encoders.training import loop
    from encoders.training.experiment import Experiment

    experiment = processes.together("reading the config", lambda: Experiment(config))
    outcome = loop.train(experiment, workdir)
    return 0 if outcome["state"] == "finished" else STOPPED


def compile_only(config: Any) -> int:
    """Compiles the training step into the cache, for a machine like the one that will train.

    Once for every length of `preprocessing.bucket_samples`, whether or not a clip has it: the data
    are not opened.
    """
    from encoders.training.experiment import Experiment
    from encoders.training.loop import compile_steps

    experiment = Experiment(config)
    batches = experiment.example_batches(experiment.batch_rows)
    state = experiment.abstract_state.replace(frozen_teacher=experiment.load_frozen_teacher())
    _, seconds = compile_steps(experiment, state, batches)
    lengths = f" for {len(batches)} lengths" if len(batches) > 1 else ""
    print(f"compiled the training step{lengths} in {seconds:.1f} s")
    return 0
