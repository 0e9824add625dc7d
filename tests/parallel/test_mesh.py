import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from encoders.errors import ConfigError
from encoders.parallel.mesh import batch_shards, make_mesh, to_device, to_host


def test_one_axis_is_inferred():
    shape = make_mesh(data=2, fsdp=-1, tensor=2).shape
    assert dict(shape) == {"dcn": 1, "data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}
    assert batch_shards(make_mesh(data=2, fsdp=-1, tensor=2)) == 4


@pytest.mark.parametrize(
    "sizes, problem",
    [
        (dict(data=3), "data 3.* does not fit 8 devices; .* dcn 1, data 4, fsdp 2, tensor 1, s"),
        (dict(data=2, fsdp=2), "fsdp 2.* does not fit 8 devices; .* dcn 1, data 2, fsdp 4, tensor"),
        (dict(data=-1, fsdp=-1), "one of them may be -1"),
        (dict(tensor=0), "at least 1"),
    ],
)
def test_impossible_meshes_are_explained(sizes, problem):
    with pytest.raises(ConfigError, match=problem):
        make_mesh(**sizes)


def test_rows_are_split_in_order_and_come_back_whole():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    rows = np.arange(8 * 3).reshape(8, 3)
    array = to_device({"x": rows}, mesh)["x"]
    assert array.sharding.spec == P(("dcn", "data", "fsdp"))
    assert {shard.data.shape for shard in array.addressable_shards} == {(2, 3)}
    np.testing.assert_array_equal(to_host(array), rows)
    assert isinstance(array, jax.Array)
