"""k-means on the mesh: clusters of frames, whose numbers HuBERT learns to guess (2106.07447).

Starts are drawn by k-means++ (Arthur & Vassilvitskii 2007). From there 'full' repeats Lloyd's step
on all points, which stay on the devices; 'mini_batch' (Sculley 2010) brings them from the host
batch by batch, as many as there may be. A cluster that lost all its points begins anew at the
point that lies farthest from every centre, so that there are always as many as were asked for.
"""

from __future__ import annotations

import functools
import logging
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from encoders.errors import ConfigError, DataError
from encoders.evaluation.base import put_whole
from encoders.parallel.mesh import to_host

logger = logging.getLogger(__name__)

Method = Literal["full", "mini_batch"]
DISTANCES_PER_CHUNK = 2**24
START_POINTS = 2**15  # that k-means++ draws from, or a few for every cluster if that is more


class Clusters(NamedTuple):
    """What k-means found.

    Attributes:
      centroids: [K, D] float32.
      inertia: mean squared distance of the points to the nearest of them; of 'mini_batch' as it was
        on the last pass, while they moved.
      iterations: steps of Lloyd, or passes over the points.
    """

    centroids: np.ndarray
    inertia: float
    iterations: int


def assign(points: jax.Array, centroids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The nearest centroid of every point, for use on the device.

    Args:
      points: [..., D].
      centroids: [K, D].

    Returns:
      Numbers [...] int32, of equally near ones the first; squared distances [...] float32.
    """
    # What lies around zero leaves the smaller differences of squares.
    middle = centroids.mean(0)
    points, centroids = points.astype(jnp.float32) - middle, centroids - middle
    square = jnp.square(centroids).sum(-1)
    near = square - 2 * jnp.matmul(points, centroids.T, precision="highest")
    distance = near.min(-1) + jnp.square(points).sum(-1)
    return near.argmin(-1).astype(jnp.int32), jnp.maximum(distance, 0)


def kmeans(
    points: np.ndarray,
    clusters: int,
    *,
    method: Method = "full",
    seed: int = 0,
    iterations: int = 100,
    tolerance: float = 1e-4,
    restarts: int = 1,
    batch_size: int = 10_000,
    start: np.ndarray | None = None,
    mesh: Mesh | None = None,
) -> Clusters:
    """Clusters points; the result depends on them and the seed alone, up to rounding.

    HuBERT's own are those of mini-batches of 10,000 with 20 restarts and 100 passes.

    Args:
      points: [N, D] float; of 'mini_batch' they may be mapped from a file.
      clusters: K.
      method: 'full' or 'mini_batch', see the module.
      seed: of the starts and of the order of mini-batches.
      iterations: at most so many steps of Lloyd, or passes over the points.
      tolerance: 'full' ends when the centroids together moved by less than this part of the points'
        variance (squared), 'mini_batch' with a pass that brought the mean squared distance down by
        less than this part.
      restarts: starts that are drawn; the one that is nearest to its points is taken.
      batch_size: points of a mini-batch.
      start: [K, D], to begin with in place of k-means++.
      mesh: devices, or None; points are split over all of them.

    Raises:
      ConfigError: a number is out of range.
      DataError: there are fewer points than clusters, or some are not finite.
    """
    numbers = dict(clusters=clusters, iterations=iterations, restarts=restarts, batch=batch_size)
    if bad := [name for name, number in numbers.items() if number < 1]:
        raise ConfigError(f"k-means: expected {bad[0]} from 1, got {numbers[bad[0]]}.")
    if points.ndim != 2 or len(points) < clusters:
        raise DataError(
            f"k-means: {clusters} clusters need as many points [N, D], got {list(points.shape)}."
        )
    rng = np.random.default_rng(seed)
    chosen = min(len(points), max(START_POINTS, 4 * clusters))
    sample = points[np.sort(rng.permutation(len(points))[:chosen])].astype(np.float32)
    if start is None:
        start = _draw(put_whole(sample, mesh, P()), clusters, restarts, seed)
    elif start.shape != (clusters, points.shape[1]):
        raise ConfigError(
            f"k-means: expected a start [{clusters}, {points.shape[1]}], got {list(start.shape)}."
        )
    else:
        start = put_whole(start.astype(np.float32), mesh, P())
    if method == "full":
        found = _full(points, start, iterations, tolerance, mesh)
    else:
        found = _mini_batches(points, start, iterations, tolerance, batch_size, rng, mesh)
    if not math.isfinite(found.inertia):
        raise DataError("k-means: some points are not finite numbers.")
    return found


# --- starts ---------------------------------------------------------------------------------------


def _draw(points: jax.Array, clusters: int, restarts: int, seed: int) -> jax.Array:
    """The best of several starts [K, D]."""
    trials = 2 + int(math.log(clusters))
    best, lowest = None, math.inf
    for number in range(restarts):
        key = jax.random.fold_in(jax.random.key(seed), number)
        centres, potential = _plus_plus(points, key, clusters, trials)
        if best is None or float(potential) < lowest:
            best, lowest = centres, float(potential)
    return best


@functools.partial(jax.jit, static_argnames=("clusters", "trials"))
def _plus_plus(
    points: jax.Array, key: jax.Array, clusters: int, trials: int
) -> tuple[jax.Array, jax.Array]:
    """Greedy k-means++: every next centre is that of `trials` points, drawn by their squared
    distance from the centres before, which leaves the least sum of squared distances.

    Returns:
      Centres [K, D], and that sum.
    """
    count = len(points)
    middle = points.mean(0)
    points = points - middle
    square = jnp.square(points).sum(1)

    def distances(some: jax.Array) -> jax.Array:
        product = jnp.matmul(some, points.T, precision="highest")
        return jnp.maximum(square - 2 * product + jnp.square(some).sum(1, keepdims=True), 0)

    def pick(number: jax.Array, carry: tuple) -> tuple:
        centres, distance = carry
        upto = jnp.cumsum(distance)
        draws = jax.random.uniform(jax.random.fold_in(key, number), (trials,)) * upto[-1]
        places = jnp.minimum(jnp.searchsorted(upto, draws, side="right"), count - 1)
        nearer = jnp.minimum(distance, distances(points[places]))
        best = nearer.sum(1).argmin()
        return centres.at[number].set(points[places[best]]), nearer[best]

    first = points[jax.random.randint(jax.random.fold_in(key, 0), (1,), 0, count)]
    centres = jnp.zeros((clusters, points.shape[1])).at[0].set(first[0])
    centres, distance = jax.lax.fori_loop(1, clusters, pick, (centres, distances(first)[0]))
    return centres + middle, distance.sum()


# --- all points -----------------------------------------------------------------------------------


def _full(
    points: np.ndarray,
    start: jax.Array,
    iterations: int,
    tolerance: float,
    mesh: Mesh | None,
) -> Clusters:
    shards = 1 if mesh is None else mesh.size
    chunks = math.ceil(len(points) * len(start) / shards / DISTANCES_PER_CHUNK)
    rows = math.ceil(len(points) / (chunks * shards)) * shards
    points = points.astype(np.float32)
    least = np.float32(tolerance * np.var(points, axis=0, dtype=np.float64).mean())
    data = [
        np.pad(array, ((0, chunks * rows - len(points)), *((0, 0),) * (array.ndim - 1)))
        for array in (points, np.ones(len(points), np.float32))
    ]
    spread = P() if mesh is None else P(None, mesh.axis_names)
    data = [put_whole(a.reshape(chunks, rows, *a.shape[1:]), mesh, spread) for a in data]
    limits = [put_whole(a, mesh, P()) for a in (np.asarray(iterations, np.int32), least)]
    centres, inertia, count = to_host(_lloyd(*data, start, *limits))
    return Clusters(centres, float(inertia), int(count))


@jax.jit
def _lloyd(
    points: jax.Array,
    weight: jax.Array,
    start: jax.Array,
    iterations: jax.Array,
    least: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Lloyd's steps until the centres together move by no more than `least`, squared.

    Args:
      points: [chunks, rows, D].
      weight: [chunks, rows], 1, or 0 for padding.
      start: [K, D].
      iterations: at most so many.
      least: see above.

    Returns:
      Centres [K, D], the mean squared distance from them, and how many steps were made.
    """
    rows = points.shape[1]

    def sweep(centres: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def add(so_far: tuple, part: tuple) -> tuple[tuple, jax.Array]:
            sums, counts, distance = _sums(*part, centres)
            return (so_far[0] + sums, so_far[1] + counts), distance

        none = jnp.zeros_like(centres), jnp.zeros(len(centres))
        (sums, counts), distance = jax.lax.scan(add, none, (points, weight))
        return sums, counts, distance

    def step(carry: tuple) -> tuple:
        centres, iteration, _ = carry
        sums, counts, distance = sweep(centres)
        moved = sums / jnp.maximum(counts, 1)[:, None]
        moved = jax.lax.cond(
            (counts == 0).any(),
            lambda: _begin_anew(
                moved, counts == 0, distance, lambda at: points[at // rows, at % rows]
            )[0],
            lambda: moved,
        )
        return moved, iteration + 1, jnp.square(moved - centres).sum()

    def unfinished(carry: tuple) -> jax.Array:
        return (carry[1] < iterations) & (carry[2] > least)

    carry = start, jnp.zeros((), jnp.int32), jnp.full((), jnp.inf)
    centres, count, _ = jax.lax.while_loop(unfinished, step, carry)
    return centres, sweep(centres)[2].sum() / weight.sum(), count


def _sums(
    points: jax.Array, weight: jax.Array, centres: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of points [N, D] the sums [K, D] and counts [K] by nearest centre; squared distances [N]."""
    nearest, distance = assign(points, centres)
    mine = jax.nn.one_hot(nearest, len(centres)) * weight[:, None]
    return jnp.matmul(mine.T, points, precision="highest"), mine.sum(0), distance * weight


def _begin_anew(
    centres: jax.Array, empty: jax.Array, distance: jax.Array, take: Any
) -> tuple[jax.Array, jax.Array]:
    """The i-th centre that is `empty` [K] becomes the i-th farthest point; `take` gets points.

    Where fewer points are away from every centre, which padding of distance 0 never is, the other
    centres stay as they were.

    Returns:
      Centres [K, D], and [K] bool, which of them began anew.
    """
    farther, farthest = jax.lax.top_k(distance.reshape(-1), min(len(centres), distance.size))
    which = jnp.minimum(jnp.cumsum(empty) - 1, len(farthest) - 1)
    # The i-th of these, if there is one.
    begun = empty & (jnp.cumsum(empty) <= (farther > 0).sum())
    return jnp.where(begun[:, None], take(farthest[which]), centres), begun


# --- mini-batches ---------------------------------------------------------------------------------


def _mini_batches(
    points: np.ndarray,
    start: jax.Array,
    iterations: int,
    tolerance: float,
    batch_size: int,
    rng: np.random.Generator,
    mesh: Mesh | None,
) -> Clusters:
    """Every pass has all points once in a new order; clusters that a pass left empty begin anew."""
    shards = 1 if mesh is None else mesh.size
    size = math.ceil(min(batch_size, len(points)) / shards) * shards
    spread = P() if mesh is None else P(mesh.axis_names)
    none = put_whole(np.zeros(len(start), np.float32), mesh, P())
    centres, seen, best = start, none, math.inf
    for number in range(1, iterations + 1):
        order, found, inertia = rng.permutation(len(points)), none, []
        for first in range(0, len(points), size):
            batch = points[np.sort(order[first : first + size])].astype(np.float32)
            missing = size - len(batch)
            weight = np.pad(np.ones(len(batch), np.float32), (0, missing))
            last = [
                put_whole(array, mesh, spread)
                for array in (np.pad(batch, ((0, missing), (0, 0))), weight)
            ]
            centres, seen, found, total = _move(centres, seen, found, *last)
            inertia.append(total)
        centres, seen = _replace_empty(centres, seen, found, *last)
        mean = float(np.sum(to_host(inertia), dtype=np.float64) / len(points))
        logger.info("k-means: mean squared distance %.6g on pass %d", mean, number)
        if not mean <= best * (1 - tolerance):  # nor is it where some are not finite
            break
        best = mean
    return Clusters(to_host(centres), mean, number)


@jax.jit
def _move(
    centres: jax.Array, seen: jax.Array, found: jax.Array, points: jax.Array, weight: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Moves every centre to the mean of all points that it ever was nearest to.

    Args:
      centres: [K, D].
      seen: [K], how many these were so far, since it last began anew.
      found: [K], those of this pass.
      points: [N, D].
      weight: [N], 1, or 0 for padding.

    Returns:
      The first three, updated, and the sum of squared distances.
    """
    sums, counts, distance = _sums(points, weight, centres)
    seen = seen + counts
    centres = centres + (sums - counts[:, None] * centres) / jnp.maximum(seen, 1)[:, None]
    return centres, seen, found + counts, distance.sum()


@jax.jit
def _replace_empty(
    centres: jax.Array, seen: jax.Array, found: jax.Array, points: jax.Array, weight: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Of `_move`'s centres and how many points they are means of, those `found` empty anew."""
    distance = assign(points, centres)[1] * weight
    centres, begun = _begin_anew(centres, found == 0, distance, lambda at: points[at])
    return centres, jnp.where(begun, 0, seen)
