"""What the `sweep()` beside a `get_config()` returns: points to run, as plain data.

    def sweep():
        return sweeps.grid({"optimizer.lr": (1e-3, 3e-3), "optimizer.weight_decay": (0.05, 0.1)})

An axis is named by the field it sets. `grid` runs every combination, `sample` draws points, and
`search` leaves the choice to Optuna, point after point. A list of {field: value} is a sweep, too.
"""

import itertools
import math
import random

LINEAR, LOG, INTEGER, CHOICE = "uniform", "log_uniform", "integer", "choice"


def grid(axes, *, metric=None, mode=None):
    """Every combination of the values of the axes.

    Args:
      axes: field -> its values. Their order in the dict does not matter.
      metric: what runs are compared by, such as 'eval/knn/accuracy'; None: the last train/loss.
      mode: 'min' or 'max'; None: 'min' for a metric with 'loss' in its name.

    Raises:
      ValueError: an axis has no values.
    """
    fields = sorted(axes)
    for field in fields:
        if isinstance(axes[field], str | dict) or not list(axes[field]):
            raise ValueError(f"axis {field!r} of a grid needs a list of values")
    rows = itertools.product(*(axes[field] for field in fields))
    points = [dict(zip(fields, row, strict=True)) for row in rows]
    return dict(points=points, metric=metric, mode=mode)


def sample(axes, trials, *, seed=0, metric=None, mode=None):
    """Points drawn at random; more trials add points and leave the first ones as they were.

    A value depends on (seed, field, number of the point) alone, so an axis can come or go without
    a change to the others.

    Args:
      axes: field -> `uniform`, `log_uniform`, `integer` or `choice`.
      trials: number of points.
      seed: of the draws.
      metric, mode: as for `grid`.

    Raises:
      ValueError: an axis is not one of these.
    """
    _check(axes)
    points = [
        {field: at(axes[field], _share(seed, field, index)) for field in sorted(axes)}
        for index in range(trials)
    ]
    return dict(axes=axes, points=points, metric=metric, mode=mode)


def search(axes, trials, *, seed=0, metric=None, mode=None):
    """A search by Optuna's tree-structured Parzen estimator (arXiv 2304.11127).

    Args:
      axes: as for `sample`.
      trials: number of points in all.
      seed: of the search; the same seed, results and number of jobs give the same points.
      metric, mode: as for `grid`.

    Raises:
      ValueError: an axis is not one of these.
    """
    _check(axes)
    return dict(axes=axes, trials=trials, seed=seed, metric=metric, mode=mode)


# --- axes -----------------------------------------------------------------------------------------


def uniform(low, high):
    """Any number from low to high."""
    return _between(LINEAR, low, high)


def log_uniform(low, high):
    """Any number from low to high, every factor as likely as every other; both above 0."""
    if low <= 0:
        raise ValueError(f"log_uniform({low}, {high}) needs numbers above 0")
    return _between(LOG, low, high)


def integer(low, high):
    """A whole number from low to high, both included."""
    if int(low) != low or int(high) != high:
        raise ValueError(f"integer({low}, {high}) needs whole numbers")
    return _between(INTEGER, int(low), int(high))


def choice(*values):
    """One of the values, which may be anything that a config field holds."""
    if not values:
        raise ValueError("choice() needs values")
    return dict(kind=CHOICE, values=values)


def at(axis, share):
    """The value of an axis at a share in [0, 1) of its range; numbers have four digits."""
    if axis["kind"] == CHOICE:
        return axis["values"][int(share * len(axis["values"]))]
    low, high = axis["low"], axis["high"]
    if axis["kind"] == INTEGER:
        return low + int(share * (high - low + 1))
    if axis["kind"] == LOG:
        return tidy(axis, math.exp(math.log(low) + share * (math.log(high) - math.log(low))))
    return tidy(axis, low + share * (high - low))


def tidy(axis, value):
    """A number with four digits, within its axis."""
    return min(max(float(f"{value:.4g}"), axis["low"]), axis["high"])


def _between(kind, low, high):
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{kind}({low}, {high}) needs a finite low below a finite high")
    return dict(kind=kind, low=low, high=high)


def _check(axes):
    for field, axis in axes.items():
        if not isinstance(axis, dict) or axis.get("kind") not in (LINEAR, LOG, INTEGER, CHOICE):
            raise ValueError(
                f"axis {field!r} must be uniform(), log_uniform(), integer() or choice(), "
                f"not {axis!r}"
            )


def _share(seed, field, index):
    # Python promises random() the same forever for a seed of text.
    return random.Random(f"{seed}/{field}/{index}").random()
