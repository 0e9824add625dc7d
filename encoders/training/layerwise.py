"""Parameters seen layer by layer, so that scanned and unrolled networks train alike.

Scanned layers are stored stacked on axis 0 under `blocks`. Here a stack answers to the unrolled
names of its layers (`blocks_0`, `blocks_1`, ...), gets one factor per layer, and can be given to a
transformation one layer at a time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from encoders import rules
from encoders.rules import Rules


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
