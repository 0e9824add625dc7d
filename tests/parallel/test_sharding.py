import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from encoders.errors import ConfigError
from encoders.parallel.mesh import batch_sharding, make_mesh
from encoders.parallel.sharding import (
    batch_major_activations,
    like_parameters,
    named,
    parameter_specs,
)


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


PARAMS = {
    "encoder": {
        "blocks_0": {
            "attention": {"query": {"kernel": shape(48, 48), "bias": shape(48)}},
            "mlp": {"fc2": {"kernel": shape(96, 48)}},
        },
        "blocks": {"mlp": {"fc1": {"kernel": shape(12, 48, 96), "bias": shape(12, 96)}}},
        "norm": {"scale": shape(7)},
    }
}


def test_fsdp_takes_the_largest_axis_that_divides_and_never_the_layer_axis():
    specs = parameter_specs(PARAMS, make_mesh(fsdp=4, data=2), min_size=1)["encoder"]
    assert specs["blocks_0"]["mlp"]["fc2"]["kernel"] == P("fsdp")
    assert specs["blocks"]["mlp"]["fc1"]["kernel"] == P(None, None, "fsdp")
    assert specs["norm"]["scale"] == P()  # 7 does not divide: whole


def test_small_arrays_stay_whole():
    specs = parameter_specs(PARAMS, make_mesh(), min_size=48 * 48)["encoder"]
    assert specs["blocks_0"]["attention"]["query"]["bias"] == P()
    assert specs["blocks_0"]["attention"]["query"]["kernel"] == P("fsdp")


def test_tensor_rules_are_aligned_to_the_right_and_fsdp_takes_what_is_left():
    specs = parameter_specs(PARAMS, make_mesh(fsdp=4, tensor=2), min_size=1)["encoder"]
    attention = specs["blocks_0"]["attention"]["query"]
    assert attention == {"kernel": P("fsdp", "tensor"), "bias": P("tensor")}
    assert specs["blocks"]["mlp"]["fc1"]["kernel"] == P(None, "fsdp", "tensor")
    assert specs["blocks_0"]["mlp"]["fc2"]["kernel"] == P("tensor", "fsdp")


def test_a_tensor_rule_that_matches_nothing_is_an_error():
    with pytest.raises(ConfigError, match=r"tensor_rules: rule 'typo.*' matches no path"):
        parameter_specs(PARAMS, make_mesh(tensor=2), [("typo.*", ("tensor",))])


def test_copies_of_the_parameters_follow_them_and_the_rest_is_replicated():
    mesh = make_mesh()
    specs = parameter_specs(PARAMS, mesh, min_size=1)
    state = {"mu": PARAMS, "count": shape(), "encoder": {"norm": {"scale": shape(3)}}}
    found = like_parameters(state, PARAMS, specs)
    assert found["mu"] == specs
    assert found["count"] == P()
    assert found["encoder"]["norm"]["scale"] == P()  # same path, another shape


def test_activations_keep_their_rows_on_the_batch_axes():
    mesh = make_mesh(fsdp=8)
    model = nn.Sequential([nn.Dense(64), nn.Dense(64)])
    x = jnp.ones((16, 4, 64))
    params = model.init(jax.random.key(0), x)
    placed = jax.device_put(params, named(mesh, parameter_specs(params, mesh, min_size=1)))

    def apply(params, x):
        with batch_major_activations(mesh, x.shape[0]):
            return model.apply(params, x)

    out = jax.jit(apply)(placed, jax.device_put(x, batch_sharding(mesh)))
    assert out.sharding.is_equivalent_to(NamedSharding(mesh, P(("dcn", "data", "fsdp"))), out.ndim)
    np.testing.assert_allclose(out, model.apply(params, x), atol=1e-5)
