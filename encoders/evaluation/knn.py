"""Weighted k-nearest-neighbour classification by cosine similarity (DINO, arXiv 2104.14294)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from encoders.errors import ConfigError
from encoders.evaluation.base import put_whole
from encoders.evaluation.features import Labelled
from encoders.evaluation.probe import Probe
from encoders.parallel.mesh import to_host

QUERY_CHUNK, BANK_CHUNK = 1024, 8192


@dataclasses.dataclass(kw_only=True)
class KNN(Probe):
    """k nearest neighbours of frozen features, weighted by exp(cosine / temperature).

    Metrics: 'k{k}' for every k, and 'accuracy', that of the first k. DINO takes the best of 10, 20,
    100 and 200, mostly 20; choosing on the test set would flatter, so the headline is fixed.

    Attributes:
      k: numbers of neighbours; the first one is the headline.
      temperature: of the votes.
    """

    k: tuple[int, ...] = (20, 10, 100, 200)
    temperature: float = 0.07

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.k or min(self.k) < 1 or self.temperature <= 0:
            raise ConfigError(
                f"evaluators.{self.label}: expected k of at least 1 and a temperature above 0, got "
                f"{self.k} and {self.temperature}."
            )
        if max(self.k) > len(self.train_source):
            raise ConfigError(
                f"evaluators.{self.label}.k: asks for {max(self.k)} neighbours of "
                f"{len(self.train_source)} training examples."
            )

    def score(self, train: Labelled, test: Labelled, num_classes: int) -> dict[str, float]:
        similarity, labels = neighbours(train, test.features, max(self.k), self.mesh)
        voted = vote(similarity, labels, self.k, self.temperature, num_classes)
        found = {f"k{k}": float((voted[k] == test.labels).mean()) for k in self.k}
        return {"accuracy": found[f"k{self.k[0]}"], **found}


def neighbours(
    train: Labelled, queries: np.ndarray, k: int, mesh: Mesh | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar training examples of every query.

    The bank is split over all devices of the mesh; each finds its own best, and the best of those
    are kept. The N x M similarities never exist whole: queries and bank are both cut into chunks.

    Args:
      train: bank, features [N, D] and labels [N].
      queries: [M, D].
      k: neighbours, at most N.
      mesh: devices, or None.

    Returns:
      cosine similarity [M, k] float32, falling, and labels [M, k] int32; of equally similar ones
      the first in the bank comes first.
    """
    shards = 1 if mesh is None else mesh.size
    rows = math.ceil(len(train.labels) / shards)
    chunk = min(BANK_CHUNK, rows)
    rows = math.ceil(rows / chunk) * chunk
    padding = rows * shards - len(train.labels)
    bank = np.pad(unit(train.features), ((0, padding), (0, 0)))
    labels = np.pad(train.labels, (0, padding), constant_values=-1)  # -1: not an example
    axes = P() if mesh is None else P(mesh.axis_names)
    bank, labels = put_whole(bank, mesh, axes), put_whole(labels, mesh, axes)

    count = min(QUERY_CHUNK, len(queries))
    search = _search(min(k, len(train.labels)), chunk, mesh)
    found = []
    for start in range(0, len(queries), count):
        part = unit(queries[start : start + count])
        missing = count - len(part)
        part = put_whole(np.pad(part, ((0, missing), (0, 0))), mesh, P())
        found.append((search(bank, labels, part), count - missing))
    parts = [[x[:real] for x in to_host(pair)] for pair, real in found]
    similarity, labels = map(np.concatenate, zip(*parts, strict=True))
    return similarity, labels


@functools.cache
def _search(k: int, chunk: int, mesh: Mesh | None) -> Callable:
    """Jitted (bank [N, D], labels [N], queries [Q, D]) -> similarity [Q, k], labels [Q, k]."""

    def best(similarity: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        top, where = jax.lax.top_k(similarity, min(k, similarity.shape[1]))
        return top, jnp.take_along_axis(labels, where, axis=1)

    def local(bank: jax.Array, labels: jax.Array, queries: jax.Array) -> tuple:
        # Each chunk's own best first: merging k with k is cheaper than k with a whole chunk.
        def one(_: None, part: tuple) -> tuple:
            vectors, names = part
            similarity = jnp.matmul(queries, vectors.T, precision="highest")
            similarity = jnp.where(names >= 0, similarity, -jnp.inf)
            return None, best(similarity, jnp.broadcast_to(names, similarity.shape))

        parts = bank.reshape(-1, chunk, bank.shape[1]), labels.reshape(-1, chunk)
        _, found = jax.lax.scan(one, None, parts)
        return _side_by_side(found)

    def whole(bank: jax.Array, labels: jax.Array, queries: jax.Array) -> tuple:
        return best(*local(bank, labels, queries))

    if mesh is None:
        return jax.jit(whole)
    axes = mesh.axis_names

    def per_device(bank: jax.Array, labels: jax.Array, queries: jax.Array) -> tuple:
        found = whole(bank, labels, queries)
        return best(*_side_by_side(jax.lax.all_gather(found, axes)))

    mapped = jax.shard_map(
        per_device,
        mesh=mesh,
        in_specs=(P(axes), P(axes), P()),
        out_specs=P(),
        check_vma=False,  # all_gather makes every device's result the same, which is not inferred
    )
    return jax.jit(mapped)


def _side_by_side(stacked: tuple) -> tuple:
    """[S, Q, k] arrays to [Q, S * k]."""
    return tuple(x.transpose(1, 0, 2).reshape(x.shape[1], -1) for x in stacked)


def vote(
    similarity: np.ndarray,
    labels: np.ndarray,
    k: tuple[int, ...],
    temperature: float,
    num_classes: int,
) -> dict[int, np.ndarray]:
    """The class [M] with the greatest sum of exp(similarity / temperature), for every k.

    Args:
      similarity, labels: [M, K] of the nearest neighbours, nearest first; K is at least max(k).
    """
    # Relative to the nearest: the same winner, and no overflow at any temperature.
    weights = np.exp((similarity - similarity[:, :1]) / temperature, dtype=np.float64)
    row = np.arange(len(labels))[:, None]
    winners, votes, before = {}, np.zeros((len(labels), num_classes)), 0
    for count in sorted(set(k)):
        np.add.at(votes, (row, labels[:, before:count]), weights[:, before:count])
        winners[count], before = votes.argmax(1), count
    return winners


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows [N, D] divided by their length."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(length, 1e-12)
