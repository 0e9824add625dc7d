"""One engine of (path regex, value) rules: first match wins; a rule without a match is an error.

It serves partition specs, learning-rate multipliers, weight decay, freezing and partial loading.
A path is the '/'-joined keys of a leaf, and a regex must match the whole of it (`re.fullmatch`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from encoders.errors import ConfigError

Rules = Sequence[tuple[str, Any]]

# Leaves next to a tower's blocks that come before them: id 0 of layer-wise learning-rate decay.
_EMBEDDING = re.compile(r"\w*embeddings?|\w*_tokens?|positions|projection|norm_pre|conv\w*")
_BLOCK = re.compile(r"((?:.*/)?)blocks_(\d+)/.*")

# Modules of scanned layers, see `layers.stack`, and the number of the first layer in them.
STACKED = {"blocks": 0, "blocks_rest": 1}


def path_string(path: Sequence[Any]) -> str:
    """Turns a jax key path into 'encoder/blocks_0/mlp/fc1/kernel'."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def leaf_paths(tree: Any) -> list[str]:
    """Paths of all leaves, in the order of `jax.tree.leaves`."""
    return [path_string(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def layer_names(path: str, array: Any) -> tuple[str, ...] | None:
    """Unrolled names of the layers that a leaf of scanned blocks holds on axis 0; else None.

    'encoder/blocks/norm/bias' [12, D] gives ('encoder/blocks_0/norm/bias', ...); `blocks_rest` are
    those after a blocks_0 of its own.
    """
    parts = path.split("/")
    [name] = [part for part in parts if part in STACKED] or [None]
    if name is None:
        return None
    at, first = parts.index(name), STACKED[name]
    return tuple(
        "/".join([*parts[:at], f"blocks_{first + layer}", *parts[at + 1 :]])
        for layer in range(array.shape[0])
    )


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


def map_with_path(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Like `jax.tree.map`, but `function` gets the path string first."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_string(path), *leaves), tree, *rest
    )


def without(regexes: Sequence[str], tree: Any) -> Any:
    """The tree with None in place of leaves whose path one of the regexes matches."""
    compiled = [re.compile(regex) for regex in regexes]
    return map_with_path(
        lambda path, leaf: None if any(r.fullmatch(path) for r in compiled) else leaf, tree
    )


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts from path -> value: {'a/b': x} becomes {'a': {'b': x}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = value
    return tree


def only(regexes: Sequence[str], tree: Any, *, where: str) -> Any:
    """The tree with None in place of leaves whose path none of the regexes matches.

    Raises:
      ConfigError: a regex is invalid or matches no path; `where` is where they come from.
    """
    chosen = match_tree([(regex, True) for regex in regexes], tree, where=where, default=False)
    return jax.tree.map(lambda leaf, taken: leaf if taken else None, tree, chosen)


def match(rules: Rules, paths: Sequence[str], *, where: str, default: Any = ...) -> list[Any]:
    """Returns the value of the first rule that matches each path.

    Args:
      rules: (regex, value) pairs.
      paths: paths to look up.
      where: the config field the rules come from, named in errors.
      default: the value of a path that no rule matches; without it that path is an error.

    Raises:
      ConfigError: a regex is invalid, a rule matches no path, or a path has no rule.
    """
    compiled = []
    for regex, value in rules:
        try:
            compiled.append((re.compile(regex), value))
        except re.error as error:
            raise ConfigError(f"{where}: '{regex}' is not a valid regex ({error}).") from error
    matched_anything = [False] * len(compiled)
    values = []
    for path in paths:
        winner = None
        for index, (regex, _) in enumerate(compiled):
            if regex.fullmatch(path):
                matched_anything[index] = True
                winner = index if winner is None else winner
        if winner is None and default is ...:
            raise ConfigError(f"{where}: no rule matches '{path}'; add a last rule ('.*', value).")
        values.append(default if winner is None else compiled[winner][1])
    for used, (regex, _) in zip(matched_anything, rules, strict=True):
        if not used:
            sample = ", ".join(f"'{path}'" for path in list(paths)[:3])
            raise ConfigError(
                f"{where}: rule '{regex}' matches no path (paths look like {sample})."
            )
    return values


def match_tree(rules: Rules, tree: Any, *, where: str, default: Any = ...) -> Any:
    """`match` over the leaves of a tree; the result has the tree's structure."""
    values = match(rules, leaf_paths(tree), where=where, default=default)
    return jax.tree_util.tree_unflatten(jax.tree.structure(tree), values)
