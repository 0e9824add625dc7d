"""Images that share rows: the loss and gradients of images that have a row each."""

import functools

import chex
import jax
import numpy as np
import pytest

from encoders.config import build
from encoders.errors import ConfigError
from encoders.models import MODELS
from encoders.objectives import OBJECTIVES
from encoders.parallel.mesh import make_mesh
from tests.objectives.stepping import one_step

PAIRS, EACH, LENGTH, ROW, LONGEST = 24, 3, 5, 24, 9
SIZE = {"width": 16, "depth": 1, "mlp_dim": 20, "num_heads": 2}
MODEL = {
    "name": "towers",
    "image": {
        "name": "vit", **SIZE, "patch_size": 2, "class_token": False, "pool": "map",
        "position_grid": (3, 3), "position_resize": "bilinear",
    },
    "text": {"name": "clip_text", **SIZE, "vocab_size": 23, "max_length": LENGTH},
    "embedding_dim": 8,
    "image_projection": "linear",
    "text_projection": "linear",
    "logit_bias": -3.0,
}  # fmt: skip


@functools.cache
def objective(name, duplicates=False):
    encoder = build(MODELS, MODEL, "model")
    fields = {"duplicates": True} if duplicates else {}
    return build(OBJECTIVES, {"name": name, **fields}, "objective", encoder=encoder)


@functools.cache
def batches():
    """The same pairs with a row for each image, and with one for three; one pair is padding."""
    rng = np.random.default_rng(0)
    grids = rng.integers(1, 4, (PAIRS, 2)).astype(np.int32)
    grids[1::EACH] = np.minimum(grids[1::EACH], 2)  # so that three are no more than a row
    images = [rng.normal(size=(h * w, 12)).astype(np.float32) for h, w in grids]
    ids = rng.integers(1, 23, (PAIRS, LENGTH)).astype(np.int32)
    ids[7] = ids[2]
    texts = {"ids": ids, "segments": np.ones_like(ids), "valid": np.arange(PAIRS) != 13}

    def rows(count, length):
        patches = np.full((PAIRS // count, length, 12), 7.0, np.float32)
        for row in range(len(patches)):
            together = np.concatenate(images[row * count : (row + 1) * count])
            patches[row, : len(together)] = together
        return {"image": patches, "row": np.arange(len(patches), dtype=np.int32)}

    padded = {**rows(1, LONGEST), "shapes": grids, **texts}
    shared = {"shapes": grids, **texts}
    shared = {k: x.reshape(PAIRS // EACH, EACH, *x.shape[1:]) for k, x in shared.items()}
    return padded, {**rows(EACH, ROW), **shared}


@functools.cache
def params():
    module, (padded, _) = objective("sigmoid_contrast"), batches()
    shapes = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), padded)
    rng = np.random.default_rng(2)
    made = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype("f4"), shapes["params"])
    made["encoder"]["logit_scale"] = np.float32(2.0)
    made["encoder"]["logit_bias"] = np.float32(-3.0)
    return made


@pytest.mark.parametrize(
    "name, duplicates, meshes",
    [
        ("softmax_contrast", True, [({"data": 8, "fsdp": 1}, 1)]),
        ("sigmoid_contrast", False, [({}, 1), ({"fsdp": 4}, 2)]),
    ],
)
def test_images_that_share_rows_are_trained_as_those_that_do_not(name, duplicates, meshes):
    module, (padded, packed) = objective(name, duplicates), batches()

    def loss(params):
        outcome = module.apply({"params": params}, padded, train=True)
        return outcome.loss / outcome.weight, outcome

    (_, expected), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(params())
    assert expected.weight == PAIRS - 1
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(slopes)) > 1e-3
    for sizes, parts in meshes:
        count = int(np.prod([*sizes.values()]))
        mesh = make_mesh(**sizes, devices=jax.devices()[:count])
        metrics, grads = one_step(module, params(), packed, mesh, parts)
        chex.assert_trees_all_close(grads, slopes, rtol=0, atol=1e-5)
        assert metrics["loss"][1] == expected.weight
        np.testing.assert_allclose(metrics["loss"][0], expected.loss, rtol=1e-5)
        for metric in ("image_to_text", "text_to_image"):
            assert metrics[metric] == expected.metrics[metric]
        patches = int(padded["shapes"].prod(-1).sum())
        assert expected.metrics["padding"] == (PAIRS * LONGEST - patches, PAIRS * LONGEST)
        assert metrics["padding"] == (PAIRS // EACH * ROW - patches, PAIRS // EACH * ROW)


def test_a_place_without_an_image_counts_nowhere():
    module, (_, packed) = objective("sigmoid_contrast"), batches()
    loss = jax.jit(lambda batch: module.apply({"params": params()}, batch).loss)
    without = {name: x.copy() for name, x in packed.items()}
    without["shapes"][4, 2] = 0  # of pair 14, the last of its row
    marked = {name: x.copy() for name, x in packed.items()}
    marked["valid"][4, 2] = False
    np.testing.assert_allclose(loss(without), loss(marked), rtol=1e-6)


def test_what_reads_the_tokens_of_an_image_wants_it_alone():
    with pytest.raises(ConfigError, match="ContrastCaption reads the tokens of images that have"):
        jax.eval_shape(objective("contrast_caption").init, jax.random.key(0), batches()[1])
