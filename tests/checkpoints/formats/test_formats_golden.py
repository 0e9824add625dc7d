"""Directories that transformers and timm wrote: what is read computes what they computed.

Written by `python -m tools.golden.write_interop`; read here without PyTorch.
"""

import functools
import pathlib

import chex
import jax
import numpy as np
import pytest

import encoders
from encoders.checkpoints.formats import files
from encoders.config import build
from encoders.objectives import OBJECTIVES
from tools.golden.inputs import mask_noise, picture

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "interop"
NAMES = sorted(path.name for path in GOLDEN.iterdir())
ATOL = 2e-5


@functools.cache
def load(name):
    return encoders.load(GOLDEN / name)


@functools.cache
def expected(name):
    with np.load(GOLDEN / name / "expected.npz") as file:
        return dict(file)


@functools.cache
def encode(name):
    return load(name)(picture(tuple(expected(name)["image_size"])), layers="all")


@pytest.mark.parametrize("name", NAMES)
def test_outputs(name):
    out, want = encode(name), expected(name)
    np.testing.assert_allclose(out.tokens, want["tokens"], atol=ATOL)
    assert sorted(out.hidden) == list(range(len(want["hidden"])))
    for layer, hidden in enumerate(want["hidden"]):
        np.testing.assert_allclose(out.hidden[layer], hidden, atol=ATOL)
    if "pooled" in want:
        np.testing.assert_allclose(out.pooled, want["pooled"], atol=ATOL)


@pytest.mark.parametrize("name", [n for n in NAMES if "logits" in expected(n)])
def test_classifiers(name):
    encoder, out = load(name), encode(name)
    assert encoder.objective == {"name": "classification", "num_classes": 3}
    head = encoder.heads["head"]
    logits = out.pooled @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, expected(name)["logits"], atol=ATOL)


def test_masked_image_loss_and_prediction():
    encoder, want = load("hf_mae"), expected("hf_mae")
    objective = build(OBJECTIVES, encoder.objective, "objective", encoder=encoder.module)
    variables = {"params": {"encoder": encoder.variables["params"], **encoder.heads}}
    images, noise = picture((24, 24)), mask_noise(36)

    @jax.jit
    def apply(variables, images, noise):
        loss = objective.apply(variables, {"image": images}, noise, method="loss")
        return loss, objective.apply(variables, images, noise, method="predict")

    outcome, (predicted, masked) = apply(variables, images, noise)
    np.testing.assert_allclose(outcome.loss / outcome.weight, want["loss"], atol=ATOL)
    theirs = np.take_along_axis(want["prediction"], np.asarray(masked)[..., None], axis=1)
    np.testing.assert_allclose(predicted, theirs, atol=ATOL)


def fold_positions(name, tensors):
    """What becomes of a state dict: positions of prefix tokens are added to them for good."""
    kind, table = name.split("_")[0], "pos_embed"
    if kind == "hf":
        [table] = [key for key in tensors if key.endswith("embeddings.position_embeddings")]
    stem = table.removesuffix("position_embeddings") if kind == "hf" else ""
    patches = encode(name).tokens.shape[1] - encode(name).num_prefix
    rows = tensors[table].shape[1] - patches
    taken = 0
    for token in ("cls_token", "distillation_token", "dist_token", "reg_token"):
        if taken < rows and f"{stem}{token}" in tensors:
            tensors[f"{stem}{token}"] += tensors[table][:, taken : taken + 1]
            taken += 1
    assert taken == rows
    tensors[table] = tensors[table][:, rows:]
    if kind == "hf":
        tensors[table] = np.pad(tensors[table], [(0, 0), (rows, 0), (0, 0)])
    if "dist_token" in tensors:  # written as a plain ViT with a register
        tensors["reg_token"] = tensors.pop("dist_token")
    return tensors


@pytest.mark.parametrize("name", NAMES)
def test_export_of_import_is_the_same_bits(name, tmp_path):
    encoder = load(name)
    kind, heads = name.split("_")[0], bool(encoder.heads)
    encoders.save(encoder, tmp_path / "out", format=kind, heads=heads)
    after = files.read_tensors(tmp_path / "out")
    before = {
        # transformers 5.23 gives the decoder's layers this name when it saves
        key.replace("decoder_encoder.layer", "decoder_layers"): value.astype(np.float32)
        for key, value in files.read_tensors(GOLDEN / name).items()
        if key not in encoder.metadata["dropped"]
    }
    before = fold_positions(name, before)
    added = set(after) - set(before)
    assert added <= {"pooler.dense.weight", "pooler.dense.bias", "embeddings.mask_token"}
    for key, value in before.items():
        np.testing.assert_array_equal(after[key], value, err_msg=key)


def test_what_is_left_out_is_said():
    assert set(load("hf_vit").metadata["dropped"]) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert set(load("hf_dinov2").metadata["dropped"]) == {"embeddings.mask_token"}
    distilled = load("timm_distilled").metadata["dropped"]
    assert set(distilled) == {
        "head.weight",
        "head.bias",
        "head_dist.weight",
        "head_dist.bias",
    }
    assert load("timm_vit").metadata["dropped"] == {}
    assert load("hf_deit").metadata["class_names"] == ["bee", "cat", "dog"]


def test_half_precision_is_read_as_float32():
    leaf = load("hf_dinov2_registers").variables["params"]["cls_token"]
    assert leaf.dtype == np.float32


def test_preprocessing_is_read():
    distorted = load("hf_vit").preprocessing
    assert (distorted.image_size, distorted.keep_aspect) == ((28, 42), False)
    assert (distorted.interpolation, distorted.mean) == ("bilinear", (0.5, 0.5, 0.5))
    cropped = load("hf_dinov2").preprocessing
    assert (cropped.image_size, cropped.crop_fraction, cropped.keep_aspect) == (
        (28, 28),
        0.875,
        True,
    )
    timm = load("timm_vit").preprocessing
    assert (timm.image_size, timm.crop_fraction, timm.interpolation) == ((28, 42), 0.9, "bicubic")


@pytest.mark.parametrize("name", ["hf_vit", "hf_vit_classifier", "hf_mae", "hf_dinov2_gated"])
def test_names_of_transformers_5s_modules(name, tmp_path):
    """A state dict saved as it is in memory there, for example by another library."""
    directory = tmp_path / name
    directory.mkdir()
    (directory / "config.json").write_text((GOLDEN / name / "config.json").read_text())
    tensors = {}
    for key, value in files.read_tensors(GOLDEN / name).items():
        if "weights_in" in key:
            for part, half in zip(("gate_proj", "up_proj"), np.split(value, 2), strict=True):
                tensors[key.replace("weights_in", part)] = np.ascontiguousarray(half)
            continue
        key = key.replace("attention.attention.query", "attention.q_proj")
        key = key.replace("attention.attention.key", "attention.k_proj")
        key = key.replace("attention.attention.value", "attention.v_proj")
        key = key.replace("attention.output.dense", "attention.o_proj")
        key = key.replace("weights_out", "down_proj")
        if "dinov2" not in name:
            key = key.replace("decoder_encoder.layer.", "decoder_layers.")
            key = key.replace("encoder.layer.", "layers.")
            key = key.replace("intermediate.dense", "mlp.fc1").replace("output.dense", "mlp.fc2")
        tensors[key] = value
    files.write_tensors(directory / "model.safetensors", tensors)
    found = encoders.load(directory)
    chex.assert_trees_all_equal(found.variables, load(name).variables)
    chex.assert_trees_all_equal(found.heads, load(name).heads)


def test_goldens_are_small():
    assert sum(file.stat().st_size for file in GOLDEN.rglob("*")) < 1_100_000
