"""Machines to plan for, and the search for the mesh, micro-batches and remat that suit one."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from encoders.errors import ConfigError
from encoders.models.towers import Towers
from encoders.parallel.chips import Chip, chip
from encoders.training.experiment import Experiment
from launch.planning import compiled, counted, target
from launch.planning.compiled import networks
from launch.planning.report import Plan

MICRO_BATCHES = (1, 2, 4, 8, 16)
REMAT = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices, real to the compiler or only described.

    Attributes:
      where: as it was asked for.
      devices: what a mesh is made of.
      chip: one of them.
      slices: how many slices or nodes a slower network joins.
      compiles: whether a compiler for it is at hand.
    """

    where: str
    devices: list[Any]
    chip: Chip
    slices: int
    compiles: bool

    def plan(self, config: Any) -> Plan:
        """Compiles, or counts where that is not possible."""
        return self._compile(config) if self.compiles else self.count(config)

    def _compile(self, config: Any) -> Plan:
        return compiled.plan(Experiment(config, devices=self.devices), self.where)

    def count(self, config: Any) -> Plan:
        return counted.plan(Experiment(config, devices=self.devices), self.where, self.chip)


def pod(topology: target.Topology) -> Machine:
    """A TPU pod; see `target.devices` for its errors."""
    devices = target.devices(topology)
    return Machine(str(topology), devices, chip(devices[0].device_kind), topology.slices, True)


def described(text: str) -> Machine:
    """GPUs by name; see `counted.parse_devices` for its errors."""
    found, devices = counted.parse_devices(text)
    nodes = math.ceil(len(devices) / found.node)
    return Machine(text, devices, found, nodes, False)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to use a machine."""

    data: int
    fsdp: int
    tensor: int
    micro_batches: int
    remat: str

    def apply(self, config: Any, slices: int) -> Any:
        made = copy.deepcopy(config)
        mesh = dict(dcn=slices, data=self.data, fsdp=self.fsdp, tensor=self.tensor, sequence=1)
        with made.unlocked():
            made.hardware.mesh = mesh
            made.hardware.micro_batches = self.micro_batches
            for section in networks(made.model).values():
                section.remat = self.remat
        return made

    def flags(self, model: Any) -> str:
        remat = (f"--config.{path}.remat={self.remat}" for path in networks(model))
        return (
            f"--config.hardware.mesh.data={self.data} --config.hardware.mesh.fsdp={self.fsdp} "
            f"--config.hardware.mesh.tensor={self.tensor} "
            f"--config.hardware.micro_batches={self.micro_batches} {' '.join(remat)}"
        )


def candidates(chips: int, batch_size: int, heads: int, slices: int) -> Iterator[Candidate]:
    """All that divide: the batch over its shards and micro-batches, the heads over `tensor`."""
    each = chips // slices
    for tensor in (1, 2, 4, 8):
        if each % tensor or heads % tensor:
            continue
        for fsdp in _divisors(each // tensor):
            data = each // tensor // fsdp
            for micro in MICRO_BATCHES:
                if batch_size % (slices * data * fsdp * micro) == 0:
                    for remat in REMAT:
                        yield Candidate(data, fsdp, tensor, micro, remat)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def run(config: Any, machine: Machine, keep: int, show: Callable[[str], None] = print) -> int:
    """Searches, prints, and returns the exit code: 1 where nothing fits."""
    probe = Experiment(_loose(config), devices=machine.devices)
    encoder = probe.objective.encoder
    towers = (encoder.image, encoder.text) if isinstance(encoder, Towers) else (encoder,)
    heads = math.gcd(*(tower.size.num_heads for tower in towers))
    found = list(
        candidates(
            len(machine.devices),
            probe.batch_rows,
            heads,
            machine.slices if machine.chip.torus else 1,
        )
    )
    if not found:
        raise ConfigError(
            f"batch_size: {probe.sections.batch_size} divides over no mesh of "
            f"{len(machine.devices)} chips."
        )
    ranked = sorted(_estimates(config, machine, found), key=_order)
    show(
        f"{machine.where}: {len(found)} ways to divide; {len(ranked)} can fit by counting "
        f"(parameters, optimizer and what is kept for the backward pass)."
    )
    best: list[tuple[Candidate, Plan]] = []
    tried, refused = 0, math.inf
    for plan, candidate in ranked:
        if len(best) == keep or tried == 2 * keep:
            break
        if machine.compiles:
            size = plan.memory.total
            if size >= 0.9 * refused:  # the compiler has refused one that counts no larger
                continue
            plan = machine.plan(candidate.apply(config, machine.slices))
            tried += 1
            refused = refused if plan.fits else min(refused, size)
        if plan.fits:
            best.append((candidate, plan))
    how = f"{tried} of them compiled" if machine.compiles else "none compiled"
    show(f"{how}; the best that fit:" if best else f"{how}; none fits.")
    for candidate, plan in sorted(best, key=lambda item: item[1].bound.step):
        show(
            f"  {1e3 * plan.bound.step:10,.1f} ms  {plan.memory.total / 2**30:7.2f} GiB  "
            f"{plan.shown_mesh}; micro-batches {plan.micro_batches}; remat {plan.remat}\n"
            f"    {candidate.flags(config.model)}"
        )
    return 0 if best else 1


def _loose(config: Any) -> Any:
    """The config on a mesh that always divides, to read its sizes from."""
    made = copy.deepcopy(config)
    with made.unlocked():
        made.hardware.micro_batches = 1
    return made


def _estimates(
    config: Any, machine: Machine, found: list[Candidate]
) -> Iterator[tuple[Plan, Candidate]]:
    """Plans by counting, without those that cannot fit even if they needed no workspace."""
    kept: dict[str, counted.Kept] = {}
    slices = machine.slices if machine.chip.torus else 1
    by_mesh: dict[tuple[int, ...], list[Candidate]] = {}
    for candidate in found:
        mesh = (candidate.data, candidate.fsdp, candidate.tensor)
        by_mesh.setdefault(mesh, []).append(candidate)
    for group in by_mesh.values():
        try:
            experiment = Experiment(group[0].apply(config, slices), devices=machine.devices)
        except ConfigError:  # a mesh that does not follow the nodes
            continue
        for candidate in group:
            made = candidate.apply(config, slices)
            if candidate.remat not in kept:
                kept[candidate.remat] = counted.kept(Experiment(made, devices=machine.devices))
            hardware = dataclasses.replace(
                experiment.sections.hardware, micro_batches=candidate.micro_batches
            )
            experiment.sections = dataclasses.replace(experiment.sections, hardware=hardware)
            for section in networks(experiment.config["model"]).values():
                section["remat"] = candidate.remat
            plan = counted.plan(experiment, machine.where, machine.chip, kept[candidate.remat])
            memory = plan.memory
            least = memory.parameters + memory.optimizer + memory.average + memory.batch
            if least + memory.activations / candidate.tensor > plan.capacity:
                continue
            yield plan, candidate


def _order(item: tuple[Plan, Candidate]) -> tuple[float, ...]:
    plan, candidate = item
    return plan.bound.step, candidate.tensor, candidate.micro_batches, plan.memory.total
