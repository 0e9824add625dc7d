"""MAE: parity with transformers, exact masks, no leaks, sums that add up."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from encoders import config
from encoders.errors import ConfigError
from encoders.models import MODELS
from encoders.models.vit import ViT
from encoders.objectives import OBJECTIVES
from encoders.objectives.masked_image import MaskedImage, MaskedImageDecoder

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def tiny():
    """An objective on 4x6 patches, its variables, a batch of six, and its jitted loss."""
    encoder = ViT(
        patch_size=4, width=16, depth=2, mlp_dim=32, num_heads=2, positions="sincos2d", pool="none"
    )
    decoder = MaskedImageDecoder(width=8, depth=1, num_heads=2, mlp_ratio=2.0)
    objective = MaskedImage(encoder, decoder=decoder)
    batch = {
        "image": jax.random.normal(jax.random.key(0), (6, 16, 24, 3)),
        "row": jnp.arange(6, dtype=jnp.int32),
    }
    variables = jax.jit(objective.init)(jax.random.key(1), batch)

    def loss(params, batch, key):
        out = objective.apply({"params": params}, batch, train=True, rngs={"corrupt": key})
        return out.loss, out

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return objective, variables, batch, step


def nested(arrays, prefix):
    """The nested dict of the arrays whose names start with prefix/."""
    return unflatten_dict(
        {name: value for name, value in arrays.items() if name.startswith(f"{prefix}/")}, sep="/"
    )[prefix]


@pytest.mark.parametrize("name", ["hf_mae", "hf_mae_wide"])
def test_matches_transformers(name):
    arrays = dict(np.load(GOLDEN / f"vision_{name}.npz"))
    fields = json.loads(str(arrays["fields"]))
    encoder = config.build(MODELS, {"name": "vit", **fields.pop("encoder")}, "model")
    section = {"name": "masked_image", **fields}
    objective = config.build(OBJECTIVES, section, "objective", encoder=encoder)
    images, noise = arrays["images"], arrays["noise"]

    def loss(params):
        variables = {"params": params}
        out = objective.apply(variables, {"image": images}, noise, method="loss")
        prediction, masked = objective.apply(variables, images, noise, method="predict")
        return out.loss / out.weight, (out, prediction, masked)

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (out, prediction, masked)), gradients = grad(nested(arrays, "params"))
    expected = nested(arrays, "outputs")
    np.testing.assert_allclose(value, expected["loss"], rtol=0, atol=1e-5)
    assert out.weight == expected["mask"].sum()
    logits = np.take_along_axis(expected["logits"], np.asarray(masked)[..., None], axis=1)
    np.testing.assert_allclose(prediction, logits, rtol=0, atol=2e-5)
    mask = np.zeros_like(expected["mask"])
    np.put_along_axis(mask, np.asarray(masked), 1, axis=1)
    np.testing.assert_array_equal(mask, expected["mask"])
    theirs = nested(arrays, "gradients")
    assert jax.tree.structure(theirs) == jax.tree.structure(gradients)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), gradients, theirs
    )


@pytest.mark.parametrize(
    "ratio, patches, visible", [(0.75, 196, 49), (0.9, 10, 1), (0.4, 25, 15), (0.6, 7, 2)]
)
def test_mask_count_is_exact(ratio, patches, visible):
    objective = MaskedImage(ViT("Ti/16"), mask_ratio=ratio)
    assert objective.num_visible(patches) == visible


@pytest.mark.parametrize("ratio", [0.0, 0.99, 1.0])
def test_a_ratio_that_leaves_nothing_is_an_error(ratio):
    with pytest.raises(ConfigError, match="mask_ratio"):
        MaskedImage(ViT("Ti/16"), mask_ratio=ratio).num_visible(16)


def test_masks_differ_between_examples_and_steps_but_not_with_the_split(tiny):
    objective, variables, batch, _ = tiny

    noise_of = jax.jit(functools.partial(objective.apply, method="noise"))

    def noise(batch, seed):
        return noise_of(variables, batch, rngs={"corrupt": jax.random.key(seed)})

    whole = noise(batch, 0)
    assert len(np.unique(np.argsort(whole, axis=1)[:, :6], axis=0)) == 6
    assert not np.array_equal(whole, noise(batch, 1))
    part = jax.tree.map(lambda x: x[1::2], batch)
    np.testing.assert_array_equal(noise(part, 0), whole[1::2])
    # Evaluation needs no random stream and always draws the same masks.
    fixed = noise_of(variables, batch)
    np.testing.assert_array_equal(fixed, noise_of(variables, batch))


def test_predictions_do_not_depend_on_masked_pixels(tiny):
    objective, variables, batch, _ = tiny
    rngs = {"corrupt": jax.random.key(3)}
    noise = jax.jit(functools.partial(objective.apply, method="noise"))(variables, batch, rngs=rngs)
    predict = jax.jit(lambda images: objective.apply(variables, images, noise, method="predict"))
    prediction, masked = predict(batch["image"])
    hidden = np.zeros((6, 24), bool)
    np.put_along_axis(hidden, np.asarray(masked), True, axis=1)
    where = hidden.reshape(6, 4, 1, 6, 1, 1).repeat(4, 2).repeat(4, 4).reshape(6, 16, 24, 1)
    changed, _ = predict(jnp.where(where, 1e6, batch["image"]))
    np.testing.assert_array_equal(prediction, changed)
    # And they do depend on every example's visible ones.
    moved, _ = predict(jnp.where(where, batch["image"], batch["image"] + 1))
    assert np.all(np.abs(moved - prediction).max((1, 2)) > 1e-4)


def test_micro_batches_add_up_to_the_whole(tiny):
    _, variables, batch, step = tiny
    key = jax.random.key(5)
    (loss, whole), gradients = step(variables["params"], batch, key)
    assert whole.weight == 6 * 18
    for count in (2, 3):
        parts = [
            step(variables["params"], {name: x[m::count] for name, x in batch.items()}, key)
            for m in range(count)
        ]
        np.testing.assert_allclose(sum(part[0][0] for part in parts), loss, rtol=1e-6)
        assert sum(part[0][1].weight for part in parts) == whole.weight
        total = jax.tree.map(lambda *leaves: sum(leaves), *(part[1] for part in parts))
        for a, b in zip(jax.tree.leaves(total), jax.tree.leaves(gradients), strict=True):
            np.testing.assert_allclose(a / whole.weight, b / whole.weight, rtol=0, atol=1e-6)


def test_padding_counts_in_nothing(tiny):
    objective, variables, batch, _ = tiny
    evaluate = jax.jit(objective.apply)
    real = evaluate(variables, jax.tree.map(lambda x: x[:4], batch))
    out = evaluate(variables, {**batch, "valid": jnp.arange(6) < 4})
    np.testing.assert_allclose(out.loss, real.loss, rtol=1e-6)
    assert out.weight == real.weight == 4 * 18


def test_reconstruct_keeps_visible_patches_and_fills_the_rest(tiny):
    objective, variables, batch, _ = tiny
    reconstruct = jax.jit(functools.partial(objective.apply, method="reconstruct"))
    pictures = reconstruct(variables, batch)
    target, masked = np.asarray(pictures["target"]), np.asarray(pictures["masked"])
    np.testing.assert_array_equal(target, batch["image"])
    gone = (masked == 0).all(-1)
    assert gone.mean() == 0.75
    np.testing.assert_array_equal(masked[~gone], target[~gone])
    prediction = np.asarray(pictures["prediction"])
    np.testing.assert_array_equal(prediction[~gone], target[~gone])
    # A prediction is in its true patch's scale, so an untrained one already has the right mean.
    assert np.abs(prediction[gone] - target[gone]).max() > 0.1


def test_encoding_mask_tokens_is_the_same_task_for_more_work(tiny):
    objective, _, batch, _ = tiny
    baseline = objective.clone(encode_mask_tokens=True)
    variables = jax.jit(baseline.init)(jax.random.key(1), batch)
    out = jax.jit(baseline.apply)(variables, batch)
    assert out.weight == 6 * 18
    assert np.isfinite(out.loss)
    noise = jax.jit(functools.partial(baseline.apply, method="noise"))(variables, batch)
    predict = jax.jit(lambda images: baseline.apply(variables, images, noise, method="predict"))
    one, masked = predict(batch["image"])
    hidden = np.zeros((6, 24), bool)
    np.put_along_axis(hidden, np.asarray(masked), True, axis=1)
    where = hidden.reshape(6, 4, 1, 6, 1, 1).repeat(4, 2).repeat(4, 4).reshape(6, 16, 24, 1)
    two, _ = predict(jnp.where(where, 9.0, batch["image"]))
    np.testing.assert_array_equal(one, two)


def test_flops_are_the_papers():
    """Section 3's claim: with a light decoder the encoder's savings are most of the whole."""
    shared = {"decoder": MaskedImageDecoder(width=512, depth=8, num_heads=16)}
    light = MaskedImage(ViT("L/16"), **shared).flops((224, 224))
    full = MaskedImage(ViT("L/16"), encode_mask_tokens=True, **shared).flops((224, 224))
    assert 3.1 < full / light < 3.4
