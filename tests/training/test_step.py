"""One step gives the same loss and gradients on every mesh, for any number of micro-batches."""

import functools
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from encoders import rules
from encoders.data import Preprocessing
from encoders.models.vit import ViT
from encoders.objectives.classification import Classification
from encoders.objectives.masked_image import MaskedImage, MaskedImageDecoder
from encoders.parallel.mesh import make_mesh, to_device
from encoders.parallel.sharding import named, parameter_specs
from encoders.training.state import TrainState
from encoders.training.step import cast_params, make_step

ROWS = 16
PREPROCESSING = Preprocessing(image_size=(16, 24))
# Five heads of width 8 and ten patches' worth of odd shapes: nothing divides by everything.
ENCODER = ViT(width=40, depth=2, mlp_dim=80, num_heads=5, patch_size=8, pool="mean", scan=True)
OBJECTIVES = {
    "masked_image": MaskedImage(
        encoder=ENCODER, mask_ratio=0.5, decoder=MaskedImageDecoder(32, 1, 4, parent=None)
    ),
    "classification": Classification(encoder=ENCODER, num_classes=5, mixup=0.8, cutmix=1.0),
    "regularised": Classification(
        encoder=ENCODER.copy(dropout=0.2, drop_path=0.5, token_drop=0.4), num_classes=5, mixup=0.8
    ),
}
# Each axis; the tests below take data x fsdp x tensor and dcn x tensor x sequence.
SIZES = [
    dict(fsdp=8),
    dict(tensor=8),
    dict(sequence=8),
    dict(data=4, fsdp=1, sequence=2),
    dict(dcn=2, fsdp=2, sequence=2),
]


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (ROWS, 16, 24, 3), np.uint8),
        "label": rng.integers(0, 5, ROWS).astype(np.int32),
        "row": np.arange(ROWS, dtype=np.int32),
    }


@functools.cache
def initial(name):
    keys = {k: jax.random.key(i) for i, k in enumerate(("params", "corrupt", "dropout"))}
    images = PREPROCESSING.normalize(batch()["image"])
    init = functools.partial(OBJECTIVES[name].init, train=True)
    shapes = jax.eval_shape(init, keys, {**batch(), "image": images})["params"]
    # A fresh head is zero and has no gradient to give below it; random weights have.
    return rules.map_with_path(
        lambda path, leaf: (
            np.float32(path.endswith("scale"))
            + 0.1 * np.random.default_rng(leaf.size).standard_normal(leaf.shape, np.float32)
        ),
        shapes,
    )


def run(name, mesh, micro_batches=1, dtype=jnp.float32):
    """Loss and gradients of one step."""
    params = initial(name)
    optimizer = optax.sgd(1.0)  # so that the change of the parameters is the gradient
    places = named(mesh, parameter_specs(params, mesh, min_size=1))
    placed = jax.device_put(params, places)
    state = TrainState(jnp.int32(3), placed, {}, optimizer.init(placed))
    step = make_step(
        OBJECTIVES[name],
        optimizer,
        optax.constant_schedule(1.0),
        seed=7,
        normalize=PREPROCESSING.normalize,
        mesh=mesh,
        micro_batches=micro_batches,
        compute_dtype=dtype,
    )
    state, metrics = jax.jit(step)(state, to_device(batch(), mesh))
    grads = jax.tree.map(lambda old, new: old - np.asarray(new), params, state.params)
    return metrics["loss"][0] / metrics["loss"][1], grads, metrics


@functools.cache
def reference(name):
    return run(name, make_mesh(devices=jax.devices()[:1]))


@pytest.mark.parametrize("sizes", SIZES)
def test_every_mesh_gives_the_loss_and_gradients_of_one_device(sizes):
    expected_loss, expected, _ = reference("masked_image")
    loss, grads, metrics = run("masked_image", make_mesh(**sizes))
    np.testing.assert_allclose(loss, expected_loss, atol=1e-5)
    chex.assert_trees_all_close(grads, expected, atol=1e-5)
    assert metrics["finite"].all()


def test_random_draws_do_not_depend_on_the_mesh():
    expected_loss, expected, _ = reference("regularised")
    loss, grads, _ = run("regularised", make_mesh(dcn=2, tensor=2, sequence=2))
    np.testing.assert_allclose(loss, expected_loss, atol=1e-5)
    chex.assert_trees_all_close(grads, expected, atol=1e-5)


@pytest.mark.parametrize("name, micro_batches", [("masked_image", 4), ("classification", 2)])
def test_micro_batches_give_the_loss_and_gradients_of_the_whole_batch(name, micro_batches):
    expected_loss, expected, whole = reference(name)
    loss, grads, metrics = run(name, make_mesh(data=2, fsdp=2, tensor=2), micro_batches)
    np.testing.assert_allclose(loss, expected_loss, atol=1e-5)
    chex.assert_trees_all_close(grads, expected, atol=1e-5)
    assert float(metrics["loss"][1]) == float(whole["loss"][1])
    assert max(np.abs(g).max() for g in jax.tree.leaves(expected)) > 1e-3


def test_a_bfloat16_step_keeps_float32_parameters_and_is_close():
    expected_loss, _, _ = reference("masked_image")
    loss, grads, _ = run("masked_image", make_mesh(), dtype=jnp.bfloat16)
    assert loss.dtype == jnp.float32
    chex.assert_tree_all_finite(grads)
    np.testing.assert_allclose(loss, expected_loss, rtol=0.02)
    cast = cast_params(
        {"norm1": {"scale": jnp.ones(2)}, "fc1": {"kernel": jnp.ones((2, 2))}}, "bfloat16"
    )
    assert cast["norm1"]["scale"].dtype == jnp.float32
    assert cast["fc1"]["kernel"].dtype == jnp.bfloat16


def test_every_norm_and_codebook_of_the_shipped_experiments_stays_float32():
    """Whose parameters are those listed in tests/golden/configs."""
    golden = pathlib.Path(__file__).parents[1] / "golden" / "configs"
    lines = [line for path in golden.glob("*.txt") for line in path.read_text().splitlines()]
    names = {line.split()[0] for line in lines if " lr " in line and "/" in line}
    cast = cast_params({name: np.zeros(1, np.float32) for name in names}, jnp.bfloat16)
    kept = {name for name, leaf in cast.items() if leaf.dtype == np.float32}
    norms = {name for name in names if "norm" in name.split("/")[-2]}
    assert {"encoder/norm_features/scale", "encoder/convolutions/norm_0/bias"} < norms
    assert "encoder/blocks_0/norm_first_mlp/scale" in norms
    assert kept >= norms
    assert {name.split("/")[-1] for name in kept - norms} == {
        "codebook", "logit_scale", "logit_bias"
    }  # fmt: skip
