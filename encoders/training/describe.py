"""An experiment as text: what every field became, and what happens to every parameter.

`tools.inspect` prints it, and tests/golden/configs holds it for every shipped config, so that a
review shows what a change did to each experiment. No array is allocated and no data is opened.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from encoders.config import UNITS, build
from encoders.data import SOURCES
from encoders.evaluation import EVALUATORS
from encoders.loading import section_of
from encoders.models import MODELS
from encoders.training.experiment import Experiment
from encoders.training.optimizers import OPTIMIZERS
from encoders.training.schedules import SCHEDULES

# Fields of evaluators that the experiment fills in.
_SUPPLIED = ("preprocessing", "mesh", "directory", "label", "extractor")


def describe(experiment: Experiment) -> str:
    """Fields, lengths, sizes and the parameter table of an experiment, as stable text."""
    parts = [
        "# fields",
        *fields(experiment),
        "",
        "# lengths and sizes",
        *sizes(experiment),
        "",
        "# parameters: path, shape, lr multiplier, weight decay, sharding",
        *parameters(experiment),
    ]
    return "\n".join(parts) + "\n"


def fields(experiment: Experiment) -> list[str]:
    """'a.b = value' of every field, defaults included, with durations resolved to steps."""
    lines = []

    def walk(value: Any, path: str) -> None:
        if _is_duration(value):
            lines.append(f"{path} = {value} -> {experiment.durations.steps(value, path)} steps")
        elif isinstance(value, dict) and value:
            for key in sorted(value):
                walk(value[key], f"{path}.{key}" if path else key)
        elif isinstance(value, tuple) and any(isinstance(item, dict) for item in value):
            for index, item in enumerate(value):
                walk(item, f"{path}[{index}]")
        else:
            lines.append(f"{path} = {value!r}")

    config = {k: v for k, v in resolved(experiment).items() if k != "duration"}
    walk(config, "")
    return [f"duration = {experiment.config['duration']} -> {experiment.total_steps} steps", *lines]


def resolved(experiment: Experiment) -> dict[str, Any]:
    """The config as the objects it built see it: every field of every section."""
    config = experiment.config
    objective = _plain(experiment.objective)
    for elsewhere in ("encoder", "vocabulary"):  # of the model, and of the preprocessing
        objective.pop(elsewhere, None)
    found = _plain(experiment.sections)
    found |= {
        "model": section_of(MODELS, experiment.objective.encoder),
        "objective": {**objective, "name": config["objective"]["name"]},
        "preprocessing": {
            **_plain(experiment.preprocessing),
            "name": config["preprocessing"]["name"],
        },
        "optimizer": {
            **_plain(build(OPTIMIZERS, experiment.optimizer_section, "optimizer")),
            "name": config["optimizer"]["name"],
            "schedule": _with_defaults(SCHEDULES, config["optimizer"]["schedule"]),
        },
        "evaluators": {
            name: _with_defaults(EVALUATORS, section)
            for name, section in found["evaluators"].items()
        },
    }
    found["data"]["source"] = _with_defaults(SOURCES, config["data"]["source"])
    found["data"]["transforms"] = tuple(
        {**_plain(transform), "name": section["name"]}
        for transform, section in zip(
            experiment.transforms, config["data"].get("transforms", ()), strict=True
        )
    )
    return found


def _is_duration(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and set(value) <= set(UNITS)


def _plain(value: Any) -> Any:
    """Dataclasses, Linen modules among them, as dicts of their fields."""
    if dataclasses.is_dataclass(value):
        names = {f.name for f in dataclasses.fields(value)} - {"parent", "name"}
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _with_defaults(table: Any, section: Any) -> dict[str, Any]:
    """A section with the defaults of the class it names, but not what the surroundings supply."""
    parameters = inspect.signature(table[section["name"]]).parameters.values()
    defaults = {
        p.name: _plain(p.default)
        for p in parameters
        if p.default is not p.empty and p.name not in _SUPPLIED
    }
    return {**defaults, **section}


def sizes(experiment: Experiment) -> list[str]:
    """Parameters, FLOPs, batch, mesh and the bytes that the state takes."""
    shapes = jax.tree.leaves(experiment.param_shapes)
    count = sum(math.prod(leaf.shape) for leaf in shapes)
    state = experiment.abstract_state
    batch = experiment.example_batch(experiment.batch_rows)
    mesh = ", ".join(f"{axis} {size}" for axis, size in experiment.mesh.shape.items())
    lines = [
        f"parameters = {count:,}",
        f"training FLOPs per example = {experiment.flops_per_example():.4g}",
        f"mesh = {mesh}",
        f"state bytes = {_bytes(state):,} in all, {_bytes_per_device(state):,} per device",
    ]
    return lines + [
        f"batch {name} = {list(value.shape)} {value.dtype}" for name, value in batch.items()
    ]


def parameters(experiment: Experiment) -> list[str]:
    """One aligned row per parameter array."""
    optimizer = build(OPTIMIZERS, experiment.optimizer_section, "optimizer")
    treatments = optimizer.treatments(experiment.param_shapes)
    shapes = jax.tree.leaves(experiment.param_shapes)
    specs = jax.tree.leaves(experiment.param_specs, is_leaf=lambda x: isinstance(x, P))
    rows = []
    for (path, treated), array, spec in zip(treatments.items(), shapes, specs, strict=True):
        decay = np.asarray(treated.decay) * optimizer.weight_decay
        rows.append(
            (
                path,
                "x".join(map(str, array.shape)) or "scalar",
                "frozen" if treated.frozen else f"lr {_range(treated.rate)}",
                "-" if treated.frozen else f"decay {_range(decay)}",
                str(tuple(spec)) if tuple(spec) else "replicated",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _range(values: Any) -> str:
    low, high = float(np.min(values)), float(np.max(values))
    return f"{low:.4g}" if low == high else f"{low:.4g}..{high:.4g}"


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _bytes_per_device(tree: Any) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
