"""Reads a compiled program's text: its loops, collectives and matrix products.

XLA's own `cost_analysis` counts the body of a loop once; here everything is multiplied by how often
its loop turns. A program for TPUs repeats an asynchronous collective in several fused computations
(start, steps, done) under one channel number, so a channel is counted once.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
    "f8e4m3fn": 8, "f8e5m2": 8, "token": 0, "opaque": 0,
}  # fmt: skip
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.<>\-]+) \(")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape: dtype, sizes, and the layout's text ('' where there is none)."""

    dtype: str
    sizes: tuple[int, ...]
    layout: str = ""

    @property
    def bytes(self) -> int:
        """Of the numbers alone, without padding."""
        return math.ceil(math.prod(self.sizes) * BITS[self.dtype] / 8)

    @property
    def padded_bytes(self) -> int:
        """As it lies in memory: the two innermost sizes are rounded up to the layout's tile."""
        tile = re.search(r"T\(([\d,]+)\)", self.layout)
        order = [int(n) for n in re.findall(r"\d+", self.layout.partition(":")[0])]
        sizes = list(self.sizes)
        if tile is None:
            return self.bytes
        tiles = [int(n) for n in tile[1].split(",")]
        if not sizes:
            sizes, order = [1], [0]
        minor = order[: len(tiles)][::-1]  # the tile is written from the major size to the minor
        tiles, outside = tiles[-len(minor) :], math.prod(tiles[: -len(minor)])
        for axis, size in zip(minor, tiles, strict=True):
            sizes[axis] = math.ceil(sizes[axis] / size) * size
        return math.ceil(math.prod(sizes) * outside * BITS[self.dtype] / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    operands: str
    attributes: str

    @property
    def arrays(self) -> list[Array]:
        """What it returns."""
        return arrays(self.shape)

    @property
    def operand_names(self) -> list[str]:
        return _NAME.findall(self.operands)

    @property
    def called(self) -> list[tuple[str, str]]:
        """(role, computation) of every computation it runs."""
        found = _CALLED.findall(self.attributes)
        branches = _BRANCHES.search(self.attributes)
        if branches:
            found += [("branch", name) for name in _NAME.findall(branches[1])]
        return found

    @property
    def label(self) -> str:
        """Where in the traced program it comes from, or ''."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: computation -> instruction name -> instruction, and the entry computation."""

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str
    header: str

    @property
    def arguments(self) -> list[Array]:
        """Arrays that the program takes, on one device, as they lie in its memory."""
        layout = self.header.partition("entry_computation_layout={")[2]
        return arrays(layout[: _closing(layout, 0) + 1])

    def counts(self) -> dict[str, float]:
        """How often each computation runs; see `trip_count` for loops."""
        totals: dict[str, float] = {}
        for name in self._callers_first():
            times = 1.0 if name == self.entry else totals.get(name, 0.0)
            for instruction in self.computations[name].values():
                for role, other in instruction.called:
                    loops = role in ("body", "condition")
                    each = self.trip_count(instruction) or 1 if loops else 1
                    totals[other] = totals.get(other, 0.0) + times * each
        return totals | {self.entry: 1.0}

    def _callers_first(self) -> list[str]:
        done: dict[str, None] = {}

        def visit(name: str) -> None:
            if name in done or name not in self.computations:
                return
            for instruction in self.computations[name].values():
                for _, other in instruction.called:
                    visit(other)
            done[name] = None

        visit(self.entry)
        return list(done)[::-1]

    def trip_count(self, loop: Instruction) -> int | None:
        """How often a while loop turns; None where the text does not say (a data-dependent one).

        A counter that starts at a constant, goes up by one and is compared with a constant.
        """
        known = re.search(r'known_trip_count"?[:=]\{"?n"?:"?(\d+)', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations[dict(loop.called)["condition"]]
        for instruction in condition.values():
            if instruction.opcode not in ("compare", "fusion"):
                continue
            less = "direction=LT" in instruction.attributes
            if instruction.opcode == "fusion":
                inner = self.computations[dict(instruction.called)["calls"]].values()
                less = any("direction=LT" in each.attributes for each in inner)
            limits = [self._constant(condition, name) for name in instruction.operand_names]
            limits = [limit for limit in limits if limit is not None]
            if less and len(limits) == 1 and instruction.shape.startswith("pred[]"):
                return limits[0]
        return None

    def _constant(self, computation: Mapping[str, Instruction], name: str) -> int | None:
        found = computation.get(name)
        while found is not None and found.opcode in ("copy", "bitcast"):
            found = computation.get(found.operand_names[0])
        if found is None or found.opcode != "constant" or not found.shape.startswith(("s", "u")):
            return None
        return int(found.operands) if re.fullmatch(r"-?\d+", found.operands) else None

    def instructions(self) -> Iterator[tuple[str, Instruction, float]]:
        """(computation, instruction, how often it runs), of everything that runs."""
        for name, times in self.counts().items():
            for instruction in self.computations.get(name, {}).values():
                yield name, instruction, times


def parse(text: str) -> Module:
    """Parses what `compiled.as_text()` returns."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, header, current = "", text.partition("\n")[0], None
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")) and (head := _HEAD.match(line)):
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif current is not None and (start := _LINE.match(line)):
            made = _instruction(start[2], line[start.end() :])
            current[made.name] = made
    return Module(computations, entry, header)


def arrays(shape: str) -> list[Array]:
    """Every array in a shape's text, those of tuples one after the other."""
    found = _ARRAY.findall(shape)
    return [
        Array(dtype, tuple(int(n) for n in sizes.split(",") if n), layout.strip("{}"))
        for dtype, sizes, layout in found
        if dtype in BITS
    ]


def _instruction(name: str, rest: str) -> Instruction:
    if rest.startswith("("):
        end = _closing(rest, 0) + 1
    else:
        end = rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    return Instruction(name, shape, opcode, rest[len(opcode) + 1 : close], rest[close + 1 :])


def _closing(text: str, start: int) -> int:
    """Where the bracket opened at `start` is closed; the end of the text if it is not."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    return len(text)


# --- matrix products ------------------------------------------------------------------------------


def product_flops(module: Module) -> float:
    """FLOPs of all matrix products on one device; a multiply-add counts as two.

    A product may be written as a dot or, for TPUs, as a convolution.
    """
    total = 0.0
    for name, instruction, times in module.instructions():
        if instruction.opcode in ("dot", "convolution"):
            total += times * _flops(instruction, module.computations[name])
    return total


def _flops(instruction: Instruction, scope: Mapping[str, Instruction]) -> float:
    result = math.prod(instruction.arrays[0].sizes)
    left, right = [_operand(instruction, index, scope) for index in (0, 1)]
    if instruction.opcode == "dot":
        inner = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        axes = [int(n) for n in inner[1].split(",") if n] if inner else []
        return 2.0 * result * math.prod(left.sizes[axis] for axis in axes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    features = right.sizes[labels[2].index("i")]
    window = 1.0
    taps = _window(instruction, labels, left, right)
    window = math.prod(taps)
    return 2.0 * result * features * window


def _window(instruction: Instruction, labels: re.Match, left: Array, right: Array) -> list[float]:
    """Per spatial axis: how many positions of the window meet the input, on average.

    XLA for TPUs writes a batched product as a convolution whose window is mostly outside the
    (padded, dilated) input: those positions cost nothing.
    """
    fields = dict(
        re.findall(r"(size|pad|stride|lhs_dilate|rhs_dilate)=([\dx_\-]+)", _text(instruction))
    )
    spatial = [c for c in labels[1] if c.isdigit()]
    out = instruction.arrays[0]
    result = []
    for number, axis in enumerate(spatial):

        def field(name: str, default: str, number: int = number) -> str:
            return fields[name].split("x")[number] if name in fields else default

        size = int(field("size", "1"))
        low = int(field("pad", "0_0").partition("_")[0])
        stride, dilate = int(field("stride", "1")), int(field("lhs_dilate", "1"))
        spread = int(field("rhs_dilate", "1"))
        length = left.sizes[labels[1].index(axis)]
        positions = out.sizes[labels[3].index(axis)]
        met = 0
        for position in range(positions):
            for tap in range(size):
                at = position * stride + tap * spread - low
                met += at >= 0 and at % dilate == 0 and at // dilate < length
        result.append(met / positions)
    return result


def _text(instruction: Instruction) -> str:
    found = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    return found[1] if found else ""


def _operand(instruction: Instruction, index: int, scope: Mapping[str, Instruction]) -> Array:
    written = arrays(instruction.operands)  # some backends write the operands' shapes
    if written:
        return written[index]
    return scope[instruction.operand_names[index]].arrays[0]


# --- collectives ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective, as often as it runs in a step.

    Attributes:
      kind: one of KINDS.
      arrays: what it returns on one device (of a reduce-scatter, what it takes).
      groups: logical device numbers that talk to each other, one group for all of its kind.
      times: how often it runs.
      label: where in the traced program it comes from.
    """

    kind: str
    arrays: tuple[Array, ...]
    groups: tuple[tuple[int, ...], ...]
    times: float
    label: str

    @property
    def payload(self) -> float:
        """Bytes of the whole array (what is gathered, reduced or moved), times how often."""
        return self.times * sum(array.bytes for array in self.arrays)

    @property
    def sent(self) -> float:
        """Bytes that a device sends by the ring algorithm, which is the least there can be."""
        size = len(self.groups[0]) if self.groups else 1
        share = (size - 1) / size
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return self.payload * factor


def collectives(module: Module, devices: int) -> list[Collective]:
    """All collectives of a program, each channel once; `devices` is how many it runs on."""
    found: dict[object, Collective] = {}
    scattered = _all_reduce_scatters(module)
    for scope, instruction, times in module.instructions():
        opcode = instruction.opcode.removesuffix("-start")
        if opcode not in KINDS:
            continue
        kind, shape = opcode, instruction.arrays
        operands = [module.computations[scope].get(name) for name in instruction.operand_names]
        taken = [array for each in operands if each is not None for array in each.arrays]
        if instruction.opcode.endswith("-start") and kind != "all-reduce":
            # (operands, results, contexts): of a permute both are the same.
            known = len(instruction.operand_names)
            shape = shape[known : 2 * known]
        if kind == "reduce-scatter":
            shape = taken or arrays(instruction.operands)
        if kind == "all-reduce" and scope in scattered:
            kind = "reduce-scatter"
        one = Collective(
            kind, tuple(shape), groups(instruction.attributes, devices), times, instruction.label
        )
        channel = re.search(r"channel_id=(\d+)", instruction.attributes)
        key = int(channel[1]) if channel else (scope, instruction.name)
        if key not in found or found[key].payload < one.payload:
            found[key] = one
    return list(found.values())


def _all_reduce_scatters(module: Module) -> set[str]:
    """Computations that are an all-reduce of which each device keeps its slice.

    XLA for TPUs has no instruction for it: it is a fusion named so.
    """
    return {
        name
        for computation in module.computations.values()
        for instruction in computation.values()
        if instruction.opcode == "fusion" and "all-reduce-scatter" in instruction.name
        for _, name in instruction.called
    }


def groups(attributes: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """The groups of a collective, in any of the ways they are written.

    `{{0,1},{2,3}}`; `[2,4]<=[8]`; `[2,4]<=[4,2]T(1,0)`; `mesh['a'=2,'b'=4] {'b'}`; `{}`, which is
    all; and a permute's source-target pairs, whose groups are its cycles and chains.
    """
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}?[,\s]", attributes + " ")
    if pairs:
        return _cycles([tuple(map(int, p)) for p in re.findall(r"\{(\d+),(\d+)", pairs[0])])
    found = re.search(r"replica_groups=(\{\{.*?\}\}|\{\})", attributes)
    if found and found[1] != "{}":
        return tuple(
            tuple(int(n) for n in group.split(","))
            for group in re.findall(r"\{([\d,]+)\}", found[1])
        )
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        shape, sizes = _ints(iota[1]), _ints(iota[2])
        order = _ints(iota[3]) if iota[3] else tuple(range(len(sizes)))
        return _rows(_transposed(sizes, order), shape[-1])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\][^{,]*\{([^}]*)\}", attributes)
    if named:
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        names, over = list(axes), re.findall(r"'([^']+)'", named[2])
        order = [i for i, n in enumerate(names) if n not in over]
        order += [names.index(name) for name in over]
        size = math.prod(axes[name] for name in over)
        return _rows(_transposed(tuple(axes.values()), order), size)
    return (tuple(range(devices)),)


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))


def _transposed(sizes: Sequence[int], order: Sequence[int]) -> list[int]:
    """arange(prod(sizes)).reshape(sizes).transpose(order), flat."""
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    flat = [0]
    for axis in order:
        flat = [base + step * strides[axis] for base in flat for step in range(sizes[axis])]
    return flat


def _rows(flat: Sequence[int], size: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(flat[at : at + size]) for at in range(0, len(flat), size))


def _cycles(pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    """Devices that a permute connects, directly or through others."""
    leader: dict[int, int] = {}

    def find(device: int) -> int:
        while leader.setdefault(device, device) != device:
            device = leader[device]
        return device

    for source, target in pairs:
        leader[find(source)] = find(target)
    parts: dict[int, list[int]] = {}
    for device in sorted(leader):
        parts.setdefault(find(device), []).append(device)
    return tuple(map(tuple, parts.values()))
