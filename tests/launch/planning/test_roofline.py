"""Which axis a collective runs over, and how long that takes."""

import types

import numpy as np
import pytest
from jax.sharding import Mesh

from encoders.parallel.chips import CHIPS, chip
from launch.planning import roofline

SHAPE = {"dcn": 2, "data": 1, "fsdp": 4, "tensor": 2, "sequence": 1}
V5E, H200 = CHIPS["TPU v5 lite"], CHIPS["NVIDIA H200"]


@pytest.fixture
def mesh():
    devices = np.empty((2, 1, 4, 2, 1), object)
    for place in np.ndindex(devices.shape):
        devices[place] = types.SimpleNamespace(coords=(place[2], place[3], 0))
    return types.SimpleNamespace(shape=SHAPE, devices=devices, spec=Mesh)


@pytest.mark.parametrize(
    "group, axes",
    [
        ((0, 1), ("tensor",)),
        ((0, 2, 4, 6), ("fsdp",)),
        ((0, 2), ("fsdp",)),
        ((0, 8), ("dcn",)),
        (tuple(range(16)), ("dcn", "fsdp", "tensor")),
    ],
)
def test_groups_are_axes_of_the_mesh(group, axes):
    assert roofline.axes_of([group], SHAPE) == axes


def test_an_axis_has_the_links_of_the_dimensions_it_spans(mesh):
    seconds, network = roofline.duration("all-gather", 400e9, ("fsdp",), mesh, V5E)
    assert network == "interconnect"
    assert seconds == pytest.approx(400e9 * 3 / 4 / 100e9)
    both, _ = roofline.duration("all-gather", 400e9, ("fsdp", "tensor"), mesh, V5E)
    assert both == pytest.approx(400e9 * 7 / 8 / 200e9)


def test_between_slices_each_chip_moves_its_share_only(mesh):
    seconds, network = roofline.duration("all-reduce", 80e9, ("dcn", "fsdp"), mesh, V5E)
    assert network == "network"
    assert seconds == pytest.approx(2 * (80e9 / 4) / 2 / V5E.network)


def test_an_axis_that_leaves_its_node_takes_the_slow_network(mesh):
    _, near = roofline.duration("all-gather", 1e9, ("fsdp",), mesh, H200)
    _, far = roofline.duration("all-gather", 1e9, ("dcn",), mesh, H200)
    assert (near, far) == ("interconnect", "network")


def test_the_slowest_part_decides():
    bound = roofline.bound(197e12, 819e9 / 2, [], V5E)
    assert (bound.step, bound.limit) == (1.0, "compute")


def test_v5p_is_what_jax_calls_tpu_v5():
    assert chip("TPU v5").flops == chip("TPU v5p").flops == 459e12
    assert chip("TPU v5 lite").flops == 197e12
    assert chip("cpu") is None
