"""The least time a step can take: arithmetic, HBM and every network at their data sheets' speed.

All of them at once, so that the slowest decides; nothing is assumed about how well a program does.
What a real step takes longer than that is the program's loss.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jax.sharding import Mesh

from encoders.parallel.chips import Chip
from launch.planning.traffic import Collective


@dataclasses.dataclass(frozen=True)
class Flow:
    """What collectives of one kind move over one or several axes of the mesh in a step.

    Attributes:
      kind: all-gather, all-reduce, ...
      axes: of the mesh, joined by '+'.
      payload: bytes of the arrays that are gathered, reduced or moved, on one chip.
      sent: bytes that a chip sends, by the ring algorithm.
      seconds: at the speed of the network.
      network: 'interconnect' or 'network' (between slices or nodes), whichever takes longer.
    """

    kind: str
    axes: str
    payload: float
    sent: float
    seconds: float
    network: str


@dataclasses.dataclass(frozen=True)
class Bound:
    """Seconds of one step, by what takes them."""

    compute: float
    hbm: float
    interconnect: float
    network: float

    @property
    def step(self) -> float:
        return max(self.compute, self.hbm, self.interconnect, self.network)

    @property
    def limit(self) -> str:
        """What decides."""
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]


def flows(found: Sequence[Collective], mesh: Mesh, chip: Chip) -> list[Flow]:
    """Collectives by kind and mesh axes, the largest first."""
    rows: dict[tuple[str, str], list[float | str]] = {}
    for collective in found:
        axes = axes_of(collective.groups, dict(mesh.shape))
        seconds, network = duration(collective.kind, collective.payload, axes, mesh, chip)
        row = rows.setdefault((collective.kind, "+".join(axes)), [0.0, 0.0, 0.0, network])
        for column, value in enumerate((collective.payload, collective.sent, seconds)):
            row[column] += value
    made = [Flow(kind, axes, *row) for (kind, axes), row in rows.items()]
    return sorted(made, key=lambda flow: -flow.sent)


def axes_of(groups: Sequence[Sequence[int]], shape: Mapping[str, int]) -> tuple[str, ...]:
    """Axes of the mesh along which the devices of a group differ.

    Args:
      groups: positions in `mesh.devices.flat`.
      shape: axis -> size, in the mesh's order.
    """
    places = np.stack(np.unravel_index(np.asarray(groups[0]), tuple(shape.values())))
    return tuple(
        axis for axis, along in zip(shape, places, strict=True) if len(set(along.tolist())) > 1
    )


def duration(
    kind: str, payload: float, axes: Sequence[str], mesh: Mesh, chip: Chip
) -> tuple[float, str]:
    """(seconds, the network that decides) of a collective over some axes.

    Over a slower and a faster network the faster one does its part first, so that between slices
    or nodes each chip moves its share only.
    """
    if not axes:
        return 0.0, "interconnect"
    outer = [axis for axis in axes if _leaves_node(axis, mesh, chip)]
    inner = [axis for axis in axes if axis not in outer]
    near = math.prod(mesh.shape[axis] for axis in inner)
    far = math.prod(mesh.shape[axis] for axis in outer)
    if kind == "collective-permute":
        near_bytes, far_bytes = (0.0, payload) if outer else (payload, 0.0)
    else:
        times = 2 if kind == "all-reduce" else 1
        near_bytes = times * payload * (near - 1) / near
        far_bytes = times * payload / near * (far - 1) / far
    near_seconds = near_bytes / _speed(inner, mesh, chip)
    far_seconds = far_bytes / chip.network
    if far_seconds > near_seconds:
        return far_seconds, "network"
    return near_seconds, "interconnect"


def _leaves_node(axis: str, mesh: Mesh, chip: Chip) -> bool:
    if chip.torus:
        return axis == "dcn"
    names = list(mesh.shape)
    within = math.prod(mesh.shape[name] for name in names[names.index(axis) :])
    return chip.node is not None and within > chip.node


def _speed(axes: Sequence[str], mesh: Mesh, chip: Chip) -> float:
    """Bytes/s that a chip sends along some axes: on a torus, over the links of its dimensions."""
    if not chip.torus or not axes:
        return chip.interconnect
    names = list(mesh.shape)
    index = tuple(slice(None) if name in axes else 0 for name in names)
    places = np.asarray([device.coords for device in mesh.devices[index].flat])
    spanned = sum(len(set(column.tolist())) > 1 for column in places.T)
    return chip.interconnect * max(1, spanned) / chip.torus


def bound(flops: float, hbm: float, moved: Sequence[Flow], chip: Chip) -> Bound:
    """The bound of a step from what one chip computes, reads and writes, and sends."""
    seconds = {"interconnect": 0.0, "network": 0.0}
    for flow in moved:
        seconds[flow.network] += flow.seconds
    return Bound(flops / chip.flops, hbm / chip.bandwidth, **seconds)
