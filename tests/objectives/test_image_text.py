"""Contrast of images and texts: one loss, however many devices and parts compute it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from encoders.config import build
from encoders.errors import ConfigError
from encoders.layers.pooling import unit
from encoders.models import MODELS
from encoders.models.bert import BERT
from encoders.objectives import OBJECTIVES
from encoders.parallel.mesh import make_mesh
from encoders.training.optimizers import AdamW
from encoders.training.step import cast_params
from tests.objectives.stepping import one_step

ROWS, LENGTH = 16, 5
SIZE = {"depth": 1, "mlp_dim": 20, "num_heads": 2}
MODEL = {
    "name": "towers",
    "image": {"name": "vit", **SIZE, "width": 16, "patch_size": 4},
    "text": {"name": "clip_text", **SIZE, "width": 12, "vocab_size": 23, "max_length": LENGTH},
    "embedding_dim": 8,
    "image_projection": "linear",
    "text_projection": "linear",
    "max_logit_scale": 2.8,
}


def objective(name, fields=(), **model):
    encoder = build(MODELS, MODEL | model, "model")
    return build(OBJECTIVES, {"name": name, **dict(fields)}, "objective", encoder=encoder)


CASES = {
    "softmax": objective("softmax_contrast"),
    "softmax_duplicates": objective("softmax_contrast", {"duplicates": True}),
    "sigmoid": objective("sigmoid_contrast", logit_bias=-3.0),
    "sigmoid_duplicates": objective("sigmoid_contrast", {"duplicates": True}, logit_bias=-3.0),
    "flip": objective("softmax_contrast", image=MODEL["image"] | {"token_drop": 0.5}),
    "coca": objective("contrast_caption", {"decoder": {"depth": 1}}),
    "lit": objective("sigmoid_contrast", logit_bias=-3.0, locked=("image",)),
}


@functools.cache
def batch():
    """Images and captions, of which some are equal, and an example that is padding."""
    rng = np.random.default_rng(0)
    length = rng.integers(2, LENGTH + 1, (ROWS, 1))
    segments = (np.arange(LENGTH) < length).astype(np.int32)
    ids = rng.integers(1, 23, (ROWS, LENGTH)).astype(np.int32) * segments
    ids[9], segments[9] = ids[2], segments[2]
    return {
        "image": rng.normal(size=(ROWS, 8, 8, 3)).astype(np.float32),
        "ids": ids,
        "segments": segments,
        "row": np.arange(ROWS, dtype=np.int32),
        "valid": np.arange(ROWS) != 13,
    }


@functools.cache
def initial(name):
    module = CASES[name]
    shapes = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), batch())
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype("f4"), shapes["params"])
    params["encoder"]["logit_scale"] = np.float32(2.0)
    if "logit_bias" in params["encoder"]:
        params["encoder"]["logit_bias"] = np.float32(-3.0)
    return params


def close(a, b, atol=1e-5):
    chex.assert_trees_all_close(a, b, rtol=0, atol=atol)


# --- the formulas ---------------------------------------------------------------------------------


@functools.cache
def embedded():
    vectors = np.random.default_rng(3).normal(size=(2, ROWS, 8))
    return dict(zip(("image", "text"), unit(jnp.asarray(vectors, jnp.float32)), strict=True))


def compared(name, both):
    compare = functools.partial(CASES[name].apply, method="compare")
    return jax.jit(compare)({"params": initial(name)}, both, batch())


@pytest.mark.parametrize("name", ["softmax", "softmax_duplicates"])
def test_the_softmax_is_that_of_the_paper(name):
    """Figure 3 of arXiv 2103.00020, the mean of both cross-entropies, pair by pair."""
    both = embedded()
    logits = np.exp(2.0) * np.asarray(both["image"] @ both["text"].T, np.float64)
    real = [i for i in range(ROWS) if i != 13]
    expected = 0.0
    for i in real:
        others = [j for j in real if not (name != "softmax" and {i, j} == {2, 9})]
        for line in (logits[i], logits[:, i]):
            expected -= (line[i] - np.log(np.exp(line[others]).sum())) / 2
    outcome = compared(name, both)
    close(outcome.loss, expected, 1e-4)
    assert outcome.weight == len(real)


@pytest.mark.parametrize("name", ["sigmoid", "sigmoid_duplicates"])
def test_the_sigmoid_is_that_of_the_paper(name):
    """Algorithm 1 of arXiv 2303.15343, pair by pair."""
    both = embedded()
    logits = np.exp(2.0) * np.asarray(both["image"] @ both["text"].T, np.float64) - 3.0
    expected, found = 0.0, 0
    real = [i for i in range(ROWS) if i != 13]
    for i in real:
        found += logits[i, i] >= max(logits[i, j] for j in real if j != i)
        for j in real:
            if name == "sigmoid" or {i, j} != {2, 9}:
                expected += np.log1p(np.exp(-logits[i, j] if i == j else logits[i, j]))
    outcome = compared(name, both)
    close(outcome.loss, expected, 1e-4)
    if name == "sigmoid":
        assert outcome.metrics["image_to_text"] == (found, len(real))
    assert outcome.metrics["logit_scale"][0] == pytest.approx(np.exp(2.0))
    assert outcome.metrics["logit_bias"][0] == -3.0


def test_what_fits_is_counted():
    vectors = embedded()["image"]
    same = {"image": vectors, "text": vectors}
    outcome = compared("softmax", same)
    assert outcome.metrics["image_to_text"] == outcome.metrics["text_to_image"] == (15, 15)
    turned = {"image": vectors, "text": jnp.roll(vectors, 1, axis=0)}
    outcome = compared("softmax", turned)
    # But for the image whose rival belongs to padding, and so may not win.
    assert outcome.metrics["image_to_text"][0] <= 1


# --- any number of devices and parts --------------------------------------------------------------


@functools.cache
def run(name, sizes, micro_batches=1):
    """Loss and gradients of one training step."""
    devices = jax.devices()[: int(np.prod([size for _, size in sizes]))]
    mesh = make_mesh(**dict(sizes), devices=devices)
    metrics, grads = one_step(CASES[name], initial(name), batch(), mesh, micro_batches)
    return metrics["loss"][0] / metrics["loss"][1], grads, metrics


@functools.cache
def one_by_one(name):
    """Loss and gradients of the formula as it stands: no mesh, no parts."""

    def loss(params):
        outcome = CASES[name].apply({"params": params}, batch(), train=True)
        return outcome.loss / outcome.weight

    return jax.jit(jax.value_and_grad(loss))(initial(name))


ONE = (("fsdp", 1),)


@pytest.mark.parametrize(
    "name, sizes, micro_batches",
    [
        ("softmax", ONE, 1),
        ("softmax", (("data", 4), ("fsdp", 1)), 2),
        ("softmax_duplicates", (("dcn", 2), ("data", 2), ("fsdp", 2)), 1),
        ("sigmoid", ONE, 4),
        ("sigmoid_duplicates", (("fsdp", 2), ("tensor", 2)), 1),
        ("sigmoid", (("data", 2), ("fsdp", 4)), 1),
        ("lit", (("fsdp", 8),), 2),
        ("coca", (("data", 2), ("fsdp", 1)), 2),
    ],
)
def test_loss_and_gradients_on_any_mesh_in_any_parts(name, sizes, micro_batches):
    loss, grads, metrics = run(name, sizes, micro_batches)
    expected_loss, expected = one_by_one(name)
    close(loss, expected_loss)
    close(grads, expected)
    assert bool(metrics["finite"].all())
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 1e-3


def test_a_part_drops_the_same_tokens_both_times():
    """The gradient of embeddings is carried to the parameters by what led to them."""
    dropout = jax.random.split(jax.random.fold_in(jax.random.key(7), 3))[1]
    module = CASES["flip"]

    def loss(params):
        both = []
        for index in range(2):
            part = {name: x[index::2] for name, x in batch().items()}
            keys = {"dropout": jax.random.fold_in(dropout, index)}
            both.append(module.apply(params, part, train=True, rngs=keys, method="embed"))
        whole = jax.tree.map(lambda *x: jnp.stack(x, 1).reshape(ROWS, -1), *both)
        outcome = module.apply(params, whole, batch(), method="compare")
        return outcome.loss / outcome.weight

    value, expected = jax.jit(jax.value_and_grad(loss))({"params": initial("flip")})
    close(run("flip", ONE, 2)[:2], (value, expected["params"]))


def test_the_scale_stays_below_its_limit():
    params = initial("softmax") | {}
    high = {**params, "encoder": {**params["encoder"], "logit_scale": jnp.float32(3.5)}}
    found = CASES["softmax"].constrained(high)
    assert found["encoder"]["logit_scale"] == pytest.approx(2.8)
    chex.assert_trees_all_equal(found["encoder"]["text"], params["encoder"]["text"])
    assert CASES["softmax"].constrained(params)["encoder"]["logit_scale"] == 2.0
    free = objective("softmax_contrast", max_logit_scale=None)
    assert free.constrained(high) is high


def test_a_locked_tower_has_no_optimizer_state():
    section = AdamW(lr=1.0, schedule={"name": "constant"}, frozen=CASES["lit"].frozen)
    params = initial("lit")
    state = section.transformation(params, optax.constant_schedule(1.0)).init(params)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert any("text" in path and "mu" in path for path in paths)
    assert not any("'image'" in path for path in paths)


def test_the_temperature_is_not_rounded():
    """Bfloat16 has 8 bits: exp(4.6) would be off by a percent."""
    cast = cast_params(initial("sigmoid"), jnp.bfloat16)["encoder"]
    assert cast["logit_scale"].dtype == cast["logit_bias"].dtype == jnp.float32
    assert cast["image_projection"]["kernel"].dtype == jnp.bfloat16
    embed = functools.partial(CASES["sigmoid"].apply, method="embed")
    both = jax.eval_shape(embed, {"params": {"encoder": cast}}, batch())
    assert both["image"].dtype == both["text"].dtype == jnp.float32


# --- errors ---------------------------------------------------------------------------------------


def test_an_encoder_that_is_no_pair():
    one = build(
        OBJECTIVES, {"name": "softmax_contrast"}, "objective", encoder=BERT(width=8, depth=1)
    )
    with pytest.raises(ConfigError, match="compares images with texts, and model is BERT"):
        jax.eval_shape(one.init, jax.random.key(0), batch())


def test_a_temperature_that_overflows_is_not_finite_and_reported():
    params = initial("sigmoid")
    high = {**params, "encoder": {**params["encoder"], "logit_scale": jnp.float32(89.0)}}

    def loss(params):
        return CASES["sigmoid"].apply({"params": params}, batch(), train=True).loss

    value, gradient = jax.jit(jax.value_and_grad(loss))(high)
    assert not np.isfinite(gradient["encoder"]["logit_scale"])
    assert not np.isfinite(value)
