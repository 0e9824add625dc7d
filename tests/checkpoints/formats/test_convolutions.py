"""ResNets, EfficientNet and ALIGN of transformers, CLIP's ResNet of open_clip: both ways.

Written by `python -m tools.golden.write_convolutions`; read here without PyTorch.
"""

import dataclasses
import functools
import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import encoders
from encoders.checkpoints.formats import files
from encoders.checkpoints.formats.mapping import with_stats
from encoders.config import build
from encoders.errors import CheckpointError, ConfigError
from encoders.models import MODELS
from encoders.parallel.contrast import contrast
from tools.golden.inputs import picture

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "convolutions"
PAIRS, RESNETS = ("hf_align", "open_clip_rn"), ("hf_resnet", "hf_resnet_basic")
NAMES = (*PAIRS, *RESNETS)
ATOL = 2e-5


@functools.cache
def load(name):
    return encoders.load(GOLDEN / name)


@functools.cache
def expected(name):
    with np.load(GOLDEN / name / "expected.npz") as file:
        return {key: file[key] for key in file.files}


@functools.cache
def run(name):
    """(maps of the stages, outputs, loss, its gradients, what training makes of the images)."""
    model, want = load(name), expected(name)
    images = picture(tuple(want["image_size"]), 4)
    pair = name in PAIRS
    tower = model.module.image if pair else model.module
    weights = dict(model.variables)
    ones = jnp.ones(4)

    def loss(params, head):
        variables = {**weights, "params": params}

        def apply(*arguments, **given):
            return model.module.apply(variables, *arguments, **given)

        if not pair:
            out = apply(images, layers="all")
            logits = out.pooled @ head["kernel"] + head["bias"]
            labels = np.arange(4)
            total = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return total, (out.hidden, {"logits": logits})
        out = apply(images, method=lambda m, x: m.image(x, layers="all"))
        image = apply(images, method="embed_image")
        text = apply(want["ids"], segments=want["segments"], method="embed_text")
        smoothing = 0.1 * (name == "hf_align")
        scale, bias = apply(method="scale_and_bias")
        total = contrast("softmax", image, text, scale, bias, ones, smoothing=smoothing).loss / 4
        logits = apply(image, text, method="logits")
        found = {"image_embeddings": image, "text_embeddings": text, "logits": logits}
        return total, (out.hidden, found)

    head = {} if pair else model.heads["head"]
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (total, (maps, found)), gradients = compiled(weights["params"], head)
    of_tower = {k: v["image"] if pair else v for k, v in weights.items()}
    trained = jax.jit(lambda v: tower.apply(v, images, train=True, mutable=["stats"]))(of_tower)
    return maps, found, total, jax.device_get(gradients), trained


@pytest.mark.parametrize("name", NAMES)
def test_maps_vectors_logits_and_loss(name):
    maps, found, total, _, (trained, _) = run(name)
    want = expected(name)
    count = sum(key.startswith("map") for key in want)
    assert sorted(maps) == list(range(count))
    for stage in range(count):
        np.testing.assert_allclose(maps[stage], want[f"map{stage}"], rtol=0, atol=ATOL)
    for key, value in found.items():
        np.testing.assert_allclose(value, want[key], rtol=0, atol=ATOL, err_msg=key)
    np.testing.assert_allclose(total, want["loss"], rtol=0, atol=ATOL)
    np.testing.assert_allclose(trained.tokens, want["trained_map"], rtol=0, atol=5 * ATOL)


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name, tmp_path):
    *_, gradients, _ = run(name)
    model, (params, head) = load(name), gradients
    variables = {**model.variables, "params": params}
    heads = {"head": head} if head else model.heads
    carrier = dataclasses.replace(model, variables=variables, heads=heads)
    written = _written(carrier, tmp_path / "out", name)
    theirs = {k.removeprefix("gradients/"): v for k, v in expected(name).items() if "/" in k}
    assert len(theirs) >= 3
    for key, gradient in theirs.items():
        found = written[key]
        if key == "temperature":  # of a logarithm, and it divides: d/dt = -1/t d/d(-log t)
            found = -np.log(found) * -1 / 0.3
        np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=ATOL, err_msg=key)


def _written(model, directory, name):
    """The tensors of an export; sizes that weights do not say are those of the pictures."""
    format = "open_clip" if name == "open_clip_rn" else "hf"
    encoders.save(_sized(model, name), directory, format=format, heads=name in RESNETS)
    return files.read_tensors(directory, *(["open_clip_model.safetensors"] * (format != "hf")))


def _sized(model, name):
    if name in PAIRS:
        image = dict(image_size=(64, 64), mean=(0.5,) * 3, std=(0.5,) * 3, crop_fraction=1.0)
        text = dict(tokenizer="sample:emoji/tokenizer.json", max_length=10, token_types=False)
        section = dict(name="image_text", image=image, text=text)
    else:
        section = dict(name="image", image_size=(64, 64), crop_fraction=1.0)
    return dataclasses.replace(
        model, preprocessing=build(encoders.data.PREPROCESSING, section, "preprocessing")
    )


@pytest.mark.parametrize("name", NAMES)
def test_export_of_import_is_the_same(name, tmp_path):
    model = load(name)
    after = _written(model, tmp_path / "out", name)
    weights = "open_clip_model.safetensors" if name == "open_clip_rn" else files.WEIGHTS
    before = files.read_tensors(GOLDEN / name, weights)
    left = ("num_batches_tracked", "pooler.dense.weight", "pooler.dense.bias", "attn_mask")
    before = {key: value for key, value in before.items() if not key.endswith(left)}
    after = {key: value for key, value in after.items() if not key.endswith(left)}
    if "temperature" in before:
        np.testing.assert_allclose(after.pop("temperature"), before.pop("temperature"), rtol=1e-6)
    chex.assert_trees_all_equal(after, before)
    again = encoders.load(tmp_path / "out")
    own = (again.module, model.module)
    if name == "hf_align":  # as written: e^-x of the initial value
        own = tuple(dataclasses.replace(m, logit_scale=0.0) for m in own)
    assert own[0] == own[1]


@pytest.mark.parametrize("name", ["hf_resnet", "open_clip_rn"])
def test_running_statistics_travel_in_our_own_format(name, tmp_path):
    model = load(name)
    encoders.save(model, tmp_path / "out", heads=name in RESNETS)
    again = encoders.load(tmp_path / "out")
    chex.assert_trees_all_equal(again.variables, model.variables)
    assert jax.tree.leaves(again.variables["stats"])
    assert again.module == model.module
    mixed = with_stats(again.variables["params"], again.variables["stats"])
    assert len(jax.tree.leaves(mixed)) == len(jax.tree.leaves(again.variables))


def test_parameter_counts_are_those_of_transformers():
    want = json.loads((GOLDEN / "parameters.json").read_text())
    sections = {
        "resnet18": dict(name="resnet", variant="18"),
        "resnet50": dict(name="resnet", variant="50"),
        "resnet152": dict(name="resnet", variant="152"),
        "efficientnet_b0": dict(name="efficientnet", variant="B0"),
        "efficientnet_b7": dict(name="efficientnet", variant="B7"),
    }
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    for name, section in sections.items():
        module = build(MODELS, section, "model")
        shapes = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == want[name], name


def test_what_makes_no_sense_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="unknown depth '51'"):
        build(MODELS, dict(name="resnet", variant="51"), "model").stages  # noqa: B018
    with pytest.raises(ConfigError, match="unknown size 'B9'"):
        build(MODELS, dict(name="efficientnet", variant="B9"), "model").size  # noqa: B018
    with pytest.raises(ConfigError, match="unknown 'RN51'"):
        build(MODELS, dict(name="clip_resnet", variant="RN51"), "model")
    model = build(MODELS, dict(name="clip_resnet", width=4, blocks=(1, 1, 1, 1)), "model")
    with pytest.raises(ConfigError, match="nothing is left of such small images"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 24, 64, 3)))
    with pytest.raises(CheckpointError, match="needs an image size, which preprocessing says"):
        encoders.save(load("hf_resnet"), tmp_path / "out", format="hf")
    for name, field, value in (
        ("hf_resnet", "hidden_act", "gelu"),
        ("hf_align", "vision_config", {"expand_ratios": [1, 4, 4, 4, 4, 4, 4]}),
    ):
        config = files.read_json(GOLDEN / name / "config.json")
        copy = tmp_path / name
        copy.mkdir()
        files.write_json(copy / "config.json", {**config, field: value})
        with pytest.raises(CheckpointError, match="is not supported, only"):
            encoders.load(copy)


@pytest.mark.parametrize(
    "section",
    [
        dict(name="resnet", variant="50", width=8, blocks=(1, 2, 1, 1)),
        dict(name="clip_resnet", width=8, blocks=(1, 2, 1, 1), pool="mean"),
        dict(name="efficientnet", width_factor=0.5, depth_factor=0.4),
    ],
    ids=lambda section: section["name"],
)
def test_flops_are_those_that_xla_counts(section):
    module = build(MODELS, section, "model")
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    counted = jax.jit(module.apply).lower(variables, images).cost_analysis()["flops"]
    assert module.flops((64, 64)) == pytest.approx(counted, rel=0.15)
