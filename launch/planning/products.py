"""FLOPs of the matrix products in a compiled program."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from launch.planning.hlo import Array, Instruction, Module, operand


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
    left, right = [operand(instruction, index, scope) for index in (0, 1)]
    if instruction.opcode == "dot":
        inner = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        axes = [int(n) for n in inner[1].split(",") if n] if inner else []
        return 2.0 * result * math.prod(left.sizes[axis] for axis in axes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    features = right.sizes[labels[2].index("i")]
    return 2.0 * result * features * math.prod(_window(instruction, labels, left))


def _window(instruction: Instruction, labels: re.Match, left: Array) -> list[float]:
    """Per spatial axis: how many positions of the window meet the input, on average.

    XLA for TPUs writes a batched product as a convolution whose window is mostly outside the
    (padded, dilated) input: those positions cost nothing.
    """
    fields = dict(
        re.findall(r"(size|pad|stride|lhs_dilate|rhs_dilate)=([\dx_\-]+)", _text(instruction))
    )
    spatial = sorted(c for c in labels[1] if c.isdigit())
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
