"""The device mesh, and the way between host arrays and global device arrays.

Axes, from the slowest network to the fastest:

  dcn       slices or nodes that a data-centre network joins; parameters are replicated over it
  data      replicates parameters
  fsdp      shards parameters and optimizer state (ZeRO-3)
  tensor    shards the inside of a layer
  sequence  shards the tokens of the activations

A batch is split over `dcn`, `data` and `fsdp` together. Which rows of it a process holds follows
from where its devices lie in the mesh (`local_rows`), in whatever order that is.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from encoders.errors import ConfigError

log = logging.getLogger(__name__)

AXES = ("dcn", "data", "fsdp", "tensor", "sequence")
BATCH_AXES = ("dcn", "data", "fsdp")  # the first axes of AXES: `_held_shards` relies on it


def make_mesh(
    *,
    dcn: int = 1,
    data: int = 1,
    fsdp: int = -1,
    tensor: int = 1,
    sequence: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh of all devices; one axis may be -1 and takes what the others leave.

    On TPU `dcn` counts the slices, and the other axes follow a slice's interconnect. On GPU each
    part of `dcn` holds whole nodes, or divides one, so that the inner axes cross as few nodes as
    they can.

    Raises:
      ConfigError: more than one -1, a size below 1, a product that is not the device count, or a
        `dcn` that is not how the devices are joined.
    """
    devices = sorted(jax.devices() if devices is None else devices, key=_address)
    wanted = dict(zip(AXES, (dcn, data, fsdp, tensor, sequence), strict=True))
    sizes = _resolve(wanted, devices)
    shape = tuple(sizes.values())
    if devices[0].platform == "tpu":
        parts = [_along_interconnect(shape[1:], slice_) for slice_ in _groups(devices)]
        return Mesh(np.stack(parts).reshape(shape), AXES)
    return Mesh(np.asarray(devices).reshape(shape), AXES)


def _resolve(wanted: Mapping[str, int], devices: Sequence[Any]) -> dict[str, int]:
    """The sizes with -1 filled in; see `make_mesh` for its errors."""
    free = [axis for axis, size in wanted.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in wanted.values()):
        raise ConfigError(
            f"hardware.mesh: sizes must be at least 1, and one of them may be -1, got "
            f"{_shown(wanted)}."
        )
    count, sizes = len(devices), dict(wanted)
    if free:
        sizes[free[0]] = count // math.prod(size for size in wanted.values() if size != -1)
    groups = len(_groups(devices))
    exact = devices[0].platform == "tpu"  # a slice is a torus of its own, while a node may be cut

    def joined(dcn: int) -> bool:
        return dcn == groups if exact else dcn == 1 or dcn % groups == 0 or groups % dcn == 0

    full = math.prod(sizes.values()) == count
    if full and joined(sizes["dcn"]):
        return sizes
    where = f"{count} device{'s' * (count > 1)}"
    if exact or groups > 1:
        where += f" in {groups} {'slice' if exact else 'node'}{'s' * (groups > 1)}"
    if full:
        where += f", {'which dcn counts' if exact else 'which dcn must not cut'}"
    fits = [shape for shape in _factors(count, len(AXES)) if joined(shape[0])]
    nearest = f"the nearest that does is {_shown(_nearest(wanted, fits))}" if fits else "none does"
    raise ConfigError(f"hardware.mesh: {_shown(wanted)} does not fit {where}; {nearest}.")


def _nearest(wanted: Mapping[str, int], shapes: Sequence[tuple[int, ...]]) -> dict[str, int]:
    """The shape that changes the sizes by the smallest factor; if several do, fsdp rather than
    data, and so on."""

    def change(shape: tuple[int, ...]) -> tuple[float, ...]:
        by = {
            axis: abs(math.log2(size / wanted[axis])) if wanted[axis] > 0 else 0.0
            for axis, size in zip(AXES, shape, strict=True)
        }
        order = ("sequence", "tensor", "dcn", "data", "fsdp")
        return round(sum(by.values()), 6), *(by[axis] for axis in order)

    return dict(zip(AXES, min(shapes, key=change), strict=True))


def _shown(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items())


def _factors(count: int, axes: int) -> Iterator[tuple[int, ...]]:
    """All ways to write a number as a product of so many."""
    if axes == 1:
        yield (count,)
        return
    for first in range(1, count + 1):
        if count % first == 0:
            yield from ((first, *rest) for rest in _factors(count // first, axes - 1))


def _address(device: Any) -> tuple[int, int, int]:
    return _group_of(device), device.process_index, device.id


def _group_of(device: Any) -> int:
    """The slice, or the node, that a device is in.

    jax numbers both as slice_index: on GPU, devices that share a host or an NVLink domain have the
    same. Where it says nothing, one process is one node, and all CPUs are.
    """
    if device.platform == "cpu":
        return 0
    index = getattr(device, "slice_index", None)
    if index is None:
        index = 0 if device.platform == "tpu" else device.process_index
    return index


def _groups(devices: Sequence[Any]) -> list[list[Any]]:
    """The devices of each slice or node, from devices sorted by address."""
    groups: dict[int, list[Any]] = {}
    for device in devices:
        groups.setdefault(_group_of(device), []).append(device)
    return list(groups.values())


def _along_interconnect(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """One slice's devices in a shape whose axes are rings of its torus, where that is possible."""
    from jax.experimental import mesh_utils

    for split in (False, True):  # one axis of the torus for each axis of the mesh, or parts of it
        try:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=split)
        except (NotImplementedError, ValueError, AssertionError) as error:
            reason = error
    log.warning(
        "hardware.mesh: no layout along the interconnect for %s, so devices are in the order of "
        "their numbers (%s)", shape, reason,
    )  # fmt: skip
    return np.asarray(devices).reshape(shape)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 over `dcn`, `data` and `fsdp`; every other axis whole on each device."""
    return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


@functools.lru_cache
def _held_shards(mesh: Mesh, process: int) -> np.ndarray:
    """Which parts of a batch devices of a process hold: sorted int64 numbers."""
    holders = mesh.devices.reshape(batch_shards(mesh), -1)
    return np.flatnonzero(
        [any(device.process_index == process for device in part) for part in holders]
    )


def local_rows(mesh: Mesh, batch_size: int, process: int | None = None) -> np.ndarray:
    """Which rows of a global batch devices of a process hold.

    Processes that differ in `tensor` and `sequence` only hold the same rows.

    Args:
      mesh: the device mesh.
      batch_size: rows of the global batch.
      process: of which process; None means this one.

    Returns:
      Sorted int64 positions in [0, batch_size).

    Raises:
      ConfigError: the batch cannot be cut into as many parts as the mesh has.
    """
    shards = batch_shards(mesh)
    if batch_size < 1 or batch_size % shards:
        raise ConfigError(f"batch_size: {batch_size} is not divisible by {shards} device shards.")
    held = _held_shards(mesh, jax.process_index() if process is None else process)
    size = batch_size // shards
    return (held[:, None] * size + np.arange(size)).reshape(-1)


def to_device(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """The rows of a batch that `local_rows` names, as global arrays.

    Args:
      batch: field -> [local rows, ...].
      mesh: the device mesh.

    Returns:
      field -> [B, ...], split over the mesh's batch axes.
    """
    sharding = batch_sharding(mesh)
    held = _held_shards(mesh, jax.process_index())

    def place(value: Any) -> jax.Array:
        value = np.asarray(value)
        size = len(value) // len(held)

        def rows_of(index: tuple[slice, ...]) -> np.ndarray:
            first = np.searchsorted(held, (index[0].start or 0) // size) * size
            return value[first : first + size]

        shape = (size * batch_shards(mesh), *value.shape[1:])
        return jax.make_array_from_callback(shape, sharding, rows_of)

    return {key: place(value) for key, value in batch.items()}


def to_host(tree: Any) -> Any:
    """Global arrays as whole numpy arrays on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
