"""Images with texts, spectrograms and depths: the formula, mesh and parts, and what is missing."""

import functools

import chex
import jax
import numpy as np
import pytest

from encoders.config import build
from encoders.data import PREPROCESSING, CorruptExample, build_transforms
from encoders.encoder import Encoder
from encoders.errors import ConfigError, DataError
from encoders.layers.patch import strided_patches
from encoders.loading import section_of
from encoders.models import MODELS
from encoders.objectives import OBJECTIVES
from encoders.pair import PairEncoder
from encoders.parallel.mesh import make_mesh
from tests.objectives.stepping import one_step

ROWS = 8
VIT = dict(name="vit", width=12, depth=1, mlp_dim=16, num_heads=2, patch_size=8)
TEXT = dict(VIT, name="clip_text", vocab_size=23, max_length=6)
del TEXT["patch_size"]
MODEL = dict(
    name="imagebind",
    image=VIT,
    text=TEXT,
    audio=dict(VIT, patch_stride=5),
    depth=VIT,
    embedding_dim=10,
    image_projection="linear",
    text_projection="linear",
    logit_scale=2.0,
)
KINDS = ("text", "audio", "depth")
AUDIO, DEPTH = (18, 23, 1), (16, 16, 1)


def objective(duplicates=False, **fields):
    module = build(MODELS, MODEL | fields, "model")
    section = {"name": "bind", "duplicates": duplicates}
    return build(OBJECTIVES, section, "objective", encoder=module)


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(ROWS, 16, 16, 3)).astype(np.float32),
        "audio": rng.normal(size=(ROWS, *AUDIO)).astype(np.float32),
        "depth": rng.normal(size=(ROWS, *DEPTH)).astype(np.float32),
        "ids": rng.integers(1, 23, (ROWS, 6)).astype(np.int32),
        "segments": np.ones((ROWS, 6), np.int32),
        "row": np.arange(ROWS, dtype=np.int32),
        "valid": np.arange(ROWS) != 5,
        "has_text": np.arange(ROWS) % 2 == 0,
        "has_audio": np.arange(ROWS) % 3 != 1,
        "has_depth": np.zeros(ROWS, bool),
    }


@functools.cache
def parameters():
    shapes = jax.eval_shape(objective().init, jax.random.key(0), batch())["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype("f4"), shapes)
    params["encoder"]["logit_scale"] = np.float32(2.0)
    return params


@functools.cache
def embedded():
    return jax.jit(lambda p: objective().apply({"params": p}, batch(), method="embed"))(
        parameters()
    )


def test_the_loss_is_the_sum_over_pairs_that_there_are():
    compare = jax.jit(functools.partial(objective().apply, method="compare"))
    outcome = compare({"params": parameters()}, embedded(), batch())
    vectors = {name: np.asarray(x, np.float64) for name, x in embedded().items()}
    expected, weight = 0.0, 0
    for name, scale in (("text", np.exp(2.0)), ("audio", 20.0), ("depth", 5.0)):
        real = np.flatnonzero(batch()[f"has_{name}"] & batch()["valid"])
        logits = scale * vectors["image"][real] @ vectors[name][real].T
        for line in (*logits, *logits.T):
            expected += np.log(np.exp(line).sum()) / 2
        expected -= np.trace(logits)
        weight += len(real)
        assert outcome.metrics[f"image_to_{name}"][1] == len(real)
    np.testing.assert_allclose(outcome.loss, expected, rtol=1e-5)
    assert outcome.weight == weight == 4 + 4
    assert outcome.metrics["loss_depth"] == (0, 0)


def test_a_mesh_in_parts_is_one_batch():
    module, params = objective(depth=None), {"encoder": dict(parameters()["encoder"])}
    for name in ("depth", "depth_projection"):
        del params["encoder"][name]

    def loss(params):
        outcome = module.apply({"params": params}, batch(), train=True)
        return outcome.loss / outcome.weight

    expected, slopes = jax.jit(jax.value_and_grad(loss))(params)
    mesh = make_mesh(data=2, fsdp=2, devices=jax.devices()[:4])
    metrics, grads = one_step(module, params, batch(), mesh, 2)
    np.testing.assert_allclose(metrics["loss"][0] / metrics["loss"][1], expected, atol=1e-5)
    chex.assert_trees_all_close(grads, slopes, rtol=0, atol=1e-5)


def test_equal_captions_are_no_counterexamples():
    same = {**batch(), "ids": np.repeat(batch()["ids"][:1], ROWS, 0)}

    def loss(duplicates):
        module = objective(duplicates)
        return module.apply({"params": parameters()}, embedded(), same, method="compare").metrics

    assert loss(True)["loss_text"][0] == pytest.approx(0, abs=1e-5)  # each has itself alone
    assert loss(False)["loss_text"][0] > 0.1
    assert loss(True)["loss_audio"] == loss(False)["loss_audio"]


def test_what_an_example_lacks_moves_nothing():
    changed = {**batch(), "audio": batch()["audio"].copy()}
    changed["audio"][~batch()["has_audio"]] = 7
    run = jax.jit(lambda b: objective().apply({"params": parameters()}, b).loss)
    np.testing.assert_allclose(run(changed), run(batch()), rtol=1e-6)


def test_overlapping_patches_are_a_strided_convolution():
    module = build(MODELS, dict(VIT, patch_stride=5, positions="none", depth=1), "model")
    images = batch()["audio"]
    assert module.grid(images.shape[1:3]) == (3, 4)
    params = jax.jit(module.init)(jax.random.key(0), images)["params"]
    kernel = np.asarray(params["patch_embedding"]["kernel"]).reshape(8, 8, 1, 12)
    names = ("NHWC", "HWIO", "NHWC")
    wanted = jax.lax.conv_general_dilated(images, kernel, (5, 5), "VALID", dimension_numbers=names)
    bound = module.bind({"params": params})
    patches = jax.jit(lambda x: bound(x, layers="all"))(images)
    assert patches.tokens.shape == (ROWS, 13, 12)
    found = strided_patches(images, (8, 8), (5, 5)) @ params["patch_embedding"]["kernel"]
    np.testing.assert_allclose(found, wanted.reshape(ROWS, 12, 12), atol=1e-5)
    with pytest.raises(ConfigError, match="no patch of"):
        module.grid((7, 20))


@functools.cache
def preprocessing():
    section = dict(
        name="image_text",
        image=dict(image_size=(16, 16)),
        text=dict(tokenizer="sample:emoji/tokenizer.json", max_length=6, token_types=False),
        audio=dict(shape=AUDIO, mean=-4.0, std=2.0),
        depth=dict(shape=DEPTH),
    )
    return build(PREPROCESSING, section, "preprocessing")


def test_examples_become_one_form_whatever_they_have():
    transforms = build_transforms(
        (dict(name="resize"), dict(name="arrays"), dict(name="tokenize")), preprocessing()
    )

    def made(**fields):
        example = {"image": np.zeros((16, 16, 3), np.uint8), **fields}
        for transform in transforms:
            example = transform(example, np.random.default_rng(0))
        return example

    whole = made(text="a cat", audio=np.full((18, 23), -2.0), depth=np.ones(DEPTH))
    bare = made()
    np.testing.assert_array_equal(whole["audio"], np.ones(AUDIO))
    assert [whole[f"has_{name}"] for name in KINDS] == [True] * 3
    assert [bare[f"has_{name}"] for name in KINDS] == [False] * 3
    wanted = preprocessing().example_batch(1)
    for example in (whole, bare):
        for name in set(wanted) - {"row"}:
            assert np.shape(example[name]) == wanted[name].shape[1:], name
    for wrong in (np.ones((3, 3)), np.full((18, 23), np.nan)):
        with pytest.raises(CorruptExample, match=r"'audio' is .*expected finite numbers"):
            made(audio=wrong)
    with pytest.raises(ConfigError, match="shape of three numbers"):
        build(PREPROCESSING, dict(preprocessing().to_json(), depth=dict(shape=(16, 16, 0))), "p")


def test_a_model_of_four_kinds_travels_and_embeds():
    module = objective().encoder
    again = build(MODELS, section_of(MODELS, module), "model")
    assert again == module
    json = preprocessing().to_json()
    assert build(PREPROCESSING, json, "preprocessing").arrays == preprocessing().arrays
    variables = {"params": parameters()["encoder"]}
    pair = PairEncoder(module, variables, None, {}, None, {})
    for name in ("audio", "depth"):
        vectors = pair.embed(name, batch()[name])
        np.testing.assert_allclose(vectors, embedded()[name], atol=1e-6)
    with pytest.raises(ConfigError, match="there is no tower 'sound'"):
        pair.embed("sound", batch()["audio"])
    with pytest.raises(DataError, match=r"expected a batch \[B, H, W, C\]"):
        pair.embed("audio", batch()["audio"][0])
    assert isinstance(pair.image, Encoder)


def test_wrong_pieces_are_refused():
    alone = build(OBJECTIVES, {"name": "bind"}, "o", encoder=build(MODELS, VIT, "model"))
    with pytest.raises(ConfigError, match="'bind' needs an encoder of several kinds"):
        jax.eval_shape(alone.init, jax.random.key(0), batch())
    without = {name: value for name, value in batch().items() if name != "audio"}
    with pytest.raises(ConfigError, match="audio needs 'audio' in the batch"):
        jax.eval_shape(objective().init, jax.random.key(0), without)
    with pytest.raises(ConfigError, match=r"vectors of 10 for image.* and 12 for depth"):
        objective(depth_projection="none").encoder.dim  # noqa: B018
    assert objective(locked=("image", "depth")).frozen == ("encoder/image/.*", "encoder/depth/.*")
