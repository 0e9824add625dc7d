"""Reads a compiled program's text: computations, instructions, and how often each one runs.

XLA's own `cost_analysis` counts the body of a loop once; here everything is multiplied by how often
its loop turns.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
    "f8e4m3fn": 8, "f8e5m2": 8, "token": 0, "opaque": 0,
}  # fmt: skip

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
    def in_hbm(self) -> bool:
        """Not in another memory space of the chip, which a layout marks as S(n)."""
        return re.search(r"S\([1-9]", self.layout) is None

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

        Known are loops whose counter is compared with a constant and goes up by a constant; a loop
        that the compiler has unrolled by two goes up by two.
        """
        known = re.search(r'known_trip_count"?[:=]\{"?n"?:"?(\d+)', loop.attributes)
        if known:
            return int(known[1])
        called = dict(loop.called)
        condition = self.computations[called["condition"]]
        for instruction in condition.values():
            text = instruction.attributes
            if instruction.opcode == "fusion":
                inner = self.computations[dict(instruction.called)["calls"]].values()
                text = " ".join(each.attributes for each in inner)
            if "direction=LT" not in text or not instruction.shape.startswith("pred[]"):
                continue
            limits = [_constant(condition, name) for name in instruction.operand_names]
            counters = [_element(condition, name) for name in instruction.operand_names]
            limits = [limit for limit in limits if limit is not None]
            counters = [counter for counter in counters if counter is not None]
            if len(limits) == len(counters) == 1:
                step = self._step(self.computations[called["body"]], counters[0])
                return math.ceil(limits[0] / step)
        return None

    def _step(self, body: Mapping[str, Instruction], counter: int) -> int:
        """By how much a turn of a loop raises element `counter` of what it carries."""
        root = list(body.values())[-1]
        if root.opcode != "tuple":
            root = next((each for each in body.values() if each.opcode == "tuple"), root)
        return max(1, self._added(body, root.operand_names[counter]))

    def _added(self, scope: Mapping[str, Instruction], name: str) -> int:
        """The constants that are added on the way to a value."""
        found = scope.get(name)
        if found is None or found.opcode in ("parameter", "get-tuple-element"):
            return 0
        if found.opcode == "fusion":
            inner = self.computations[dict(found.called)["calls"]]
            own = self._added(inner, list(inner)[-1])
        elif found.opcode == "add":
            own = sum(_constant(scope, each) or 0 for each in found.operand_names)
        else:
            own = 0
        return own + sum(self._added(scope, each) for each in found.operand_names)

    def instructions(self) -> Iterator[tuple[str, Instruction, float]]:
        """(computation, instruction, how often it runs), of everything that runs."""
        for name, times in self.counts().items():
            for instruction in self.computations.get(name, {}).values():
                yield name, instruction, times


def _constant(scope: Mapping[str, Instruction], name: str) -> int | None:
    found = scope.get(name)
    while found is not None and found.opcode in ("copy", "bitcast"):
        found = scope.get(found.operand_names[0])
    if found is None or found.opcode != "constant" or not found.shape.startswith(("s", "u")):
        return None
    return int(found.operands) if re.fullmatch(r"-?\d+", found.operands) else None


def _element(scope: Mapping[str, Instruction], name: str) -> int | None:
    """Which element of a loop's tuple a value is."""
    found = scope.get(name)
    if found is None or found.opcode != "get-tuple-element":
        return None
    return int(re.search(r"index=(\d+)", found.attributes)[1])


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
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
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


def operand(instruction: Instruction, index: int, scope: Mapping[str, Instruction]) -> Array:
    """An operand's array; `scope` is the computation that the instruction is in."""
    written = arrays(instruction.operands)  # some backends write the operands' shapes
    if written:
        return written[index]
    return scope[instruction.operand_names[index]].arrays[0]
