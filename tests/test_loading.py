"""encoders.load and encoders.save: every kind of path, and what an Encoder computes."""

import dataclasses
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

import encoders
from encoders import loading
from encoders.checkpoints.formats import files
from encoders.checkpoints.store import CheckpointStore
from encoders.config import build
from encoders.data import Preprocessing
from encoders.errors import CheckpointError, ConfigError, DataError, StorageError
from encoders.layers.stack import unstack_layers
from encoders.models import MODELS
from encoders.objectives import OBJECTIVES
from tools.golden.inputs import picture

MODEL = {
    "name": "vit",
    "width": 24,
    "depth": 2,
    "mlp_dim": 48,
    "num_heads": 3,
    "patch_size": [8, 4],
    "positions": "sincos2d",
}
CONFIG = {
    "model": {**MODEL, "scan": True},
    "objective": {
        "name": "masked_image",
        "mask_ratio": 0.5,
        "decoder": {"width": 16, "depth": 1, "num_heads": 2},
    },
    "preprocessing": {"name": "image", "image_size": [16, 24]},
    "ema": 0.9,
}


def random_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), tree)


def make_encoder(fields, preprocessing):
    """An encoder with random weights that no run wrote."""
    module = build(MODELS, {**MODEL, **fields}, "model")
    shapes = jax.eval_shape(module.init, jax.random.key(0), picture((16, 24)))
    return encoders.Encoder(module, random_like(shapes, 0), preprocessing)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's directory with two checkpoints, and its states by step."""
    directory = tmp_path_factory.mktemp("runs") / "x"
    encoder = build(MODELS, CONFIG["model"], "model")
    objective = build(OBJECTIVES, CONFIG["objective"], "objective", encoder=encoder)
    batch = {"image": picture((16, 24))}
    shapes = jax.eval_shape(objective.init, jax.random.key(0), batch)["params"]
    preprocessing = Preprocessing(image_size=(16, 24)).to_json()
    states = {}
    with CheckpointStore(directory / "checkpoints", keep_last=2) as store:
        for step in (10, 20):
            states[step] = {
                "step": np.int32(step),
                "params": random_like(shapes, step),
                "ema": random_like(shapes, step + 1),
                "stats": {},
            }
            metadata = {"config": CONFIG, "preprocessing": preprocessing, "step": step}
            store.save(step, states[step], metadata, wait=True)
    files.write_json(directory / "config.json", CONFIG)
    return directory, states


@pytest.fixture(scope="module")
def encoder(run):
    return encoders.load(run[0])


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)


# --- runs -----------------------------------------------------------------------------------------


def test_a_run_gives_the_average_of_its_newest_checkpoint(run, encoder):
    directory, states = run
    chex.assert_trees_all_equal(encoder.variables["params"], states[20]["ema"]["encoder"])
    chex.assert_trees_all_equal(encoder.heads, {"decoder": states[20]["ema"]["decoder"]})
    assert (encoder.metadata["step"], encoder.metadata["weights"]) == (20, "ema")
    assert encoder.metadata["format"] == "run"
    assert encoder.preprocessing == Preprocessing(image_size=(16, 24))
    trained = encoders.load(directory, weights="params")
    chex.assert_trees_all_equal(trained.variables["params"], states[20]["params"]["encoder"])


def test_one_checkpoint(run):
    directory, states = run
    found = encoders.load(directory / "checkpoints" / "10")
    chex.assert_trees_all_equal(found.variables["params"], states[10]["ema"]["encoder"])
    newest = encoders.load(directory / "checkpoints")
    assert newest.metadata["step"] == 20


def test_parts_for_other_uses(run):
    directory, states = run
    chex.assert_trees_all_equal(loading.read_params(directory), states[20]["ema"])
    variables = loading.read_variables(directory, weights="params")
    assert list(variables) == ["params"]
    chex.assert_trees_all_equal(variables["params"], states[20]["params"])
    assert loading.run_config(directory)["objective"]["mask_ratio"] == 0.5
    assert loading.run_config(directory / "checkpoints" / "10")["ema"] == 0.9


def test_running_statistics_come_along(tmp_path):
    statistics = {"stats": {"head_norm": {"mean": np.arange(3, dtype=np.float32)}}}
    with CheckpointStore(tmp_path / "checkpoints") as store:
        state = {"params": {"encoder": {"w": np.ones(2, np.float32)}}, "stats": statistics}
        metadata = {"config": {**CONFIG, "ema": None}, "preprocessing": None}
        store.save(1, state, metadata, wait=True)
    variables = loading.read_variables(tmp_path)
    chex.assert_trees_all_equal(variables["stats"], statistics["stats"])
    chex.assert_trees_all_equal(variables["params"], state["params"])


# --- what an encoder computes ---------------------------------------------------------------------


def test_uint8_is_normalised_and_floats_are_not(encoder, images):
    out = encoder(images)
    normal = encoder.preprocessing.normalize(images)
    np.testing.assert_allclose(encoder(normal).tokens, out.tokens, atol=1e-5)
    pure = jax.jit(encoder.module.apply)(encoder.variables, normal)
    np.testing.assert_allclose(out.tokens, pure.tokens, atol=1e-5)
    np.testing.assert_allclose(out.pooled, pure.pooled, atol=1e-5)
    assert out.tokens.shape == (2, 13, 24)
    assert out.mask.shape == (2, 13)
    assert out.hidden == {}


def test_layers_masks_and_kept_patches(encoder, images):
    out = encoder(images, layers=(0, -1))
    assert sorted(out.hidden) == [0, 1]
    again = encoder(images, layers=[0, -1])
    chex.assert_trees_all_equal(out.hidden, again.hidden)
    keep = np.array([[0, 3, 5], [11, 2, 1]], np.int32)
    normal = encoder.preprocessing.normalize(images)
    kept = encoder(images, keep=keep)
    pure = jax.jit(encoder.module.apply)(encoder.variables, normal, keep=keep)
    np.testing.assert_allclose(kept.tokens, pure.tokens, atol=1e-5)
    mask = np.ones((2, 12), bool)
    mask[1, 6:] = False
    masked = encoder(images, mask=mask)
    np.testing.assert_array_equal(masked.mask[:, 1:], mask)
    np.testing.assert_allclose(masked.tokens[0], encoder(images).tokens[0], atol=1e-5)
    assert np.abs(masked.tokens[1, 0] - encoder(images).tokens[1, 0]).max() > 1e-3


def test_compiled_once_per_choice_of_layers(encoder, images):
    encoder = dataclasses.replace(encoder)  # with a cache of its own
    for _ in range(2):
        encoder(images)
        encoder(images, layers=(0,))
        encoder(images, layers=[0])
    assert encoder._apply._cache_size() == 2


def test_other_sizes(encoder):
    assert encoder(np.zeros((1, 32, 8, 3), np.uint8)).tokens.shape == (1, 9, 24)


@pytest.mark.parametrize(
    "given, message",
    [
        (np.zeros((16, 24, 3), np.uint8), r"expected a batch \[B, H, W, C\], got one image"),
        (np.zeros((16, 24), np.uint8), r"expected a batch \[B, H, W, C\], got \(16, 24\)"),
        (np.zeros((1, 16, 24, 1), np.uint8), "expected 3 channels in the last axis"),
        (np.zeros((1, 3, 16, 24), np.float32), "expected 3 channels in the last axis"),
        (np.zeros((1, 16, 24, 3), np.int32), "expected uint8 or normalised floats, got int32"),
    ],
)
def test_bad_images(encoder, given, message):
    with pytest.raises(DataError, match=message):
        encoder(given)


def test_bad_size_and_layer(encoder):
    with pytest.raises(ConfigError, match="not divisible by the patch size"):
        encoder(np.zeros((1, 15, 24, 3), np.uint8))
    with pytest.raises(ConfigError, match="there is no layer 2"):
        encoder(np.zeros((1, 16, 24, 3), np.uint8), layers=(2,))


def test_uint8_without_preprocessing(encoder, images):
    bare = dataclasses.replace(encoder, preprocessing=None)
    with pytest.raises(DataError, match="no preprocessing to normalise uint8 with"):
        bare(images)
    normal = encoder.preprocessing.normalize(images)
    np.testing.assert_allclose(bare(normal).tokens, encoder(images).tokens, atol=1e-5)


# --- saving ---------------------------------------------------------------------------------------


def test_native_keeps_everything(encoder, images, tmp_path):
    encoders.save(encoder, tmp_path / "all", heads=True)
    found = encoders.load(tmp_path / "all")
    assert found.module == encoder.module
    assert found.preprocessing == encoder.preprocessing
    assert found.objective == encoder.objective
    chex.assert_trees_all_equal(found.variables, encoder.variables)
    chex.assert_trees_all_equal(found.heads, dict(encoder.heads))
    assert found.metadata["step"] == 20
    tree = {"encoder": encoder.variables["params"], **encoder.heads}
    chex.assert_trees_all_equal(loading.read_params(tmp_path / "all"), tree)
    np.testing.assert_array_equal(found(images).tokens, encoder(images).tokens)
    encoders.save(found, tmp_path / "encoder")
    alone = encoders.load(tmp_path / "encoder")
    assert alone.objective is None
    assert not alone.heads
    assert loading.run_config(tmp_path / "encoder")["objective"] is None


@pytest.mark.parametrize("format", ["hf", "timm"])
def test_other_formats_give_the_same_outputs(encoder, images, format, tmp_path):
    """The network is scanned, with fixed positions and patches of (8, 4); theirs is neither."""
    plain = Preprocessing(image_size=(16, 24), keep_aspect=False)
    encoders.save(dataclasses.replace(encoder, preprocessing=plain), tmp_path / "x", format=format)
    found = encoders.load(tmp_path / "x")
    assert found.module.positions == "learned"
    assert found.module.scan is False
    assert found.preprocessing.image_size == (16, 24)
    assert found.preprocessing.keep_aspect is False
    np.testing.assert_allclose(found.preprocessing.mean, plain.mean, rtol=1e-6)
    np.testing.assert_allclose(found.preprocessing.crop_fraction, 0.875, rtol=0.05)
    out, again = encoder(images, layers="all"), found(images, layers="all")
    np.testing.assert_allclose(again.tokens, out.tokens, atol=1e-5)
    np.testing.assert_allclose(again.pooled, out.pooled, atol=1e-5)
    np.testing.assert_allclose(again.hidden[0], out.hidden[0], atol=1e-5)
    kernel = found.variables["params"]["blocks_1"]["mlp"]["fc1"]["kernel"]
    own = unstack_layers(encoder.variables["params"])["blocks_1"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_array_equal(kernel, own)


def test_pooling_survives_a_trip_through_transformers(tmp_path):
    preprocessing = Preprocessing(image_size=(16, 24), keep_aspect=False)
    made = make_encoder({"pool": "mean", "patch_size": 8}, preprocessing)
    encoders.save(made, tmp_path / "x", format="hf")
    found = encoders.load(tmp_path / "x")
    images = picture((16, 24))
    np.testing.assert_allclose(found(images).pooled, made(images).pooled, atol=1e-5)
    assert "pooler.dense.weight" not in files.read_tensors(tmp_path / "x")


@pytest.mark.parametrize(
    "fields, format, field",
    [
        ({"class_token": False, "pool": "mean"}, "hf", "class_token=False"),
        ({"positions": "rotary2d"}, "hf", "positions='rotary2d'"),
        ({"positions": "rotary2d"}, "timm", "positions='rotary2d'"),
        ({"qk_norm": True}, "hf", "qk_norm=True"),
        ({"parallel": True}, "hf", "parallel=True"),
        ({"parallel": True}, "timm", "parallel=True"),
        ({"pool": "map"}, "hf", "pool='map'"),
        ({"pool": "mean", "norm_after_pool": True}, "hf", "norm_after_pool=True"),
        ({"layer_scale": 0.1}, "hf", "positions='a 2 x 6 grid' cannot"),
        ({"layer_scale": 0.1, "mlp_dim": 50, "patch_size": (8, 12)}, "hf", "mlp_dim=50"),
        ({"norm_eps": 1e-5}, "timm", "norm_eps=1e-05"),
        ({"pool": "none", "norm_after_pool": True}, "timm", "norm_after_pool=True"),
    ],
)
def test_what_cannot_be_expressed_is_named(fields, format, field, tmp_path):
    made = make_encoder(fields, Preprocessing(image_size=(16, 24)))
    with pytest.raises(CheckpointError, match=f"{field}"):
        encoders.save(made, tmp_path / "x", format=format)
    assert list(tmp_path.iterdir()) == []


def test_heads_that_cannot_be_expressed(encoder, tmp_path):
    with pytest.raises(CheckpointError, match="objective='masked_image'"):
        encoders.save(encoder, tmp_path / "x", format="timm", heads=True)
    with pytest.raises(
        CheckpointError, match="objective='masked_image' cannot be expressed: ViTMAE"
    ):
        encoders.save(encoder, tmp_path / "x", format="hf", heads=True)  # no square
    alone = dataclasses.replace(encoder, objective=None, heads={})
    with pytest.raises(CheckpointError, match="an encoder alone"):
        encoders.save(alone, tmp_path / "x", heads=True)
    made = dataclasses.replace(
        make_encoder({"pool": "mean"}, Preprocessing(image_size=(16, 24))),
        objective={"name": "classification", "num_classes": 3},
        heads={"head": {"kernel": np.zeros((24, 3), "f4"), "bias": np.zeros(3, "f4")}},
    )
    with pytest.raises(CheckpointError, match="pool='mean' cannot be expressed: a classifier"):
        encoders.save(made, tmp_path / "x", format="hf", heads=True)


def test_processors_that_cannot_be_expressed(encoder, tmp_path):
    with pytest.raises(CheckpointError, match=r"preprocessing\.image_size"):
        encoders.save(encoder, tmp_path / "x", format="hf")  # covers, and is no square


def test_saving_over_something_is_refused(encoder, tmp_path):
    (tmp_path / "kept").write_text("")
    with pytest.raises(StorageError, match="exists already"):
        encoders.save(encoder, tmp_path)
    with pytest.raises(CheckpointError, match=r"unknown 'hff'. Did you mean 'hf'"):
        encoders.save(encoder, tmp_path / "x", format="hff")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_full_disk_leaves_nothing_behind(encoder, tmp_path, monkeypatch):
    def full(*_, **__):
        raise files.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(StorageError, match="No space left on device"):
        encoders.save(encoder, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


# --- wrong paths ----------------------------------------------------------------------------------


def test_wrong_paths(run, tmp_path):
    directory, _ = run
    with pytest.raises(CheckpointError, match=r"no such directory .*Did you mean 'x'|Known: x"):
        encoders.load(directory.parent / "y")
    with pytest.raises(CheckpointError, match="is a file; give the directory it is in"):
        encoders.load(directory / "config.json")
    (directory / "checkpoints" / "11").mkdir()
    with pytest.raises(CheckpointError, match="no finished checkpoint of step 11"):
        encoders.load(directory / "checkpoints" / "11")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"it holds notes\.txt"):
        encoders.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="expected one of the fields 'format'"):
        encoders.load(tmp_path)
    (tmp_path / "config.json").write_text('{"format": "encoders", "version": 9}')
    with pytest.raises(CheckpointError, match=r"version 9 of the format; this one reads 1"):
        encoders.load(tmp_path)
    (tmp_path / "config.json").write_text('{"format": "encoders", "version": 1, "model": {}}')
    with pytest.raises(CheckpointError, match="lacks preprocessing, objective, metadata"):
        encoders.load(tmp_path)
    with pytest.raises(CheckpointError, match=r"weights: unknown 'emma'. Did you mean 'ema'"):
        encoders.load(directory, weights="emma")


# --- the package ----------------------------------------------------------------------------------


def test_import_is_light():
    code = """
import sys, time
began = time.perf_counter()
import encoders
seconds = time.perf_counter() - began
light = [name for name in ("jax", "flax", "numpy", "orbax") if name in sys.modules]
encoders.load, encoders.save, encoders.Encoder, encoders.Encoded
heavy = [n for n in ("torch", "tensorflow", "transformers", "timm") if n in sys.modules]
print(seconds < 1, light, heavy, set(encoders.__all__) <= set(dir(encoders)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True [] [] True"


def test_unknown_names_are_unknown():
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        encoders.laod  # noqa: B018
