"""Parameters seen layer by layer, so that scanned and unrolled networks train alike.

Scanned layers are stored stacked on axis 0 under `blocks`. Here a stack answers to the unrolled
names of its layers (`blocks_0`, `blocks_1`, ...), gets one factor per layer, and can be given to a
transformation one layer at a time.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from encoders import rules
from encoders.rules import Rules

# Leaves next to a tower's blocks that come before them: id 0 of layer-wise learning-rate decay.
_EMBEDDING = re.compile(r"\w*embeddings?|\w*_tokens?|positions|projection")
_BLOCK = re.compile(r"((?:.*/)?)blocks_(\d+)/.*")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter array.

    Attributes:
      path: its path in the tree.
      names: its path, or that of each layer where it is a stack of layers.
      layers: how many layers are stacked on axis 0; None for a plain array.
      ndim: dimensions of one layer's array.
    """

    path: str
    names: tuple[str, ...]
    layers: int | None
    ndim: int


def describe(path: str, array: Any) -> Leaf:
    """What the optimizer needs to know of one array of a parameter tree."""
    names = rules.layer_names(path, array)
    if names is None:
        return Leaf(path, (path,), None, len(array.shape))
    return Leaf(path, names, len(names), len(array.shape) - 1)


def per_layer(leaf: Leaf, values: Sequence[float]) -> float | np.ndarray:
    """One factor per layer, shaped to broadcast against the stacked array."""
    if leaf.layers is None or len(set(values)) == 1:
        return float(values[0])
    return np.asarray(values, np.float32).reshape(-1, *[1] * leaf.ndim)


def match_layers(table: Rules, leaves: Sequence[Leaf], where: str, default: Any) -> list[list[Any]]:
    """The rules' value for each layer of each leaf."""
    names = [name for leaf in leaves for name in leaf.names]
    values = iter(rules.match(table, names, where=where, default=default))
    return [[next(values) for _ in leaf.names] for leaf in leaves]


def layer_ids(names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """name -> (layer id, number of ids - 1), for layer-wise learning-rate decay.

    As MAE and BEiT count: 0 for what comes before the blocks (patch embedding, tokens, positions),
    i + 1 for block i, depth + 1 for what comes after (norm, pooling, heads). Each tower, that is
    each path prefix that has blocks, counts its own; a `decoder` is a head.
    """
    depths: dict[str, int] = {}
    for name in names:
        if found := _BLOCK.fullmatch(name):
            tower, index = found[1], int(found[2])
            depths[tower] = max(depths.get(tower, 0), index + 1)
    depths = {tower: n for tower, n in depths.items() if "decoder" not in tower.split("/")}
    ids = {}
    for name in names:
        tower = max((t for t in depths if name.startswith(t)), key=len, default=None)
        if tower is None:
            ids[name] = (0, 0)
            continue
        top = depths[tower] + 1
        inside = name.removeprefix(tower)
        if found := _BLOCK.fullmatch(inside):
            ids[name] = (int(found[2]) + 1, top)
        else:
            ids[name] = (0 if _EMBEDDING.fullmatch(inside.split("/")[0]) else top, top)
    return ids


def layerwise(
    inner: optax.GradientTransformation, leaves: Mapping[str, Leaf]
) -> optax.GradientTransformation:
    """Applies `inner`, which treats arrays as wholes, to each layer of a stack on its own.

    Stacks of equal depth share one vmapped `inner`, so that its state keeps the parameters' layout
    (with axis 0 the layers) and compile time does not grow with depth.
    """

    def label(path: str, _: Any) -> str:
        layers = leaves[path].layers
        return "arrays" if layers is None else f"layers_{layers}"

    stacked = optax.GradientTransformation(jax.vmap(inner.init), jax.vmap(inner.update))
    labels = {label(path, None) for path in leaves}
    return optax.partition(
        {name: inner if name == "arrays" else stacked for name in labels},
        functools.partial(rules.map_with_path, label),
    )
