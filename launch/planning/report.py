"""A plan, and how it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from encoders.parallel.chips import Chip
from launch.planning.memory import Memory
from launch.planning.roofline import Bound, Flow

_WHAT = {
    "parameters": "parameters",
    "optimizer": "optimizer state",
    "average": "average of parameters",
    "teacher": "teacher",
    "other": "counters and metrics",
    "batch": "batch",
    "gradients": "gradients",
    "activations": "kept activations",
    "workspace": "workspace",
    "program": "program",
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one experiment costs on one machine.

    Attributes:
      where: the machine, as it was asked for.
      chip: one of its chips.
      chips: how many.
      mesh: axis -> size.
      micro_batches, remat: of the config.
      source: 'compiled' or 'counted'.
      memory: bytes on one chip.
      capacity: bytes that one chip has.
      flops: of matrix products in a step on one chip, recomputed ones included.
      model_flops: what the model needs, per example.
      flows: collectives.
      bound: seconds of a step.
      batch_size, total_steps: of the config.
      refusal: the compiler's words where it found no way to fit the step, or ''.
      seconds: what tracing and compiling took.
      surprises: arrays that are gathered and should not be; see `compiled.surprises`.
    """

    where: str
    chip: Chip
    chips: int
    mesh: Mapping[str, int]
    micro_batches: int
    remat: str
    source: str
    memory: Memory
    capacity: float
    flops: float
    model_flops: float
    flows: Sequence[Flow]
    bound: Bound
    batch_size: int
    total_steps: int
    refusal: str = ""
    seconds: float = 0.0
    surprises: Sequence[str] = ()

    @property
    def fits(self) -> bool:
        return not self.refusal and self.memory.total <= self.capacity

    @property
    def examples_per_second(self) -> float:
        return self.batch_size / self.bound.step

    @property
    def mfu(self) -> float:
        """Share of the chips' peak that the model's own FLOPs take at the bound."""
        used = self.model_flops * self.examples_per_second
        return used / (self.chips * self.chip.flops)

    @property
    def hours(self) -> float:
        return self.total_steps * self.bound.step / 3600

    @property
    def shown_mesh(self) -> str:
        sizes = [f"{axis} {size}" for axis, size in self.mesh.items() if size > 1]
        return ", ".join(sizes) or "one chip"


def render(plan: Plan) -> str:
    """The plan as text."""
    head = [
        f"{plan.where}: {plan.chips:,} chips, mesh {plan.shown_mesh}, "
        f"{plan.micro_batches} micro-batch{'es' * (plan.micro_batches > 1)}, remat {plan.remat}"
    ]
    if plan.source == "counted":
        head.append("Counted from shapes and formulas: no compiler for this machine is at hand.")
    if plan.refusal:
        return "\n".join([*head, "", f"Does not fit: {plan.refusal}", ""])
    lines = [*head, "", f"HBM of a chip, {_gib(plan.capacity)}"]
    for field, size in dataclasses.asdict(plan.memory).items():
        if size:
            lines.append(f"  {_WHAT[field]:<24}{_gib(size):>14}")
    share = plan.memory.total / plan.capacity
    lines.append(f"  {'total':<24}{_gib(plan.memory.total):>14}{share:>8.1%}")
    lines += ["", "Collectives of a step, bytes that a chip sends"]
    for flow in plan.flows:
        if flow.sent >= 1e-3 * sum(other.sent for other in plan.flows):
            lines.append(
                f"  {flow.kind:<20}{flow.axes or '-':<18}{flow.sent / 1e9:>10.3f} GB"
                f"{_seconds(flow.seconds):>12}  {flow.network}"
            )
    if not plan.flows:
        lines.append("  none")
    lines += [f"  gathered, and should not be: {each}" for each in plan.surprises]
    bound = plan.bound
    lines += ["", "Least time of a step, each at its data sheet's speed"]
    lines.append(
        f"  {'matrix products':<24}{plan.flops / 1e12:>10.2f} TFLOP{_seconds(bound.compute):>11}"
    )
    for name in ("hbm", "interconnect", "network"):
        lines.append(
            f"  {'HBM' if name == 'hbm' else name:<24}{_seconds(getattr(bound, name)):>27}"
        )
    lines += [
        f"  {'all at once':<24}{_seconds(bound.step):>27}  ({_name(bound.limit)} decides)",
        "",
        f"At that speed, and it is a bound: {plan.examples_per_second:,.0f} examples/s, "
        f"MFU {plan.mfu:.0%}; {plan.total_steps:,} steps in {plan.hours:,.1f} h, "
        f"{plan.hours * plan.chips:,.0f} chip-hours",
        "Fits." if plan.fits else "Does not fit.",
        "",
    ]
    return "\n".join(lines)


def _name(limit: str) -> str:
    return {"compute": "arithmetic", "hbm": "HBM"}.get(limit, limit)


def _gib(size: float) -> str:
    return f"{size / 2**30:,.3f} GiB"


def _seconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f} ms" if seconds < 10 else f"{seconds:,.2f} s"
