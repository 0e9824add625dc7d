"""Loading a part of other weights into a model: nothing is left to chance, and all of it is said.

Every parameter of the target must either be loaded or be declared fresh. Rules see layers under
their unrolled names (blocks_0, blocks_1, ...) on both sides, so scanned weights load into unrolled
networks and the other way round; learned positions are resized to the target's grid.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from encoders import rules
from encoders.errors import CheckpointError, ConfigError
from encoders.layers.position import resize_positions
from encoders.rules import Rules

_WHERE = "init_from"


def load_partially(
    target_params: Any,
    source_params: Mapping[str, Any],
    load: Rules,
    fresh: Sequence[str] = (),
) -> tuple[Any, list[str]]:
    """Fills a parameter tree from another one.

    Args:
      target_params: tree of arrays, freshly initialised; gives structure, shapes and dtypes.
      source_params: nested dict of arrays, as `CheckpointStore.read_params` returns it.
      load: (regex of target paths, True for the same path in the source, or a template of the
        source's path such as r'encoder/\\1'); the first match wins.
      fresh: regexes of target paths that keep their values; they go before `load`.

    Returns:
      The tree with its loaded arrays in numpy, and what was done, one line each.

    Raises:
      ConfigError: a rule matches nothing, or a parameter is neither loaded nor fresh.
      CheckpointError: the source lacks a parameter, or has it in another shape.
    """
    leaves = dict(zip(rules.leaf_paths(target_params), jax.tree.leaves(target_params), strict=True))
    layers = {path: rules.layer_names(path, leaf) for path, leaf in leaves.items()}
    names = [name for path in leaves for name in layers[path] or (path,)]
    source, stacked_there = _unrolled(source_params)
    origin = _origins(names, load, fresh)
    _check_present(origin, source)

    loaded: dict[str, np.ndarray] = {}
    notes: list[str] = []
    for path, leaf in leaves.items():
        stacked = layers[path]
        shape = leaf.shape if stacked is None else leaf.shape[1:]
        for name in stacked or (path,):
            if origin[name] is not None:
                array, note = _fit(name, source[origin[name]], shape)
                loaded[name] = array.astype(leaf.dtype)
                notes += note
    result = []
    for path, leaf in leaves.items():
        if layers[path] is None:
            result.append(loaded.get(path, leaf))
        elif any(name in loaded for name in layers[path]):
            slices = [loaded.get(name, leaf[i]) for i, name in enumerate(layers[path])]
            result.append(np.stack([np.asarray(x) for x in slices]))
        else:
            result.append(leaf)
    stacked_here = {name for path in leaves for name in layers[path] or ()}
    notes += _layout_changes(origin, stacked_here, stacked_there)
    report = _report(origin, source, notes)
    return jax.tree.unflatten(jax.tree.structure(target_params), result), report


def _unrolled(params: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Flat {path: array} with every layer under its own name, and which names were stacked."""
    flat: dict[str, Any] = {}
    stacked: set[str] = set()
    for path, leaf in zip(rules.leaf_paths(params), jax.tree.leaves(params), strict=True):
        names = rules.layer_names(path, leaf)
        flat |= {path: leaf} if names is None else dict(zip(names, leaf, strict=True))
        stacked.update(names or ())
    return flat, stacked


def _origins(names: Sequence[str], load: Rules, fresh: Sequence[str]) -> dict[str, str | None]:
    """Target name -> source name, or None where it stays fresh."""
    for regex, template in load:
        if template is not True and not isinstance(template, str):
            raise ConfigError(
                f"{_WHERE}.load: '{regex}' must map to True or a path, got {template!r}."
            )
    kept = rules.match([(r, True) for r in fresh], names, where=f"{_WHERE}.fresh", default=False)
    chosen = rules.match(
        [(regex, (regex, template)) for regex, template in load],
        names,
        where=f"{_WHERE}.load",
        default=None,
    )
    origin: dict[str, str | None] = {}
    undecided = []
    for name, keep, rule in zip(names, kept, chosen, strict=True):
        if keep:
            origin[name] = None
        elif rule is None:
            undecided.append(name)
        else:
            regex, template = rule
            origin[name] = name if template is True else _expand(regex, template, name)
    if undecided:
        raise ConfigError(
            f"{_WHERE}: nothing says what becomes of {_spell(undecided)}; "
            f"name them in {_WHERE}.load or, to start them anew, in {_WHERE}.fresh."
        )
    return origin


def _expand(regex: str, template: str, name: str) -> str:
    try:
        return re.fullmatch(regex, name).expand(template)
    except (re.error, IndexError) as error:
        raise ConfigError(
            f"{_WHERE}.load: '{template}' does not fit '{regex}' ({error})."
        ) from error


def _check_present(origin: Mapping[str, str | None], source: Mapping[str, Any]) -> None:
    missing = [
        wanted if name == wanted else f"{wanted} (for {name})"
        for name, wanted in origin.items()
        if wanted is not None and wanted not in source
    ]
    if missing:
        raise CheckpointError(
            f"{_WHERE}: the checkpoint has no {_spell(missing)}; "
            f"its paths look like {_spell(list(source), 3)}."
        )


def _fit(name: str, array: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, list[str]]:
    """The array in the target's shape; only learned positions may differ, by their grid."""
    array = np.asarray(array)
    if array.shape == tuple(shape):
        return array, []
    is_grid = name.split("/")[-1] == "positions" and array.ndim == len(shape) == 3
    if is_grid and array.shape[2] == shape[2]:
        old, new = (f"{h}x{w}" for h, w in (array.shape[:2], shape[:2]))
        resized = np.asarray(resize_positions(array, tuple(shape[:2])))
        return resized, [f"resized: {name} from {old} to {new} (bicubic)"]
    raise CheckpointError(
        f"{_WHERE}: '{name}' is {list(array.shape)} in the checkpoint, but {list(shape)} here; "
        f"name it in {_WHERE}.fresh to start it anew."
    )


def _report(
    origin: Mapping[str, str | None], source: Mapping[str, Any], notes: Sequence[str]
) -> list[str]:
    used = {wanted for wanted in origin.values() if wanted is not None}
    lines = [f"loaded: {len(used)} of the checkpoint's {len(source)} arrays, layer by layer"]
    lines += notes
    fresh = _collapsed([name for name, wanted in origin.items() if wanted is None])
    lines += [f"fresh: {name} (re-initialised)" for name in fresh]
    unused = collections.Counter(name.split("/")[0] for name in source if name not in used)
    lines += [f"unused: {top}/ ({count} arrays)" for top, count in unused.items()]
    return lines


def _layout_changes(
    origin: Mapping[str, str | None], stacked_here: set[str], stacked_there: set[str]
) -> list[str]:
    """Says where layers were stacked for a scan, or a scan's layers were taken apart."""
    moved = [
        (name in stacked_here, wanted in stacked_there)
        for name, wanted in origin.items()
        if wanted is not None
    ]
    lines = []
    if (True, False) in moved:
        lines.append("layout: the checkpoint's layers were stacked, since layers are scanned here")
    if (False, True) in moved:
        lines.append("layout: the checkpoint's stacked layers were taken apart")
    return lines


def _collapsed(names: Sequence[str]) -> list[str]:
    """Joins the layers of a path: blocks_0/bias, blocks_1/bias, ... become blocks_{0..11}/bias."""
    layers: dict[str, list[int]] = {}
    for name in names:
        found = re.search(r"(?<=blocks_)\d+(?=/)", name)
        pattern = name if found is None else f"{name[: found.start()]}*{name[found.end() :]}"
        layers.setdefault(pattern, []).extend([] if found is None else [int(found[0])])
    result = []
    for pattern, numbers in layers.items():
        numbers.sort()
        joined = ",".join(map(str, numbers))
        if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
            joined = f"{numbers[0]}..{numbers[-1]}"
        result.append(pattern.replace("*", f"{{{joined}}}" if len(numbers) > 1 else joined))
    return result


def _spell(items: Sequence[str], listed: int = 5) -> str:
    more = f" and {len(items) - listed} more" if len(items) > listed else ""
    return ", ".join(items[:listed]) + more
