"""Bytes of HBM on one chip, by what they are for; the parts add up to the compiler's own total."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from launch.planning.hlo import Instruction, Module

_STATE = {"params": "parameters", "opt_state": "optimizer", "ema": "average", "teacher": "teacher"}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one chip.

    Attributes:
      parameters, optimizer, average, teacher: of the state; average is the EMA of the parameters.
      other: the rest of the state (counters, statistics) and the metrics that the step returns.
      batch: its examples.
      gradients: of the scanned layers, which live until the optimizer's update; and with
        micro-batches their sums.
      activations: what the forward pass of scanned layers keeps for the backward pass.
      workspace: the rest of the compiler's temporaries: gathered parameters, arrays of the layer at
        work, and all activations and gradients of layers that are not scanned.
      program: the machine code.
    """

    parameters: int
    optimizer: int
    average: int
    teacher: int
    other: int
    batch: int
    gradients: int
    activations: int
    workspace: int
    program: int

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def measure(compiled: Any, module: Module, micro_gradients: int = 0) -> Memory:
    """The memory of a compiled step.

    Args:
      compiled: what jax compiled.
      module: its text, parsed.
      micro_gradients: bytes of the sums of gradients over micro-batches; 0 where there is one.
    """
    found = compiled.memory_analysis()
    parts = argument_parts(module)
    # The compiler rounds what the text does not show (alignment): it belongs to the rest.
    parts["other"] += found.argument_size_in_bytes - sum(parts.values())
    parts["other"] += found.output_size_in_bytes - found.alias_size_in_bytes
    gradients, activations = accumulators(module)
    temporary = found.temp_size_in_bytes
    # Sums that the compiler keeps on the chip, as it may with small ones, are no part of HBM.
    gradients += max(0, min(micro_gradients, temporary - gradients - activations))
    return Memory(
        **parts,
        gradients=gradients,
        activations=activations,
        workspace=temporary - gradients - activations,
        program=found.generated_code_size_in_bytes,
    )


def compiler_total(compiled: Any) -> int:
    """The compiler's own sum: arguments, results beyond them, temporaries, code."""
    found = compiled.memory_analysis()
    return (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes
        + found.generated_code_size_in_bytes
    )


def argument_parts(module: Module) -> dict[str, int]:
    """Bytes of the step's arguments, padded as they lie in memory, by the part of the state."""
    parts = dict.fromkeys(["parameters", "optimizer", "average", "teacher", "other", "batch"], 0)
    for instruction in module.computations[module.entry].values():
        if instruction.opcode == "parameter":
            parts[_part(instruction.label)] += sum(a.padded_bytes for a in instruction.arrays)
    return parts


def _part(label: str) -> str:
    if label.startswith("batch"):
        return "batch"
    field = re.match(r"state\.(\w+)", label)
    return _STATE.get(field[1], "other") if field else "other"


def accumulators(module: Module) -> tuple[int, int]:
    """(gradients, activations): arrays that loops over layers fill, one slice each turn.

    They are the loop's arrays with one row for each turn that nothing has been written to before.
    """
    gradients = activations = 0
    for scope in module.computations.values():
        for loop in scope.values():
            if loop.opcode != "while" or "while/body" in loop.label.rpartition("Stack")[2]:
                continue
            turns = module.trip_count(loop)
            start = scope.get(loop.operand_names[0])
            if turns is None or start is None or start.opcode != "tuple":
                continue
            size = sum(
                array.padded_bytes
                for name in start.operand_names
                for array in scope[name].arrays[:1]
                if array.sizes[:1] == (turns,) and array.in_hbm and _is_empty(scope[name], scope)
            )
            if "transpose(" in loop.label:
                gradients += size
            else:
                activations += size
    return gradients, activations


def _is_empty(instruction: Instruction, scope: Any) -> bool:
    while instruction.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
        instruction = scope[instruction.operand_names[0]]
    if instruction.opcode == "custom-call":
        return "AllocateBuffer" in instruction.attributes
    return instruction.opcode in ("broadcast", "constant")
