"""Whether a run, or every point of a sweep, would start, found out before any does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from encoders.config import load_config, to_plain
from encoders.errors import ConfigError, DataError, nearest
from launch.sweeping.points import Fields, overrides_of

if TYPE_CHECKING:
    from encoders.training.experiment import Experiment


def check_points(
    config: str, overrides: Sequence[str], points: Sequence[Fields], where: str
) -> None:
    """Builds each point's experiment and optimizer, on the CPU and without allocating parameters.

    What the mesh allows is not checked: this machine may not be the one that trains.

    Args:
      config: path/to/config.py[:argument].
      overrides: of the whole sweep.
      points: what each sets.
      where: named in errors.

    Raises:
      ConfigError: a field is unknown, mistyped, or contradicts another.
    """
    load_config(config, overrides)
    shapes: dict[str, Any] = {}  # points of one model share them; they take longest
    for fields in points:
        try:
            experiment = built(config, [*overrides, *overrides_of(fields)])
            same = ("model", "objective", "preprocessing")
            key = json.dumps([experiment.config[section] for section in same], default=str)
            if key in shapes:
                experiment.param_shapes = shapes[key]
            try:
                experiment.optimizer  # noqa: B018
            except DataError:
                pass  # this machine need not have the data, which say how long an epoch is
            else:
                shapes[key] = experiment.param_shapes
        except ConfigError as error:
            raise ConfigError(f"{where}: {str(error).removeprefix('--config.')}") from error


def built(config: str, overrides: Sequence[str]) -> Experiment:
    """The experiment of a run, on the CPU and without its mesh: another machine may train it.

    Raises:
      ConfigError: a field is unknown, mistyped, or contradicts another.
      CheckpointError, DataError: a teacher or a tokenizer is not there; on this machine it need
        not be.
    """
    import jax

    from encoders.training.experiment import Experiment

    jax.config.update("jax_platforms", "cpu")  # the accelerators are for the runs
    plain = to_plain(load_config(config, overrides))
    plain["hardware"] = {**plain.get("hardware", {}), "mesh": {}}
    return Experiment(plain, devices=jax.devices()[:1])


def check_metric(config: str, overrides: Sequence[str], metric: str) -> None:
    """Whether 'eval/<evaluator>/...' names an evaluator that the config has.

    Raises:
      ConfigError: it does not.
    """
    from encoders.training.sections import evaluator_of

    evaluators = to_plain(load_config(config, overrides)).get("evaluators", {})
    name = evaluator_of(metric)
    if name is not None and name not in evaluators:
        raise ConfigError(
            f"--metric {metric}: the config has no evaluator '{name}'.{nearest(name, evaluators)}"
        )
