"""Cloud TPU slices: which there are, how they are named, how many hosts and devices they have.

Sources: the pages "TPU v4", "v5e", "v5p" and "v6e", "TPU software versions" (docs.cloud.google.com/
tpu/docs) and "Plan TPUs in GKE" (docs.cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus).
"""

from __future__ import annotations

import dataclasses
import math
import re

from encoders.errors import ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class Generation:
    """A kind of TPU. On all of these jax sees one device per chip.

    Attributes:
      prefix: of accelerator types.
      cores: what the number in an accelerator type counts per chip.
      runtime: the software version of TPU VMs.
      label: the node label cloud.google.com/gke-tpu-accelerator.
      dimensions: of a topology.
      most: chips of the largest slice.
    """

    prefix: str
    cores: int
    runtime: str
    label: str
    dimensions: int
    most: int


GENERATIONS = {
    "v4": Generation("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice", 3, 4096),
    "v5e": Generation("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", 2, 256),
    "v5p": Generation("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", 3, 6144),
    "v6e": Generation("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", 2, 256),
}
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice: its generation's name, and how many chips and hosts it has."""

    generation: str
    chips: int
    hosts: int

    @property
    def chips_per_host(self) -> int:
        return self.chips // self.hosts

    @property
    def accelerator_type(self) -> str:
        """What Cloud TPU calls it, such as 'v5litepod-16'."""
        kind = GENERATIONS[self.generation]
        return f"{kind.prefix}-{self.chips * kind.cores}"


def from_type(text: str) -> Slice:
    """The slice of an accelerator type such as v5p-512, v6e-16, v5litepod-16 or v5e-16.

    Raises:
      ConfigError: there is no such type.
    """
    prefixes = {kind.prefix: name for name, kind in GENERATIONS.items()}
    prefixes |= {name: name for name in GENERATIONS}
    prefix, _, number = text.partition("-")
    if prefix not in prefixes:
        raise ConfigError(f"--type {text}: unknown TPU '{prefix}'.{nearest(prefix, prefixes)}")
    kind = GENERATIONS[prefixes[prefix]]
    sizes = [chips * kind.cores for chips in _sizes(kind)]
    if not number.isdigit() or int(number) not in sizes:
        asked = int(number) if number.isdigit() else 0
        close = min(sizes, key=lambda size: abs(size - asked))
        counted = "TensorCores" if kind.cores == 2 else "chips"
        raise ConfigError(
            f"--type {text}: there is no {prefix} slice of '{number}' {counted}; the nearest is "
            f"{prefix}-{close}."
        )
    return _slice(prefixes[prefix], int(number) // kind.cores)


def from_topology(generation: str, text: str) -> Slice:
    """The slice of a topology such as 4x4x8 (v4, v5p) or 8x16 (v5e, v6e).

    Raises:
      ConfigError: the generation has no such topology.
    """
    if generation not in GENERATIONS:
        near = nearest(generation, GENERATIONS)
        raise ConfigError(f"--accelerator {generation}: unknown TPU.{near}")
    kind = GENERATIONS[generation]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", text):
        raise ConfigError(f"--topology {text}: expected numbers of chips, such as 4x4x8 or 8x16.")
    sides = tuple(map(int, text.split("x")))
    if len(sides) != kind.dimensions:
        fitting = " or ".join(n for n, k in GENERATIONS.items() if k.dimensions == len(sides))
        raise ConfigError(
            f"--topology {text}: a {generation} slice has {kind.dimensions} dimensions"
            + (f"; for this one choose --accelerator {fitting}." if fitting else ".")
        )
    known = _FLAT if kind.dimensions == 2 else _SMALL
    cubes = kind.dimensions == 3 and all(side % 4 == 0 for side in sides)
    in_order = list(sides) == sorted(sides)
    if sides not in known and not (cubes and in_order and math.prod(sides) <= kind.most):
        listed = ", ".join("x".join(map(str, each)) for each in known)
        more = ", and multiples of 4 in rising order" if kind.dimensions == 3 else ""
        raise ConfigError(
            f"--topology {text}: {generation} has no such slice; it has {listed}{more}, of up to "
            f"{kind.most} chips."
        )
    return _slice(generation, math.prod(sides))


def _sizes(kind: Generation) -> list[int]:
    if kind.dimensions == 2:
        return [math.prod(sides) for sides in _FLAT]
    return [math.prod(s) for s in _SMALL] + list(range(64, kind.most + 1, 64))


def _slice(generation: str, chips: int) -> Slice:
    # Up to 8 chips of the flat ones are one host; else a host has 4.
    alone = GENERATIONS[generation].dimensions == 2 and chips <= 8
    return Slice(generation, chips, 1 if alone else chips // 4)
