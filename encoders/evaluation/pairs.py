"""The most similar pairs of a corpus: every pair is compared, and no N x N matrix exists."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from encoders.errors import ConfigError, DataError
from encoders.evaluation.knn import unit

TILE = 1024  # rows; similarities of TILE x TILE pairs exist at once


def most_similar_pairs(
    vectors: np.ndarray, count: int, tile: int = TILE
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of different rows with the greatest cosine similarity.

    Args:
      vectors: [N, D], N from 2.
      count: how many pairs; there may be fewer.
      tile: rows that are compared with as many others at once.

    Returns:
      cosine similarity [K] float32, falling, and the rows [K, 2] int32, the smaller first.

    Raises:
      DataError: there are no pairs.
      ConfigError: `count` is less than one.
    """
    rows = len(vectors)
    if rows < 2:
        raise DataError(f"vectors: expected two rows or more to have pairs of, got {rows}.")
    if count < 1:
        raise ConfigError(f"count: expected a number from 1, got {count}.")
    count = min(count, rows * (rows - 1) // 2)
    tile = min(tile, rows)
    tiles = math.ceil(rows / tile)
    padded = np.pad(unit(vectors).astype(np.float32), ((0, tiles * tile - rows), (0, 0)))
    above = np.array([(i, j) for i in range(tiles) for j in range(i, tiles)], np.int32)
    similarity, pairs = _search(count, tile)(padded, above, np.int32(rows))
    return np.asarray(similarity), np.asarray(pairs)


@functools.cache
def _search(count: int, tile: int) -> Callable:
    """Jitted (vectors [N, D], tiles [M, 2], rows) -> similarity [count], pairs [count, 2]."""

    def search(vectors: jax.Array, tiles: jax.Array, rows: jax.Array) -> tuple:
        def cut(number: jax.Array) -> tuple[jax.Array, jax.Array]:
            part = jax.lax.dynamic_slice_in_dim(vectors, number * tile, tile)
            return part, number * tile + jnp.arange(tile)

        def step(best: tuple, where: jax.Array) -> tuple:
            (left, first), (right, second) = cut(where[0]), cut(where[1])
            similarity = jnp.matmul(left, right.T, precision="highest")
            counts = (first[:, None] < second[None]) & (second[None] < rows)
            # Each row's own best first: sorting a whole tile would take longer than its product.
            found, columns = jax.lax.top_k(
                jnp.where(counts, similarity, -jnp.inf), min(count, tile)
            )
            pairs = jnp.stack(
                [jnp.broadcast_to(first[:, None], columns.shape), second[columns]], axis=-1
            )
            values = jnp.concatenate([best[0], found.ravel()])
            pairs = jnp.concatenate([best[1], pairs.reshape(-1, 2)])
            top, kept = jax.lax.top_k(values, count)
            return (top, pairs[kept]), None

        none = jnp.full(count, -jnp.inf), jnp.zeros((count, 2), jnp.int32)
        return jax.lax.scan(step, none, tiles)[0]

    return jax.jit(search)
