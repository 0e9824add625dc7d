"""SigLIP 2: captions of a decoder of its own, and what a teacher makes of the image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_image_text import LENGTH, MODEL, ROWS, batch, close, objective

from encoders.data.vocabulary import Vocabulary
from encoders.errors import ConfigError
from encoders.objectives.self_distillation import (
    Centre,
    distillation_loss,
    entropy,
    random_crops,
    teacher_distribution,
)
from encoders.parallel.mesh import make_mesh
from encoders.rules import only
from tests.objectives.stepping import stepped

FIELDS = {
    "num_crops": 2,
    "crop_size": 4,
    "num_prototypes": 7,
    "num_patch_prototypes": 6,
    "hidden_dim": 10,
    "bottleneck_dim": 5,
    "mask_ratio": 0.25,
}
IMAGE = MODEL["image"] | {"patch_size": 2, "class_token": False, "pool": "map"}
TEXT = MODEL["text"] | {"causal": False}


def siglip2(distillation, **fields):
    towers = {"image": IMAGE, "text": TEXT, "logit_bias": -3.0, "max_logit_scale": None}
    return objective("siglip2", {"distillation": distillation, **fields}, **towers)


MODULE = siglip2(FIELDS)
KEYS = {"corrupt": jax.random.split(jax.random.fold_in(jax.random.key(7), 3))[0]}  # of stepped


@functools.cache
def initial():
    """Parameters, statistics, and a teacher that is not the student."""
    shapes = jax.eval_shape(functools.partial(MODULE.init, train=True), jax.random.key(0), batch())
    rng = np.random.default_rng(2)

    def random(x):
        return 0.3 * rng.normal(size=x.shape).astype("f4")

    params = jax.tree.map(random, shapes["params"])
    params["encoder"] |= {"logit_scale": np.float32(2.0), "logit_bias": np.float32(-3.0)}
    stats = jax.tree.map(lambda x: np.zeros(x.shape, "f4"), shapes["stats"])
    for centre in stats.values():
        centre["mean"] = 0.1 * rng.normal(size=centre["mean"].shape).astype("f4")
    teacher = jax.tree.map(random, only(MODULE.followed, params, where="followed"))
    # So that its images differ by more than what they have in common.
    teacher["encoder"]["image"]["patch_embedding"]["kernel"] *= 10
    return params, {"stats": stats}, teacher


def filled(teacher, params):
    return jax.tree.map(lambda own, kept: own if kept is None else kept, params, teacher)


@functools.cache
def compiled():
    """(loss, (metrics, statistics)) and gradients by parameters and teacher, without a mesh."""

    def loss(params, teacher, stats):
        variables = {"params": params, "teacher": {"params": filled(teacher, params)}, **stats}
        given = {"train": True, "rngs": KEYS, "mutable": ["stats"]}
        outcome, stats = MODULE.apply(variables, batch(), **given)
        metrics = {"loss": (outcome.loss, outcome.weight), **outcome.metrics}
        return outcome.loss / outcome.weight, (metrics, MODULE.settled(stats))

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


@functools.cache
def alone():
    params, stats, teacher = initial()
    return compiled()(params, teacher, stats)


def mean(metrics, name):
    total, count = metrics[name]
    return float(total / count)


def test_meshes_and_parts_change_nothing():
    params, stats, teacher = initial()
    mesh = make_mesh(data=4, fsdp=1, devices=jax.devices()[:4])
    state, found = stepped(MODULE, params, batch(), mesh, 2, stats, teacher)
    (_, (metrics, settled)), (grads, _) = alone()
    close(jax.tree.map(lambda old, new: old - np.asarray(new), params, state.params), grads)
    close(state.stats, settled)
    for name in metrics:
        close(mean(found, name), mean(metrics, name))
    for name in ("image_centre", "patch_centre"):
        moved = settled["stats"][name]["mean"] - stats["stats"][name]["mean"]
        assert np.abs(moved).max() > 1e-3
    assert np.abs(grads["mask_token"]).max() > 1e-5


def test_the_loss_is_that_of_the_paper_and_the_teacher_has_no_gradient():
    (loss, (metrics, _)), (grads, teacher) = alone()
    found = {name: mean(metrics, name) for name in metrics}
    more = 0.25 * (found["local_loss"] + 0.25 * found["masked_loss"])
    assert loss == pytest.approx(found["contrast_loss"] + found["caption_loss"] + more, rel=1e-5)
    assert metrics["local_loss"][1] == 15  # one example is padding
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(teacher))
    for name in ("image_head", "patch_head"):
        assert np.abs(grads[name]["prototypes"]).max() > 1e-4
    # In evaluation there is no teacher.
    params, stats, _ = initial()
    outcome = jax.eval_shape(MODULE.apply, {"params": params, **stats}, batch())
    assert "local_loss" not in outcome.metrics


def test_the_mask_token_stands_at_masked_places_only():
    params, stats, teacher = initial()
    (_, (before, _)), _ = alone()
    other = {**params, "mask_token": 3 + params["mask_token"][::-1] * 50}
    (_, (after, _)), _ = compiled()(other, teacher, stats)
    for name in before.keys() - {"loss", "masked_loss"}:
        close(after[name], before[name])
    assert abs(mean(after, "masked_loss") - mean(before, "masked_loss")) > 1e-3


def test_a_teacher_that_has_collapsed_is_seen():
    params, stats, teacher = initial()
    (_, (metrics, _)), _ = alone()
    head = dict(teacher["image_head"])
    head["fc3"] = {"kernel": np.zeros((10, 5), "f4"), "bias": np.ones(5, "f4")}
    (_, (fallen, _)), _ = compiled()(params, {**teacher, "image_head": head}, stats)
    assert mean(metrics, "teacher_spread") > 1e-3
    assert mean(fallen, "teacher_spread") == pytest.approx(0, abs=1e-6)
    assert 0 < mean(metrics, "teacher_entropy") < np.log(7)
    assert MODULE.guard.floors["teacher_spread"] < mean(metrics, "teacher_spread")
    assert siglip2(None).guard is None


def test_the_parts_by_their_formulas():
    rng = np.random.default_rng(0)
    scores, goals = rng.normal(size=(2, 4, 3, 7)).astype("f4")
    centre = rng.normal(size=7).astype("f4")
    expected = np.exp((goals - centre) / 0.04)
    expected /= expected.sum(-1, keepdims=True)
    found = teacher_distribution(goals, centre, 0.04)
    close(found, expected)
    close(entropy(found), -(expected * np.log(expected + 1e-30)).sum(-1))
    likelihood = scores / 0.1 - np.log(np.exp(scores / 0.1).sum(-1, keepdims=True))
    close(distillation_loss(scores, found, 0.1), -(expected * likelihood).sum(-1), 1e-4)
    # Two parts of a batch, of which an example does not count: the mean sees them as one.
    module, counts = Centre(7), np.array([1, 1, 0, 1], "f4")
    start = {"mean": centre, "total": np.zeros(7, "f4"), "count": np.float32(0)}
    run = jax.jit(functools.partial(module.apply, mutable=["stats"]))
    mean, stats = run({"stats": start}, goals, counts)
    mean, stats = run(stats, scores, counts)
    close(mean, centre)
    settled = Centre.settled(stats["stats"], 0.9)
    both = np.concatenate([goals[[0, 1, 3]], scores[[0, 1, 3]]]).mean((0, 1))
    close(settled["mean"], 0.9 * centre + 0.1 * both)
    close(Centre.settled(settled, 0.9)["mean"], settled["mean"])


def test_crops_are_parts_of_the_image():
    """Of a picture whose colours are its coordinates: a crop's say where it was."""
    rows, columns = np.mgrid[:32, :48].astype("f4")
    image = np.stack([rows, columns], -1)[None].repeat(64, 0)
    keys = jax.random.split(jax.random.key(0), 64)
    make = jax.jit(functools.partial(random_crops, size=(8, 8), number=4, scale=(0.1, 0.5)))
    found = np.asarray(make(keys, image)).reshape(256, 8, 8, 2)
    assert found.min() >= 0
    assert found[..., 0].max() <= 31
    assert found[..., 1].max() <= 47
    step = np.diff(found[:, :, 2:-2, 0], axis=1)[:, 2:-2]  # inside, where nothing is cut off
    height = 8 * step.mean((1, 2))
    mirrored = np.diff(found[:, 2:-2, :, 1], axis=2)[:, :, 2:-2]
    width = 8 * np.abs(mirrored).mean((1, 2))
    assert step.min() > 0
    share = height * width / (32 * 48)
    assert 0.09 < share.min() < 0.15  # a few percent off, for their borders
    assert 0.4 < share.max() < 0.51
    ratio = width / height
    assert 0.72 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 1.38
    assert 0.4 < (mirrored.mean((1, 2)) < 0).mean() < 0.6
    # What an example gets depends on its key alone.
    close(make(keys[3:4], image[3:4])[0], found.reshape(64, 4, 8, 8, 2)[3], 1e-4)


# --- captions -------------------------------------------------------------------------------------


@functools.cache
def captions():
    params, stats, _ = initial()

    def scores(rows, parallel):
        def run(module):
            (image, _), _ = module.encode(rows, train=False)
            return module.decoder(rows["ids"], image, parallel, module.encoder.text)

        return MODULE.apply({"params": params, **stats}, method=run)

    return jax.jit(scores)


def test_a_caption_is_read_from_left_to_right_or_not_at_all():
    rows, none = batch(), np.zeros(ROWS, bool)
    expected = captions()(rows, none)
    later = rows["ids"].copy()
    later[:, 2:] = 7
    found = captions()({**rows, "ids": later}, none)
    close(found[:, :3], expected[:, :3])
    assert np.abs(found[:, 3:] - expected[:, 3:]).max() > 1e-3
    # Read in parallel, the text is not looked at, but the image is.
    parallel = captions()(rows, ~none)
    close(captions()({**rows, "ids": later}, ~none), parallel)
    assert np.abs(parallel - expected).max() > 1e-3
    seen = captions()({**rows, "image": rows["image"][::-1]}, ~none)
    assert np.abs(seen - parallel).max(axis=(1, 2)).min() > 1e-4


def test_a_caption_ends_with_its_first_end():
    vocabulary = Vocabulary(23, pad_id=1, unk_id=2, cls_id=1, sep_id=1, mask_id=2)
    module = siglip2(None, parallel=0.0, vocabulary=vocabulary)
    params, _, _ = initial()
    params = {name: params[name] for name in ("encoder", "decoder")}
    ids = np.full((ROWS, LENGTH), 5, np.int32)
    ids[:, 2:] = 1
    rows = {**batch(), "ids": ids, "segments": np.ones_like(ids)}
    outcome = jax.jit(module.apply)({"params": params}, rows)
    assert outcome.metrics["caption_loss"][1] == 3 * 15


# --- costs and errors -----------------------------------------------------------------------------


def test_flops_count_crops_and_a_third_of_the_teacher():
    size = ((8, 8), LENGTH)
    tower = MODULE.encoder.image
    image = 2.0 * (16 * 10 + 10 * 10 + 10 * 5 + 5 * 7)
    patches = 4 * 2.0 * (16 * 10 + 10 * 10 + 10 * 5 + 5 * 6)
    large = tower.flops((8, 8)) + patches
    more = 2 * (tower.flops((4, 4)) + image) + large + (large + image) / 3
    assert MODULE.flops(size) - siglip2(None).flops(size) == pytest.approx(more)


@pytest.mark.parametrize(
    "fields, image, message",
    [
        ({"mask_ratio": 0.01}, {}, r"distillation\.mask_ratio: 0\.01 masks 0 of 16 patches"),
        ({}, {"token_drop": 0.5}, "must be a 'vit' with token_drop=0"),
        ({"momentum": {"start": 2.0}}, {}, r"momentum\.start: 2\.0 is not from 0 to 1"),
    ],
)
def test_what_cannot_be_is_refused(fields, image, message):
    towers = {"image": IMAGE | image, "text": TEXT, "logit_bias": -3.0}

    def init(key):
        module = objective("siglip2", {"distillation": FIELDS | fields}, **towers)
        return module.init(key, batch(), train=True)

    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(init, jax.random.key(0))


def test_images_of_many_shapes_are_not_distilled():
    rows = {**batch(), "shapes": jnp.ones((ROWS, 2), jnp.int32)}
    with pytest.raises(ConfigError, match="images of one size; unset"):
        jax.eval_shape(MODULE.init, jax.random.key(0), rows)
