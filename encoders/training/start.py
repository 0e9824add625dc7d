"""Where a run begins: at its own last checkpoint, at other weights, or at random ones."""

from __future__ import annotations

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from encoders import loading
from encoders.checkpoints.partial import load_partially
from encoders.checkpoints.store import CheckpointStore
from encoders.errors import ConfigError
from encoders.training.experiment import Experiment
from encoders.training.state import TrainState

log = logging.getLogger(__name__)

# What may change between two starts of one run: how it runs, not what it computes.
_FREE_TO_CHANGE = (
    "hardware",
    "log",
    "checkpoint",
    "evaluators",
    "duration",
    "data.threads",
    "data.processes",
    "data.prefetch",
    "model.remat",
)


def starting_state(experiment: Experiment, store: CheckpointStore) -> TrainState:
    """The state to go on from, with every array where it belongs on the mesh.

    Raises:
      CheckpointError: the checkpoint is damaged, or of another model.
    """
    latest = store.latest()
    if latest is not None:
        state = store.restore(experiment.abstract_state.replace(teacher=None))
        log.info("resumed from step %d in %s", latest, store.directory)
    else:
        state = experiment.create_state()
        if experiment.sections.init_from is not None:
            state = _with_loaded_weights(experiment, state)
    return state.replace(teacher=experiment.load_teacher())


def _with_loaded_weights(experiment: Experiment, state: TrainState) -> TrainState:
    """Replaces parameters by those that config.init_from names, saying which stay fresh."""
    init = experiment.sections.init_from
    source = loading.read_params(init.path)
    params, report = load_partially(
        jax.device_get(state.params), source, load=init.load, fresh=init.fresh
    )
    for line in report:
        log.info("init_from %s: %s", init.path, line)
    params = jax.tree.map(
        lambda new, old: jax.device_put(np.asarray(new, old.dtype), old.sharding),
        params,
        state.params,
    )
    ema = None if state.ema is None else jax.tree.map(lambda x: x.copy(), params)
    return state.replace(params=params, ema=ema)


def claim_directory(workdir: pathlib.Path, config: Mapping[str, Any], text: str) -> None:
    """Writes config.json, or checks that the run that is there is this one.

    Raises:
      ConfigError: the directory belongs to a run with another config.
    """
    path = workdir / "config.json"
    if path.exists():
        before = _flat(json.loads(path.read_text(encoding="utf-8")))
        now = _flat(json.loads(text))
        for field in sorted(before.keys() | now.keys()):
            same = before.get(field) == now.get(field)
            free = any(field == f or field.startswith(f + ".") for f in _FREE_TO_CHANGE)
            if not same and not free:
                raise ConfigError(
                    f"--workdir {workdir} holds a run with {field}={before.get(field)!r}, but this "
                    f"config has {now.get(field)!r}; choose another --workdir or the same config."
                )
    workdir.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat
