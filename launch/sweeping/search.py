"""The next points of a search, from the results so far: Optuna asked and told, nothing kept."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from configs.sweeps import tidy
from encoders.errors import ConfigError
from launch.sweeping.points import Fields, Mode, key_of

MOST_REPEATS = 100  # a small space is used up when this many proposals have been tried before


def propose(
    axes: Mapping[str, Mapping[str, Any]],
    history: Sequence[tuple[Fields, float | None]],
    count: int,
    *,
    mode: Mode,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Up to `count` points that are not in `history`, by the tree-structured Parzen estimator.

    A function of its arguments alone, so a search that was stopped goes on as if it had not been.

    Args:
      axes: field -> {kind, low, high} or {kind, values}, as of configs.sweeps.
      history: (point, result); None for a point that failed, or has no result yet.
      count: how many points.
      mode: 'min' or 'max', of results.
      seed: of the search.

    Raises:
      ConfigError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "a search needs Optuna; install it with `pip install encoders[sweep]`, "
            "or draw points with sweeps.sample."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    state = random.Random(f"{seed}/{len(history)}").getrandbits(31)
    sampler = optuna.samplers.TPESampler(seed=state, constant_liar=True, multivariate=False)
    direction = {"min": "minimize", "max": "maximize"}[mode]
    study = optuna.create_study(direction=direction, sampler=sampler)
    space = {field: _distribution(optuna, axis) for field, axis in sorted(axes.items())}
    known = {}
    for point, value in history:
        known[key_of(point)] = value
        parameters = _parameters(axes, point)
        if parameters is None:
            continue  # of another space: sweep() was changed
        complete = optuna.trial.TrialState.COMPLETE
        study.add_trial(
            optuna.trial.create_trial(
                state=complete if value is not None else optuna.trial.TrialState.FAIL,
                params=parameters,
                distributions=space,
                value=value,
            )
        )
    found: list[dict[str, Any]] = []
    for _ in range(count + MOST_REPEATS):
        if len(found) == count:
            break
        trial = study.ask(space)
        point = {field: _value(axes[field], trial.params[field]) for field in space}
        key = key_of(point)
        if key in known:
            value = known[key]
            fail = optuna.trial.TrialState.FAIL
            study.tell(trial, value, state=fail if value is None else None)
        else:
            known[key] = None
            found.append(point)
    return found


def _distribution(optuna: Any, axis: Mapping[str, Any]) -> Any:
    if axis["kind"] == "choice":  # by place: Optuna takes no lists
        return optuna.distributions.CategoricalDistribution(range(len(axis["values"])))
    if axis["kind"] == "integer":
        return optuna.distributions.IntDistribution(axis["low"], axis["high"])
    log = axis["kind"] == "log_uniform"
    return optuna.distributions.FloatDistribution(axis["low"], axis["high"], log=log)


def _value(axis: Mapping[str, Any], parameter: Any) -> Any:
    if axis["kind"] == "choice":
        return axis["values"][parameter]
    if axis["kind"] == "integer":
        return parameter
    return tidy(axis, parameter)


def _parameters(axes: Mapping[str, Mapping[str, Any]], point: Fields) -> dict[str, Any] | None:
    """A point as Optuna would have drawn it, or None where these axes cannot give it."""
    if set(point) != set(axes):
        return None
    found = {}
    for field, axis in axes.items():
        value = point[field]
        if axis["kind"] == "choice":
            keys = [key_of({"": choice}) for choice in axis["values"]]
            if key_of({"": value}) not in keys:
                return None
            value = keys.index(key_of({"": value}))
        elif not isinstance(value, int | float) or not axis["low"] <= value <= axis["high"]:
            return None
        found[field] = value
    return found
