"""Searches on a function that costs nothing, through the interface that runs use."""

import math

import pytest

from configs import sweeps
from encoders.errors import ConfigError
from launch.sweeping.search import propose

AXES = {
    "lr": sweeps.log_uniform(1e-5, 1.0),
    "decay": sweeps.uniform(0.0, 1.0),
    "depth": sweeps.integer(1, 12),
    "kind": sweeps.choice("a", ["b"], None),
}


def loss(point):
    """Least, 0, at lr 1e-2, decay 0.3, depth 6, kind 'a'."""
    there = (math.log10(point["lr"]) + 2) ** 2 + 4 * (point["decay"] - 0.3) ** 2
    return there + 0.02 * (point["depth"] - 6) ** 2 + (point["kind"] != "a")


def searched(trials, at_a_time, axes=AXES, value=loss, mode="min", seed=0):
    history = []
    while len(history) < trials:
        found = propose(axes, history, min(at_a_time, trials - len(history)), mode=mode, seed=seed)
        history += [(point, value(point)) for point in found]
    return history


def test_a_search_finds_better_points_than_as_many_draws():
    trials = 40
    for seed in range(3):
        drawn = min(map(loss, sweeps.sample(AXES, trials, seed=seed)["points"]))
        found = [value for _, value in searched(trials, 4, seed=seed)]
        assert min(found) < 0.6 * drawn
        assert sum(found[-10:]) / 10 < sum(found[:10]) / 10


def test_the_highest_is_looked_for_where_the_mode_says_so():
    lowest = searched(24, 4, value=loss)
    highest = searched(24, 4, value=lambda point: -loss(point), mode="max")
    assert [point for point, _ in lowest] == [point for point, _ in highest]


def test_the_next_points_follow_from_seed_and_results_alone():
    history = searched(14, 2)
    first = propose(AXES, history, 3, mode="min")
    assert propose(AXES, history, 3, mode="min") == first
    assert propose(AXES, history, 3, mode="min", seed=1) != first


def test_points_stay_within_their_axes_and_are_never_repeated():
    points = [point for point, _ in searched(30, 5)]
    assert len({str(point) for point in points}) == 30
    for point in points:
        assert 1e-5 <= point["lr"] <= 1
        assert 0 <= point["decay"] <= 1
        assert point["depth"] in range(1, 13)
        assert point["kind"] in ("a", ["b"], None)
        assert float(f"{point['lr']:.4g}") == point["lr"]


def test_failed_points_are_not_tried_again_and_the_search_goes_on():
    history = searched(20, 4, value=lambda p: None if p["kind"] == "a" else p["decay"])
    assert len({str(point) for point, _ in history}) == 20
    best = min(value for _, value in history if value is not None)
    assert best < 0.25


def test_a_small_space_is_used_up():
    axes = {"kind": sweeps.choice(1, 2, 3)}
    history = [({"kind": 1}, 0.5), ({"kind": 2}, None)]
    assert propose(axes, history, 4, mode="min") == [{"kind": 3}]
    assert propose(axes, [*history, ({"kind": 3}, 1.0)], 4, mode="min") == []


def test_points_of_another_space_are_left_aside():
    axes = {"decay": AXES["decay"]}
    other = [({"decay": 7.0}, 0.0), ({"lr": 0.1}, 0.0), ({"decay": "x"}, 0.0)]
    (point,) = propose(axes, other, 1, mode="min")
    assert 0 <= point["decay"] <= 1


def test_without_optuna_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ConfigError, match="pip install"):
        propose(AXES, [], 1, mode="min")
