import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from encoders import rules
from encoders.errors import ConfigError
from encoders.models.vit import ViT
from encoders.parallel.mesh import batch_sharding, make_mesh
from encoders.parallel.sharding import (
    TENSOR_RULES,
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


@pytest.mark.parametrize("texts", [1, 3])
def test_activations_keep_their_rows_on_the_batch_axes(texts):
    mesh = make_mesh(fsdp=8)
    model = nn.Sequential([nn.Dense(64), nn.Dense(64)])
    x = jnp.ones((16 * texts, 4, 64))
    params = model.init(jax.random.key(0), x)
    placed = jax.device_put(params, named(mesh, parameter_specs(params, mesh, min_size=1)))

    def apply(params, x):
        with batch_major_activations(mesh, 16):
            return model.apply(params, x)

    out = jax.jit(apply)(placed, jax.device_put(x, batch_sharding(mesh)))
    assert out.sharding.is_equivalent_to(NamedSharding(mesh, P(("dcn", "data", "fsdp"))), out.ndim)
    np.testing.assert_allclose(out, model.apply(params, x), atol=1e-5)


@pytest.mark.parametrize("tokens", [80, 81])
def test_tokens_are_split_in_blocks_and_parameters_gradients_summed_over_them(tokens):
    encoder = ViT(
        width=48, depth=2, mlp_dim=112, num_heads=4, patch_size=4, pool="mean", scan=True,
        class_token=tokens == 81,
    )  # fmt: skip
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 32, 40, 3)))

    def compiled(mesh):
        def loss(variables, images):
            with batch_major_activations(mesh, 4):
                return jnp.square(encoder.apply(variables, images).pooled).sum()

        images = jax.ShapeDtypeStruct((4, 32, 40, 3), jnp.float32, sharding=batch_sharding(mesh))
        return jax.jit(jax.grad(loss)).lower(shapes, images).compile()

    one = compiled(make_mesh(devices=jax.devices()[:1]))
    split = compiled(make_mesh(fsdp=1, sequence=8))
    sizes = [c.memory_analysis().temp_size_in_bytes for c in (one, split)]
    assert sizes[1] < 0.2 * sizes[0]
    hidden = [re.findall(r"f32\[4,(\d+),112\]", c.as_text()) for c in (one, split)]
    assert [set(found) for found in hidden] == [{str(tokens)}, {str(-(-tokens // 8))}]
    # A block gathers keys and values, and those of the forward pass again in the backward one.
    assert 0 < len(re.findall(r" all-gather(?:-start)?\(", split.as_text())) <= 6
    assert " all-reduce" in split.as_text()


def test_between_parts_of_dcn_goes_only_the_shard_of_a_gradient():
    mesh = make_mesh(dcn=2, fsdp=4)
    model = nn.Dense(64)
    x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=batch_sharding(mesh))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    places = named(mesh, parameter_specs(shapes, mesh, min_size=1))
    assert places["params"]["kernel"].spec == P("fsdp")

    def loss(params, x):
        with batch_major_activations(mesh, 16):
            return jnp.square(model.apply(params, x)).sum()

    step = jax.jit(jax.grad(loss), in_shardings=(places, x.sharding), out_shardings=places)
    text = step.lower(shapes, x).compile().as_text()
    assert re.search(r"f32\[(64,16|16,64)\]\S* all-reduce\(", text)
    assert re.search(r"f32\[64,64\]\S* all-gather\(", text)


def test_networks_without_biases_can_be_split_by_tensors():
    """A rule that matches nothing is an error, so none may be for biases alone."""
    paths = ["blocks/attention/query/kernel", "blocks/mlp/fc2/kernel"]
    found = rules.match(TENSOR_RULES, paths, where="hardware.tensor_rules", default=())
    assert found == [("tensor",), ("tensor", None)]
