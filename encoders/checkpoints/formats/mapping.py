"""One table of rules maps another project's tensors to this library's parameters, and back.

A rule says which of their tensors, of which shapes, make which of our parameters; because both
directions come from the same table, exporting what was imported gives the same bits.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from encoders.errors import CheckpointError
from encoders.rules import unflatten

Tensors = Mapping[str, np.ndarray]
Tree = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Some of their tensors against some of our parameters.

    Attributes:
      theirs: (name, shape) of each tensor.
      ours: path of each parameter, keys joined by '/'.
      load: their tensors, in order -> our parameters, in order.
      dump: the inverse of `load`.
    """

    theirs: tuple[tuple[str, tuple[int, ...]], ...]
    ours: tuple[str, ...]
    load: Callable[..., tuple[np.ndarray, ...]]
    dump: Callable[..., tuple[np.ndarray, ...]]


@dataclasses.dataclass(frozen=True)
class Imported:
    """An encoder read from another project's directory, in this library's terms.

    Attributes:
      model: config section of the encoder, with its 'name'.
      params: its parameter tree, float32 numpy arrays.
      preprocessing: config section of the preprocessing, or None if the directory does not say.
      objective: config section of what else the weights hold (a classifier, a decoder), or None.
      objective_params: parameters of that, without the encoder's.
      metadata: what else is worth keeping, as JSON: 'format', 'architecture', 'class_names',
        'dropped' (tensors left out, each with the reason), 'no_preprocessing' (why it is None).
      stats: running statistics of its batch norms, a tree like that of the parameters.
    """

    model: dict[str, Any]
    params: dict[str, Any]
    preprocessing: dict[str, Any] | None
    objective: dict[str, Any] | None
    objective_params: dict[str, Any]
    metadata: dict[str, Any]
    stats: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Exported:
    """An encoder to be written in another project's format.

    Attributes:
      fields: every field of the model, sizes resolved (width, depth, mlp_dim, num_heads, ...), and
        its 'name'.
      params: its parameter tree, unrolled (blocks_0, blocks_1, ...), numpy arrays; among them the
        running statistics of batch norms, see `with_stats`.
      image_size: (height, width) in pixels to write into the config; None for text.
      channels: of the images; None for text.
      preprocessing: fields of `Preprocessing`, or None.
      objective, objective_params, class_names: as in `Imported`.
    """

    fields: dict[str, Any]
    params: dict[str, Any]
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    preprocessing: dict[str, Any] | None = None
    objective: dict[str, Any] | None = None
    objective_params: dict[str, Any] = dataclasses.field(default_factory=dict)
    class_names: Sequence[str] | None = None


# --- rules ----------------------------------------------------------------------------------------


def vector(theirs: str, ours: str, shape: tuple[int, ...], our_shape: Any = None) -> Rule:
    """The same numbers, maybe in another shape (leading axes of one are common over there)."""
    our_shape = shape if our_shape is None else our_shape
    return Rule(
        ((theirs, shape),),
        (ours,),
        lambda x: (x.reshape(our_shape),),
        lambda x: (x.reshape(shape),),
    )


def linear(theirs: str, ours: str, d_in: int, d_out: int, bias: bool = True) -> list[Rule]:
    """weight [out, in] against kernel [in, out], and the bias."""
    kernel = Rule(
        ((f"{theirs}.weight", (d_out, d_in)),),
        (f"{ours}/kernel",),
        lambda x: (x.T,),
        lambda x: (x.T,),
    )
    return [kernel, *([vector(f"{theirs}.bias", f"{ours}/bias", (d_out,))] if bias else [])]


def fused_linear(
    theirs: str,
    ours: Sequence[str],
    d_in: int,
    d_outs: Sequence[int],
    bias: bool = True,
    *,
    joint: str = ".",
) -> list[Rule]:
    """One weight [sum(outs), in] against several kernels [in, out], in order, and the biases.

    `joint` stands before 'weight' and 'bias' in their names; PyTorch's own attention has a '_'.
    """
    cuts = [int(cut) for cut in np.cumsum(d_outs)[:-1]]
    rules = [
        Rule(
            ((f"{theirs}{joint}weight", (sum(d_outs), d_in)),),
            tuple(f"{name}/kernel" for name in ours),
            lambda x: tuple(part.T for part in np.split(x, cuts)),
            lambda *parts: (np.concatenate([part.T for part in parts]),),
        )
    ]
    if bias:
        rules.append(
            Rule(
                ((f"{theirs}{joint}bias", (sum(d_outs),)),),
                tuple(f"{name}/bias" for name in ours),
                lambda x: tuple(np.split(x, cuts)),
                lambda *parts: (np.concatenate(parts),),
            )
        )
    return rules


def norm(theirs: str, ours: str, width: int, bias: bool = True) -> list[Rule]:
    """Scale and bias of a layer norm; without a bias of ours, theirs is zero: the same function."""
    rules = [vector(f"{theirs}.weight", f"{ours}/scale", (width,))]
    name = f"{theirs}.bias"
    return [*rules, vector(name, f"{ours}/bias", (width,)) if bias else zeros(name, (width,))]


def batch_norm(theirs: str, ours: str, width: int) -> list[Rule]:
    """Scale, bias and running statistics of a batch norm; see `split_stats`."""
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return [vector(f"{theirs}.{a}", f"{ours}/{b}", (width,)) for a, b in names.items()]


def convolution(
    theirs: str, ours: str, kernel: int, d_in: int, d_out: int, depthwise: bool = False
) -> list[Rule]:
    """weight [out, in, k, k] against kernel [k, k, in, out], without a bias."""
    return [
        Rule(
            ((f"{theirs}.weight", (d_out, 1 if depthwise else d_in, kernel, kernel)),),
            (f"{ours}/kernel",),
            lambda x: (x.transpose(2, 3, 1, 0),),
            lambda x: (x.transpose(3, 2, 0, 1),),
        )
    ]


def pointwise(theirs: str, ours: str, d_in: int, d_out: int) -> list[Rule]:
    """A convolution of one pixel, [out, in, 1, 1], against a linear layer's kernel and bias."""
    weight, bias = linear(theirs, ours, d_in, d_out)
    [(name, shape)] = weight.theirs
    kernel = Rule(
        ((name, (*shape, 1, 1)),),
        weight.ours,
        lambda x: (x[:, :, 0, 0].T,),
        lambda x: (x.T[:, :, None, None],),
    )
    return [kernel, bias]


def zeros(theirs: str, shape: tuple[int, ...]) -> Rule:
    """A tensor of theirs that our network does without; written as zeros."""
    return constant(theirs, np.zeros(shape, np.float32))


def constant(theirs: str, value: np.ndarray) -> Rule:
    """A tensor of theirs that is a constant in our network: written, and not read."""
    return Rule(((theirs, value.shape),), (), lambda x: (), lambda: (value,))


def patch_convolution(
    theirs: str,
    ours: str,
    channels: int,
    patch: tuple[int, int],
    width: int,
    bias: bool = True,
) -> list[Rule]:
    """A strided convolution [D, C, ph, pw] against the kernel [ph*pw*C, D] of flattened patches."""

    def load(x: np.ndarray) -> tuple[np.ndarray]:
        return (x.transpose(2, 3, 1, 0).reshape(-1, width),)

    def dump(x: np.ndarray) -> tuple[np.ndarray]:
        return (x.reshape(*patch, channels, width).transpose(3, 2, 0, 1),)

    weight = (f"{theirs}.weight", (width, channels, *patch))
    kernel = Rule((weight,), (f"{ours}/kernel",), load, dump)
    return [kernel, *([vector(f"{theirs}.bias", f"{ours}/bias", (width,))] if bias else [])]


def tokens_and_positions(
    tokens: Sequence[tuple[str, int]],
    positions: str,
    grid: tuple[int, int],
    width: int,
    *,
    class_token: bool = True,
    embedded: int,
) -> Rule:
    """Prefix tokens and learned positions, where their prefix has positions of its own.

    A prefix token always stands at the same place, so its position is added to it on import and
    zero on export: the network computes the same sum, but the two cannot be told apart again.

    Args:
      tokens: (name, how many) of their prefix tokens [1, n, D], class token first.
      positions: name of their positions [1, embedded + gh * gw, D].
      grid: (gh, gw).
      width: D.
      class_token: whether the first of the tokens is the class token.
      embedded: how many of the first prefix tokens have a position; 0 for none.
    """
    counts = [count for _, count in tokens]
    total, patches = sum(counts), grid[0] * grid[1]
    registers = total - int(class_token)
    theirs = [(name, (1, count, width)) for name, count in tokens]
    theirs.append((positions, (1, embedded + patches, width)))
    ours = ["cls_token"] * class_token + ["register_tokens"] * bool(registers) + ["positions"]

    def load(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        *given, table = arrays
        prefix = np.concatenate([x.reshape(-1, width) for x in given]) if given else None
        result = []
        if prefix is not None:
            prefix[:embedded] += table[0, :embedded]
            result += [prefix[0]] * class_token
            result += [prefix[int(class_token) :]] * bool(registers)
        return (*result, table[0, embedded:].reshape(*grid, width))

    def dump(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        *given, table = arrays
        result = []
        if given:
            prefix = np.concatenate([x.reshape(-1, width) for x in given])
            cuts = np.cumsum(counts)[:-1]
            result = [part[None] for part in np.split(prefix, cuts)]
        rows = [np.zeros((embedded, width), table.dtype), table.reshape(patches, width)]
        return (*result, np.concatenate(rows)[None])

    return Rule(tuple(theirs), tuple(ours), load, dump)


def reshaped(rule: Rule, *shapes: tuple[int, ...]) -> Rule:
    """The same rule where their tensors have these shapes."""
    names, before = zip(*rule.theirs, strict=True)
    return Rule(
        tuple(zip(names, shapes, strict=True)),
        rule.ours,
        lambda *arrays: rule.load(*(x.reshape(s) for x, s in zip(arrays, before, strict=True))),
        lambda *arrays: tuple(
            x.reshape(s) for x, s in zip(rule.dump(*arrays), shapes, strict=True)
        ),
    )


def prefixed(rules: Sequence[Rule], theirs: str, ours: str) -> list[Rule]:
    """The same rules for a part of a network: every name begins with `theirs`, or `ours`."""
    return [
        dataclasses.replace(
            rule,
            theirs=tuple((f"{theirs}{name}", shape) for name, shape in rule.theirs),
            ours=tuple(f"{ours}{path}" for path in rule.ours),
        )
        for rule in rules
    ]


# --- applying them --------------------------------------------------------------------------------


def load_tensors(
    tensors: Tensors, rules: Sequence[Rule], droppable: Mapping[str, str], where: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """Turns their tensors into a parameter tree, leaving nothing out silently.

    Args:
      tensors: name -> array; converted to float32.
      rules: what is expected.
      droppable: regex -> reason, for tensors that may be left out.
      where: names the file or directory in errors.

    Returns:
      The tree, and name -> reason of what was left out.

    Raises:
      CheckpointError: tensors that are missing, unknown or of another shape, all of them listed.
    """
    expected = {name: shape for rule in rules for name, shape in rule.theirs}
    dropped, unknown = {}, []
    for name in sorted(set(tensors) - set(expected)):
        reasons = [reason for regex, reason in droppable.items() if re.fullmatch(regex, name)]
        if reasons:
            dropped[name] = reasons[0]
        else:
            unknown.append(name)
    missing = sorted(set(expected) - set(tensors))
    misshaped = [
        f"{name} is {tensors[name].shape}, not {shape}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    problems = (("missing", missing), ("unknown", unknown), ("of another shape", misshaped))
    if missing or unknown or misshaped:
        found = "; ".join(f"{kind}: {_listed(names)}" for kind, names in problems if names)
        raise CheckpointError(f"{where}: tensors do not fit the config: {found}.")
    flat: dict[str, np.ndarray] = {}
    for rule in rules:
        arrays = rule.load(*(_float32(tensors[name]) for name, _ in rule.theirs))
        flat.update(zip(rule.ours, map(_contiguous, arrays), strict=True))
    return unflatten(flat), dropped


def dump_tensors(params: Tree, rules: Sequence[Rule], where: str) -> dict[str, np.ndarray]:
    """The inverse of `load_tensors`; every parameter must have a place.

    Raises:
      CheckpointError: parameters without a place or places without a parameter, all listed.
    """
    flat = flatten(params)
    wanted = {path for rule in rules for path in rule.ours}
    extra, missing = sorted(set(flat) - wanted), sorted(wanted - set(flat))
    if extra or missing:
        found = [f"has no place for {_listed(extra)}"] * bool(extra)
        found += [f"lacks {_listed(missing)}"] * bool(missing)
        raise CheckpointError(f"{where}: {' and '.join(found)}.")
    tensors = {}
    for rule in rules:
        arrays = rule.dump(*(np.asarray(flat[path], np.float32) for path in rule.ours))
        for (name, shape), array in zip(rule.theirs, arrays, strict=True):
            if array.shape != shape:
                raise CheckpointError(f"{where}: '{name}' would be {array.shape}, not {shape}.")
            tensors[name] = _contiguous(array)
    return tensors


def _contiguous(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, order="C")  # np.ascontiguousarray would make a vector of a number


def _float32(array: np.ndarray) -> np.ndarray:
    return np.array(array, np.float32)  # a copy: rules may add in place


def _listed(names: Sequence[str], most: int = 20) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def split_stats(tree: Tree) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and running statistics, 'mean' and 'var', of a tree that has both."""
    params: dict[str, Any] = {}
    stats: dict[str, Any] = {}
    for path, leaf in flatten(tree).items():
        of_stats = path.rpartition("/")[2] in ("mean", "var")
        (stats if of_stats else params)[path] = leaf
    return unflatten(params), unflatten(stats)


def with_stats(params: Tree, stats: Tree) -> dict[str, Any]:
    """The inverse of `split_stats`."""
    return unflatten({**flatten(params), **flatten(stats)})


def rename(tensors: Tensors, renames: Sequence[tuple[str, str]], where: str) -> dict[str, Any]:
    """Applies (regex, replacement) pairs, in order, to every name.

    Raises:
      CheckpointError: two tensors end up with one name.
    """
    renamed: dict[str, Any] = {}
    for name, array in tensors.items():
        new = name
        for regex, replacement in renames:
            new = re.sub(regex, replacement, new)
        if new in renamed:
            raise CheckpointError(f"{where}: holds '{new}' twice, once as '{name}'.")
        renamed[new] = array
    return renamed


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Nested dicts to {'a/b': leaf}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def pair(value: Any) -> tuple[int, int]:
    """(height, width) of a size that may be one number for both."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def grid_of(image_size: tuple[int, int], patch_size: Any) -> tuple[int, int]:
    """(rows, columns) of whole patches in an image; a rest is cut off, as convolutions do."""
    patch = pair(patch_size)
    return image_size[0] // patch[0], image_size[1] // patch[1]
