"""k-means against its definition in numpy, on any mesh."""

import jax
import numpy as np
import pytest

from encoders.errors import ConfigError, DataError
from encoders.evaluation import clustering, scores
from encoders.evaluation.clustering import assign, kmeans
from encoders.parallel.mesh import make_mesh

RNG = np.random.default_rng(0)
CENTRES = 6 * RNG.normal(size=(7, 5))
GROUPS = RNG.integers(0, 7, 613)
POINTS = (CENTRES[GROUPS] + RNG.normal(size=(613, 5)) + 50).astype(np.float32)


def by_hand(points, centres, steps):
    """Lloyd's algorithm as textbooks have it."""
    points, centres = points.astype(np.float64), centres.astype(np.float64)
    for _ in range(steps):
        nearest = np.square(points[:, None] - centres).sum(-1).argmin(1)
        centres = np.stack([points[nearest == k].mean(0) for k in range(len(centres))])
    distance = np.square(points[:, None] - centres).sum(-1)
    return centres, distance.min(1).mean()


@pytest.mark.parametrize("sizes", [None, dict(data=2, fsdp=2, tensor=2)])
def test_full_is_lloyds_algorithm(sizes, monkeypatch):
    monkeypatch.setattr(clustering, "DISTANCES_PER_CHUNK", 500)  # several chunks, and padding
    mesh = None if sizes is None else make_mesh(**sizes)
    start = POINTS[:7]
    for steps in (1, 3):
        found = kmeans(POINTS, 7, start=start, iterations=steps, tolerance=0.0, mesh=mesh)
        centres, inertia = by_hand(POINTS, start, steps)
        np.testing.assert_allclose(found.centroids, centres, atol=2e-5)
        assert found.inertia == pytest.approx(inertia, abs=1e-4)
        assert found.iterations == steps


@pytest.mark.parametrize("method", ["full", "mini_batch"])
def test_groups_are_found_the_same_on_any_mesh(method):
    fields = dict(method=method, seed=3, batch_size=100, restarts=3)
    found = kmeans(POINTS, 7, **fields)
    nearest, distance = jax.jit(assign)(POINTS, found.centroids)
    table = scores.contingency(np.asarray(nearest), GROUPS)
    assert scores.purity(table) > 0.97
    assert scores.label_information(table) > 0.93
    np.testing.assert_allclose(
        distance, np.square(POINTS - found.centroids[nearest]).sum(1), rtol=1e-5, atol=1e-4
    )
    again = kmeans(POINTS, 7, **fields)
    np.testing.assert_array_equal(found.centroids, again.centroids)
    spread = kmeans(POINTS, 7, **fields, mesh=make_mesh(data=4, fsdp=2))
    np.testing.assert_allclose(spread.centroids, found.centroids, atol=1e-3)
    assert spread.iterations == found.iterations


def test_one_batch_of_all_points_is_a_step_of_lloyd():
    fields = dict(start=POINTS[:7], iterations=1)
    found = kmeans(POINTS, 7, method="mini_batch", batch_size=10**6, **fields)
    np.testing.assert_allclose(found.centroids, kmeans(POINTS, 7, **fields).centroids, atol=2e-5)


@pytest.mark.parametrize("method", ["full", "mini_batch"])
def test_empty_clusters_begin_anew_at_the_farthest_points(method):
    start = POINTS[:7].copy()
    start[5:] = 1e4  # nothing is near
    one = kmeans(POINTS, 7, method=method, start=start, iterations=1, batch_size=10**6)
    distance = np.square(POINTS[:, None] - start).sum(-1).min(1)
    if method == "mini_batch":  # it has moved before it looks for the farthest
        distance = np.square(POINTS[:, None] - one.centroids[:5]).sum(-1).min(1)
    np.testing.assert_allclose(one.centroids[5:], POINTS[np.argsort(-distance)[:2]], atol=1e-5)
    done = kmeans(POINTS, 7, method=method, start=start, batch_size=200)
    nearest, _ = jax.jit(assign)(POINTS, done.centroids)
    assert len(np.unique(nearest)) == 7


def test_clusters_begin_anew_at_points_alone():
    """Two points are away from every centre, of three that are empty; zeros pad the batch."""
    points = np.array([[5, 5], [5, 5], [9, 5], [5, 9], [0, 0], [0, 0]], np.float32)
    weight = np.array([1, 1, 1, 1, 0, 0], np.float32)
    centres = np.array([[5, 5], [1e3, 0], [2e3, 0], [3e3, 0]], np.float32)
    seen, found = np.array([7, 8, 9, 9], np.float32), np.array([4, 0, 0, 0], np.float32)
    moved, left = clustering._replace_empty(centres, seen, found, points, weight)
    np.testing.assert_array_equal(moved, [[5, 5], [9, 5], [5, 9], [3e3, 0]])
    np.testing.assert_array_equal(left, [7, 0, 0, 9])


def test_starts_are_drawn_by_squared_distance():
    # Two points stand 100 apart; of three centres one is at each, whatever the first draw was.
    points = np.concatenate([RNG.normal(size=(500, 2)), [[100.0, 0]], [[0, 100.0]]])
    for seed in range(5):
        start = clustering._draw(jax.numpy.asarray(points, np.float32), 3, 1, seed)
        assert np.sort(np.asarray(start).max(1))[1:] == pytest.approx(100, abs=1e-4)


def test_scores_of_clusters():
    clusters = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    labels = np.array([0, 0, 1, 1, 1, 1, 0, 0])
    table = scores.contingency(clusters, labels)
    np.testing.assert_array_equal(table, [[2, 1], [0, 3], [2, 0]])
    assert scores.purity(table) == 7 / 8
    # H(label) = ln 2; given cluster 0 it is that of 1/3, given the others nothing is left.
    left = 3 / 8 * -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
    assert scores.label_information(table) == pytest.approx(1 - left / np.log(2))
    assert scores.label_information(table[:, :1]) == 0.0


def test_errors():
    with pytest.raises(DataError, match="as many points"):
        kmeans(POINTS[:6], 7)
    with pytest.raises(ConfigError, match="expected clusters from 1, got 0"):
        kmeans(POINTS, 0)
    with pytest.raises(ConfigError, match=r"a start \[7, 5\], got \[6, 5\]"):
        kmeans(POINTS, 7, start=POINTS[:6])
    with pytest.raises(DataError, match="not finite"):
        kmeans(np.where(GROUPS[:, None] == 0, np.nan, POINTS), 7)
