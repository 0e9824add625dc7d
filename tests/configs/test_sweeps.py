"""The points that a config's sweep() gives: the same everywhere, whatever else changes."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import sweeps

AXES = {
    "optimizer.lr": sweeps.log_uniform(1e-5, 1e-1),
    "optimizer.weight_decay": sweeps.uniform(0.0, 0.3),
    "model.depth": sweeps.integer(2, 12),
    "optimizer.name": sweeps.choice("adamw", "lamb", "lion"),
}


def points(found):
    return found["points"]


def test_a_grid_is_every_combination_in_whatever_order_its_axes_are_written():
    axes = {"a": [1, 2, 3], "b": ["x", "y"]}
    found = points(sweeps.grid(axes))
    assert [(p["a"], p["b"]) for p in found] == list(itertools.product([1, 2, 3], ["x", "y"]))
    assert found == points(sweeps.grid(dict(reversed(axes.items()))))


@pytest.mark.parametrize("values", [[], "abc", {"a": 1}])
def test_an_axis_of_a_grid_is_a_list_of_values(values):
    with pytest.raises(ValueError, match="needs a list of values"):
        sweeps.grid({"a": values})


def test_draws_are_the_same_on_every_machine():
    assert points(sweeps.sample(AXES, 2, seed=1)) == [
        {
            "model.depth": 3,
            "optimizer.lr": 6.606e-05,
            "optimizer.name": "lion",
            "optimizer.weight_decay": 0.222,
        },
        {
            "model.depth": 9,
            "optimizer.lr": 0.002569,
            "optimizer.name": "lion",
            "optimizer.weight_decay": 0.06462,
        },
    ]


@given(st.integers(0, 99), st.integers(1, 20), st.integers(0, 20))
def test_more_trials_leave_the_first_ones_as_they_were(seed, few, more):
    first = points(sweeps.sample(AXES, few, seed=seed))
    assert points(sweeps.sample(AXES, few + more, seed=seed))[:few] == first


def test_another_axis_or_seed_changes_what_it_says_and_no_more():
    both = points(sweeps.sample(AXES, 8))
    one = points(sweeps.sample({"model.depth": AXES["model.depth"]}, 8))
    assert [p["model.depth"] for p in both] == [p["model.depth"] for p in one]
    assert both != points(sweeps.sample(AXES, 8, seed=1))


@given(st.integers(0, 10**6))
def test_draws_stay_within_their_axes(seed):
    (point,) = points(sweeps.sample(AXES, 1, seed=seed))
    assert 1e-5 <= point["optimizer.lr"] <= 1e-1
    assert 0.0 <= point["optimizer.weight_decay"] <= 0.3
    assert point["model.depth"] in range(2, 13)
    assert point["optimizer.name"] in ("adamw", "lamb", "lion")


def test_draws_fill_their_axes_evenly():
    found = points(sweeps.sample(AXES, 2000))
    powers = [math.log10(p["optimizer.lr"]) for p in found]
    assert abs(sum(powers) / len(powers) - -3.0) < 0.1
    assert {p["model.depth"] for p in found} == set(range(2, 13))
    names = [p["optimizer.name"] for p in found]
    assert all(abs(names.count(name) - 667) < 100 for name in set(names))


def test_a_narrow_axis_is_not_left_by_rounding():
    axis = sweeps.uniform(0.123456, 0.123457)
    assert {sweeps.at(axis, share) for share in (0.0, 0.5, 0.999)} <= {0.123456, 0.123457}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: sweeps.log_uniform(0.0, 1.0), "above 0"),
        (lambda: sweeps.uniform(1.0, 1.0), "low below"),
        (lambda: sweeps.uniform(0.0, math.inf), "finite high"),
        (lambda: sweeps.integer(1, 2.5), "whole numbers"),
        (lambda: sweeps.choice(), "needs values"),
        (lambda: sweeps.sample({"a": [1, 2]}, 3), "must be uniform"),
        (lambda: sweeps.search({"a": 3}, 3), "must be uniform"),
    ],
)
def test_what_is_no_axis_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
