"""What a compiled step moves: collectives between chips, and bytes to and from a chip's HBM.

A program for TPUs repeats an asynchronous collective in several fused computations (start, steps,
done) under one channel number, so a channel is counted once.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

from launch.planning.hlo import Array, Instruction, Module, arrays

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


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
        # XLA for TPUs has no such instruction: it is a fusion of this name.
        if kind == "all-reduce" and scope.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        one = Collective(
            kind, tuple(shape), groups(instruction.attributes, devices), times, instruction.label
        )
        channel = re.search(r"channel_id=(\d+)", instruction.attributes)
        key = int(channel[1]) if channel else (scope, instruction.name)
        if key not in found or found[key].payload < one.payload:
            found[key] = one
    return list(found.values())


def groups(attributes: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """The groups of a collective, in any of the ways they are written.

    `{{0,1},{2,3}}`; `[2,4]<=[8]`; `[2,4]<=[4,2]T(1,0)`; `mesh['a'=2,'b'=4] {'b'}`, where
    `device_ids=([4,2]T(1,0))` may say the devices' order; `{}`, which is
    all; and a permute's source-target pairs, whose groups are its cycles and chains.
    """
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    if pairs:
        ends = re.findall(r"\{(\d+),(\d+)\}", pairs[1])
        return _cycles([(int(source), int(target)) for source, target in ends])
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
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? "
        r"\{([^}]*)\}",
        attributes,
    )
    if named:
        axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        names, over = list(axes), re.findall(r"'([^']+)'", named[4])
        order = [i for i, n in enumerate(names) if n not in over]
        order += [names.index(name) for name in over]
        size = math.prod(axes[name] for name in over)
        places = _transposed(tuple(axes.values()), order)
        if named[2]:  # the devices of the named mesh, in an order of their own
            shape = _ints(named[2])
            ids = _transposed(shape, _ints(named[3]) if named[3] else range(len(shape)))
            places = [ids[place] for place in places]
        return _rows(places, size)
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


# --- HBM ------------------------------------------------------------------------------------------

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "copy-done", "async-done", "async-update",
    "collective-permute-done", "all-gather-done", "all-reduce-done", "iota",
}  # fmt: skip


def hbm_bytes(module: Module) -> float:
    """Bytes that one device reads from and writes to its HBM in a step.

    Every instruction outside of a fusion reads its operands and writes its result once. Of an array
    that is only sliced, or written to in place, the slice counts; arrays that the compiler has put
    into on-chip memory count nothing.
    """
    inside = {
        name
        for scope in module.computations.values()
        for instruction in scope.values()
        for role, name in instruction.called
        if role in ("calls", "to_apply")
    }
    total = 0.0
    for name, instruction, times in module.instructions():
        if name not in inside and instruction.opcode not in _FREE:
            total += times * _moved(instruction, module, module.computations[name])
    return total


def _moved(instruction: Instruction, module: Module, scope: Mapping[str, Instruction]) -> float:
    if "AllocateBuffer" in instruction.attributes:
        return 0.0  # empty until something is written to it
    taken = [scope[name] for name in instruction.operand_names if name in scope]
    made = _in_hbm(instruction.arrays)
    if instruction.opcode == "dynamic-slice":
        return 2.0 * made
    if instruction.opcode == "dynamic-update-slice":
        return 2.0 * _in_hbm(taken[1].arrays)
    if instruction.opcode != "fusion":
        return made + sum(_in_hbm(each.arrays) for each in taken)
    body = module.computations[dict(instruction.called)["calls"]]
    total = 0.0
    for part in body.values():
        if part.opcode == "parameter":
            number = int(part.operands)
            if number < len(taken) and _in_hbm(taken[number].arrays):
                total += _read(part, body)
    updates = [part for part in body.values() if part.opcode == "dynamic-update-slice"]
    if updates and made:
        written = [body[part.operand_names[1]] for part in updates if part.operand_names[1] in body]
        return total + sum(array.bytes for part in written for array in part.arrays)
    return total + made


def _read(parameter: Instruction, body: Mapping[str, Instruction]) -> float:
    """How much of a fusion's operand it reads."""
    users = [part for part in body.values() if parameter.name in part.operand_names]
    whole = sum(array.bytes for array in parameter.arrays)
    sliced = 0.0
    for user in users:
        if user.opcode == "dynamic-slice":
            sliced += sum(array.bytes for array in user.arrays)
        elif user.opcode == "bitcast":
            sliced += _read(user, body)
        elif user.opcode == "dynamic-update-slice" and user.operand_names[0] == parameter.name:
            continue  # written in place
        else:
            return whole
    return min(whole, sliced)


def _in_hbm(found: Sequence[Array]) -> float:
    return float(sum(array.bytes for array in found if array.in_hbm))
