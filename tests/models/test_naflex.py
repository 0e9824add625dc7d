"""Images at their own aspect ratio: packed and padded rows equal images one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from encoders.config import build
from encoders.data import ImageTextPreprocessing, Preprocessing, TextPreprocessing
from encoders.errors import ConfigError
from encoders.layers.naflex import layout
from encoders.layers.patch import patchify
from encoders.layers.position import positions_at, resize_positions
from encoders.models import MODELS
from encoders.models.vit import ViT
from encoders.objectives import OBJECTIVES

FIELDS = {"width": 12, "depth": 1, "mlp_dim": 16, "num_heads": 3, "patch_size": 4}
GRID = (3, 4)
SHAPES = ((3, 4), (2, 5), (4, 2))
LENGTH = 14


def make(**fields):
    return ViT("S", **{**FIELDS, "class_token": False, "position_resize": "bilinear", **fields})


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(1, 4 * h, 4 * w, 3)).astype(np.float32) for h, w in SHAPES]


def rows(images, groups, length):
    """Patches [B, N, P] with images of a group in one row, and shapes [B, S, 2]."""
    most = max(map(len, groups))
    patches = np.full((len(groups), length, 48), 9.0, np.float32)  # padding is not read
    shapes = np.zeros((len(groups), most, 2), np.int32)
    for row, group in enumerate(groups):
        parts = np.concatenate([patchify(jnp.asarray(images[i]), (4, 4))[0] for i in group])
        patches[row, : len(parts)] = parts
        shapes[row, : len(group)] = [SHAPES[i] for i in group]
    return patches, shapes


@pytest.mark.parametrize("pool", ["map", "mean"])
def test_rows_of_patches_equal_images_one_by_one(images, pool):
    model = make(pool=pool, position_grid=GRID)
    variables = jax.jit(model.init)(jax.random.key(0), images[0])
    assert variables["params"]["positions"].shape == (*GRID, 12)
    apply = jax.jit(lambda x, shapes=None: model.apply(variables, x, shapes=shapes))
    alone = [apply(image) for image in images]
    patches, shapes = rows(images, [(i,) for i in range(3)], LENGTH)
    out = apply(patches, shapes[:, 0])
    np.testing.assert_array_equal(out.mask.sum(1), [h * w for h, w in SHAPES])
    for i, single in enumerate(alone):
        count = single.tokens.shape[1]
        np.testing.assert_allclose(out.tokens[i, :count], single.tokens[0], atol=1e-5)
        np.testing.assert_allclose(out.pooled[i], single.pooled[0], atol=1e-5)
    # Several in a row do not see each other.
    patches, shapes = rows(images, [(0, 2), (1,)], 22)
    packed = apply(patches, shapes)
    assert packed.pooled.shape == (2, 2, 12)
    for row, group in enumerate([(0, 2), (1,)]):
        for place, i in enumerate(group):
            np.testing.assert_allclose(packed.pooled[row, place], alone[i].pooled[0], atol=1e-5)


def test_layout_says_whose_patches_are_whose():
    found = layout(jnp.array([[[2, 3], [0, 0], [1, 2]]]), 10)
    assert found.segments.tolist() == [[1, 1, 1, 1, 1, 1, 3, 3, 0, 0]]
    assert found.places[0, :8].tolist() == [
        [0, 0],
        [0, 1],
        [0, 2],
        [1, 0],
        [1, 1],
        [1, 2],
        [0, 0],
        [0, 1],
    ]
    assert found.sizes[0, 5].tolist() == [2, 3]
    assert layout(jnp.array([[[2, 3]]]), 4).segments.tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize("method", ["antialias", "bilinear"])
@pytest.mark.parametrize("grid", [(3, 4), (2, 9), (5, 1)])
def test_positions_are_those_of_the_resized_grid(method, grid):
    table = np.random.default_rng(1).normal(size=(3, 4, 5)).astype(np.float32)
    found = layout(jnp.array([[grid]]), 20)
    ours = positions_at(jnp.asarray(table), found.places, found.sizes, method)
    want = np.asarray(resize_positions(table, grid, method)).reshape(-1, 5)
    np.testing.assert_allclose(ours[0, : len(want)], want, atol=1e-5)


def test_dropped_tokens_are_real_ones(images):
    model = make(pool="mean", position_grid=GRID, token_drop=0.5)
    patches, shapes = rows(images, [(0,), (2,)], 18)

    @jax.jit
    def encode(key):
        given = {"shapes": shapes[:, 0], "train": True, "rngs": {"params": key, "dropout": key}}
        out, _ = model.init_with_output(given.pop("rngs"), patches, **given)
        return out.mask

    mask = encode(jax.random.key(0))
    assert mask.sum(1).tolist() == [9, 8]  # of 12 and 8 patches in rows of 18


def test_contrast_takes_patches_and_their_shapes():
    text = {"name": "clip_text", "width": 12, "depth": 1, "mlp_dim": 16, "num_heads": 3}
    image = {"name": "vit", "variant": "S", **FIELDS, "class_token": False, "pool": "map"}
    image |= {"position_grid": GRID, "position_resize": "bilinear"}
    towers = build(MODELS, {"name": "towers", "image": image, "text": text}, "model")
    objective = build(OBJECTIVES, {"name": "sigmoid_contrast"}, "objective", encoder=towers)
    images = Preprocessing(max_patches=LENGTH, patch_size=4)
    batch = ImageTextPreprocessing(TextPreprocessing("none", max_length=5), images).example_batch(2)
    batch["image"] = images.normalize(batch["image"])
    outcome = jax.eval_shape(
        lambda key: objective.init_with_output(key, batch)[0].loss, jax.random.key(0)
    )
    assert outcome.shape == ()


def test_what_does_not_fit_is_refused(images):
    patches, shapes = rows(images, [(0, 1)], 22)
    for fields, message in (
        ({"positions": "sincos2d"}, "have 'learned' ones or none, not 'sincos2d'"),
        ({"class_token": True, "pool": "cls"}, "images that share a row have none"),
        ({"position_resize": "plain", "position_grid": GRID}, "take 'antialias' or 'bilinear'"),
        ({}, "model.position_grid: images of many shapes do not say"),
    ):
        model = make(**{"pool": "mean", **fields})
        with pytest.raises(ConfigError, match=message):
            jax.eval_shape(
                lambda x, s, m=model: m.init(jax.random.key(0), x, shapes=s), patches, shapes
            )
