"""Where a run begins: at its own last checkpoint, at other weights, or at random ones."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from encoders import loading
from encoders.checkpoints.formats.mapping import split_stats, with_stats
from encoders.checkpoints.partial import load_partially
from encoders.checkpoints.store import CheckpointStore
from encoders.config import to_json
from encoders.errors import ConfigError, StorageError
from encoders.objectives.base import Objective
from encoders.parallel import processes
from encoders.parallel.mesh import to_host
from encoders.training.experiment import Experiment
from encoders.training.state import TrainState

log = logging.getLogger(__name__)

# What may change between two starts of one run: how it runs, not what it computes.
_FREE_TO_CHANGE = (
    "hardware",
    "log",
    "checkpoint",
    "evaluators",
    "deadlines",
    "duration",
    "data.threads",
    "data.processes",
    "data.prefetch",
    *(
        f"model.{network}{field}"
        for network in ("", "image.", "text.", "audio.", "depth.")
        for field in ("remat", "attention_kernel")
    ),
)


def starting_state(experiment: Experiment, store: CheckpointStore) -> TrainState:
    """The state to go on from, with every array where it belongs on the mesh.

    Raises:
      CheckpointError: the checkpoint is damaged, or of another model.
    """
    latest = processes.from_first("the newest checkpoint", store.latest)
    if latest is not None:
        state = store.restore(experiment.abstract_state, latest)
        log.info("resumed from step %d in %s", latest, store.directory)
    else:
        state = experiment.create_state()
        if experiment.sections.init_from is not None:
            state = _with_loaded_weights(experiment, state)
    return state.replace(frozen_teacher=experiment.load_frozen_teacher())


def _with_loaded_weights(experiment: Experiment, state: TrainState) -> TrainState:
    """Replaces parameters by those that config.init_from names, saying which stay fresh."""
    init = experiment.sections.init_from
    # An objective that trains a part of its encoder as a difference goes on with that difference.
    alone = type(experiment.objective).alone is Objective.alone
    # Running statistics of batch norms go with the parameters that are beside them.
    stats = {k: v for k, v in state.stats.get("stats", {}).items() if k == "encoder"}
    here = with_stats(to_host(state.params), to_host(stats))
    params, beside = loading.read_params_and_stats(init.path, alone=alone)
    source = with_stats(params, beside if stats else {})
    found, report = load_partially(here, source, load=init.load, fresh=init.fresh)
    params, found_stats = split_stats(found)
    for line in report:
        log.info("init_from %s: %s", init.path, line)
    params = jax.tree.map(
        lambda new, old: _like(np.asarray(new, old.dtype), old), params, state.params
    )
    ema = None if state.ema is None else jax.tree.map(lambda x: x.copy(), params)
    if stats:
        stats = jax.tree.map(lambda new, old: _like(np.asarray(new), old), found_stats, stats)
        stats = {**state.stats, "stats": {**state.stats["stats"], **stats}}
    teacher = experiment.first_teacher(params)
    return state.replace(params=params, ema=ema, teacher=teacher, stats=stats or state.stats)


def _like(array: np.ndarray, old: jax.Array) -> jax.Array:
    """A host array that every process holds whole, placed as another array is."""
    return jax.make_array_from_callback(array.shape, old.sharding, lambda index: array[index])


@contextlib.contextmanager
def claimed_directory(workdir: pathlib.Path, experiment: Experiment) -> Iterator[None]:
    """The run's directory, made if missing, with config.json, and locked against other runs.

    Raises:
      ConfigError: it belongs to a run with another config, another run is training in it, or not
        all processes see it.
      StorageError: it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        first = jax.process_index() == 0

        def claim() -> None:
            with storage_errors(workdir):
                workdir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_lock(workdir))
                _write_config(workdir, experiment.config)

        mark = workdir / f".seen-by-all-{os.getpid()}"  # of process 0; the others are told its name

        def look() -> None:
            if not (workdir / name).exists():
                raise ConfigError(
                    f"--workdir {workdir} on {socket.gethostname()} is not the directory that "
                    f"process 0 sees; choose one on a file system that all nodes share."
                )

        processes.together("claiming the run's directory", claim if first else lambda: None)
        if jax.process_count() > 1:
            if first:
                mark.touch()
            name = processes.from_first("looking into the run's directory", lambda: mark.name)
            try:
                processes.together("looking into the run's directory", look)
            finally:
                mark.unlink(missing_ok=True)
        yield


@contextlib.contextmanager
def storage_errors(workdir: pathlib.Path) -> Iterator[None]:
    """Gives a disk that is full or forbidden its own error, wherever it shows."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError(f"{workdir}: {error.strerror}; free space, start again.") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise StorageError(
                f"--workdir {workdir} cannot be written on {socket.gethostname()} "
                f"({error.strerror}: {error.filename})."
            ) from error
        raise


@contextlib.contextmanager
def _lock(workdir: pathlib.Path) -> Iterator[None]:
    """Holds .lock; the system lets go of it when the process dies, however it dies."""
    with (workdir / ".lock").open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                log.warning("%s has no file locks: two runs at once would not be noticed", workdir)
            else:
                file.seek(0)
                raise ConfigError(
                    f"--workdir {workdir} is in use by another run ({file.read().strip()}); "
                    f"stop that one first, or choose another --workdir."
                ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _write_config(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    check_same_run(workdir, config)
    path = workdir / "config.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(to_json(config), encoding="utf-8")
    temporary.replace(path)


def check_same_run(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Checks that the run in a directory, if there is one, is the one of this config.

    Raises:
      ConfigError: they differ in a field that says what is computed.
    """
    path = workdir / "config.json"
    if path.exists():
        before = _flat(json.loads(path.read_text(encoding="utf-8")))
        now = _flat(json.loads(to_json(config)))
        for field in sorted(before.keys() | now.keys()):
            same = before.get(field) == now.get(field)
            free = any(field == f or field.startswith(f + ".") for f in _FREE_TO_CHANGE)
            if not same and not free:
                raise ConfigError(
                    f"--workdir {workdir} holds a run with {field}={before.get(field)!r}, but this "
                    f"config has {now.get(field)!r}; choose another --workdir or the same config."
                )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat
