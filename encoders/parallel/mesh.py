"""The device mesh, and the way between host arrays and global device arrays.

Axes: `data` replicates parameters, `fsdp` shards parameters and optimizer state (ZeRO-3), `tensor`
shards the inside of a layer. A batch is split over `data` and `fsdp` together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from encoders.errors import ConfigError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(
    data: int = 1, fsdp: int = -1, tensor: int = 1, *, devices: list[jax.Device] | None = None
) -> Mesh:
    """A mesh of all devices; one axis may be -1 and takes what the others leave.

    Raises:
      ConfigError: more than one -1, a size below 1, or a product that is not the device count.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ConfigError(
            f"hardware.mesh: sizes must be at least 1, and one of them may be -1, got {sizes}."
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        raise ConfigError(
            f"hardware.mesh: {sizes} needs {fixed}{' times something' if free else ''} devices, "
            f"but there are {len(devices)}."
        )
    return Mesh(np.asarray(devices).reshape(tuple(sizes.values())), AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 over `data` and `fsdp`; every other axis whole on each device."""
    return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def to_device(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as global arrays: each [local B, ...] becomes [B, ...]."""
    sharding = batch_sharding(mesh)
    return {
        key: jax.make_array_from_process_local_data(sharding, np.asarray(value))
        for key, value in batch.items()
    }


def to_host(tree: Any) -> Any:
    """Global arrays as whole numpy arrays on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
