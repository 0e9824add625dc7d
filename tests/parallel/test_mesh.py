import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from encoders.errors import ConfigError
from encoders.parallel.mesh import (
    AXES,
    batch_sharding,
    batch_shards,
    local_rows,
    make_mesh,
    to_device,
    to_host,
)


@dataclasses.dataclass(frozen=True)
class Device:
    """What of a device decides where it lies."""

    id: int
    process_index: int = 0
    platform: str = "gpu"
    slice_index: int | None = None
    device_kind: str = "one of a cluster"


def cluster(slices, processes, each, platform="gpu"):
    """Devices of `processes` processes with `each` of them, in slices of as many processes."""
    return [
        Device(process * each + i, process, platform, process * slices // processes)
        for process in range(processes)
        for i in range(each)
    ]


def test_one_axis_is_inferred():
    shape = make_mesh(data=2, fsdp=-1, tensor=2).shape
    assert dict(shape) == {"dcn": 1, "data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}
    assert batch_shards(make_mesh(dcn=2, fsdp=-1, tensor=2)) == 4
    assert make_mesh(fsdp=1, sequence=-1).shape["sequence"] == 8


@pytest.mark.parametrize(
    "sizes, problem",
    [
        (dict(data=3), "data 3.* does not fit 8 devices; .* dcn 1, data 4, fsdp 2, tensor 1, s"),
        (dict(data=2, fsdp=2), "fsdp 2.* does not fit 8 devices; .* dcn 1, data 2, fsdp 4, tensor"),
        (dict(data=64), "the nearest that does is dcn 1, data 8, fsdp 1, tensor 1, sequence 1"),
        (dict(data=-1, fsdp=-1), "one of them may be -1"),
        (dict(tensor=0), "at least 1"),
    ],
)
def test_impossible_meshes_are_explained(sizes, problem):
    with pytest.raises(ConfigError, match=problem):
        make_mesh(**sizes)


# --- where the axes lie ---------------------------------------------------------------------------


def test_dcn_holds_whole_nodes():
    devices = cluster(4, 32, 1)  # four nodes with a process for each of their eight GPUs
    mesh = make_mesh(dcn=2, data=2, tensor=8, devices=devices[::-1])
    assert dict(mesh.shape) == {"dcn": 2, "data": 2, "fsdp": 1, "tensor": 8, "sequence": 1}
    nodes = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert (nodes == np.arange(4).reshape(2, 2, 1, 1, 1)).all()  # a tensor group is one node
    by_process = [dataclasses.replace(d, slice_index=None) for d in cluster(4, 4, 8)]
    inner = make_mesh(dcn=4, devices=by_process).devices.reshape(4, 8)
    assert all(len({d.process_index for d in part}) == 1 for part in inner)


@pytest.mark.parametrize(
    "devices, sizes, problem",
    [
        (cluster(3, 3, 8), dict(dcn=2), "24 devices in 3 nodes, which dcn must not cut; .* dcn 3,"),
        (
            cluster(4, 8, 4, "tpu"),
            dict(),
            "32 devices in 4 slices, which dcn counts; .* dcn 4, .*8",
        ),
        (cluster(4, 8, 4, "tpu"), dict(dcn=2, data=16, fsdp=1), "4 slices, which dcn counts"),
        (cluster(1, 2, 4, "tpu"), dict(dcn=2), "8 devices in 1 slice, which dcn counts; .* dcn 1,"),
        (cluster(2, 4, 4, "tpu")[:-1], dict(dcn=2), "15 devices in 2 slices; none does"),
    ],
)
def test_dcn_must_follow_the_slices(devices, sizes, problem):
    with pytest.raises(ConfigError, match=problem):
        make_mesh(**sizes, devices=devices)


def test_the_axes_of_a_slice_stay_in_it(monkeypatch):
    calls = []

    def layout(shape, devices, *, allow_split_physical_axes):
        calls.append((shape, allow_split_physical_axes))
        if not allow_split_physical_axes:
            raise NotImplementedError("needs a split")
        return np.asarray(devices)[::-1].reshape(shape)

    monkeypatch.setattr("jax.experimental.mesh_utils.create_device_mesh", layout)
    mesh = make_mesh(dcn=2, tensor=4, devices=cluster(2, 4, 4, "tpu"))
    assert [d.id for d in mesh.devices.flat] == [*range(7, -1, -1), *range(15, 7, -1)]
    assert calls == [((1, 2, 4, 1), False), ((1, 2, 4, 1), True)] * 2


def test_devices_without_a_known_layout_keep_their_order(monkeypatch, caplog):
    def layout(shape, devices, *, allow_split_physical_axes):
        raise NotImplementedError("one device per chip only")

    monkeypatch.setattr("jax.experimental.mesh_utils.create_device_mesh", layout)
    mesh = make_mesh(tensor=2, devices=cluster(1, 2, 4, "tpu")[::-1])
    assert [d.id for d in mesh.devices.flat] == list(range(8))
    assert "order of their numbers" in caplog.text


# --- rows -----------------------------------------------------------------------------------------


@st.composite
def meshes(draw):
    """Any mesh of at most 32 devices, of any number of processes, in any order."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 1, 2, 3, 4]), min_size=5, max_size=5)))
    while math.prod(shape) > 32:
        shape = tuple(max(1, size - 1) for size in shape)
    processes = draw(
        st.lists(st.integers(0, 4), min_size=math.prod(shape), max_size=math.prod(shape))
    )
    devices = [Device(number, process) for number, process in enumerate(processes)]
    grid = np.empty(len(devices), object)
    grid[:] = devices
    return Mesh(grid.reshape(shape), AXES)


@given(meshes(), st.integers(1, 3))
def test_processes_hold_the_rows_of_their_devices(mesh, per_shard):
    batch_size = batch_shards(mesh) * per_shard
    places = {device: where for where, device in np.ndenumerate(mesh.devices)}
    rows_at = np.arange(batch_size).reshape(*mesh.devices.shape[:3], per_shard)
    processes = {device.process_index for device in places}
    held = {process: local_rows(mesh, batch_size, process) for process in processes}
    for process, rows in held.items():
        needed = {
            row
            for device, where in places.items()
            if device.process_index == process
            for row in rows_at[where[:3]].tolist()
        }
        assert rows.tolist() == sorted(needed)  # replicas along tensor and sequence: the same
    assert set(itertools.chain(*(rows.tolist() for rows in held.values()))) == set(
        range(batch_size)
    )


def test_a_batch_that_does_not_divide_has_no_rows():
    with pytest.raises(ConfigError, match="12 is not divisible by 8 device shards"):
        local_rows(make_mesh(), 12)


@pytest.mark.parametrize("order", [range(8), (3, 1, 4, 0, 5, 7, 2, 6)])
def test_rows_are_split_in_order_and_come_back_whole(order):
    devices = np.asarray(jax.devices())[list(order)].reshape(2, 1, 2, 2, 1)
    mesh = Mesh(devices, AXES)
    rows = np.arange(8 * 3).reshape(8, 3)
    array = to_device({"x": rows, "flag": np.ones(8, bool)}, mesh)["x"]
    assert array.sharding.spec == P(("dcn", "data", "fsdp"))
    assert {shard.data.shape for shard in array.addressable_shards} == {(2, 3)}
    np.testing.assert_array_equal(to_host(array), rows)
    expected = jax.device_put(rows, batch_sharding(mesh))
    for mine, theirs in zip(array.addressable_shards, expected.addressable_shards, strict=True):
        assert mine.device == theirs.device
        np.testing.assert_array_equal(mine.data, theirs.data)


def test_one_part_of_a_batch_is_all_of_it():
    mesh = make_mesh(fsdp=1, tensor=8)
    array = to_device({"x": np.arange(3)}, mesh)["x"]
    assert all(shard.data.tolist() == [0, 1, 2] for shard in array.addressable_shards)
