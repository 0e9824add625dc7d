"""Bad or unsupported weights: one sentence each, that names what is wrong."""

import json
import pathlib
import shutil

import numpy as np
import pytest

import encoders
from encoders.checkpoints.formats import files
from encoders.checkpoints.formats.mapping import flatten
from encoders.errors import CheckpointError, StorageError
from encoders.rules import unflatten

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "interop"


@pytest.fixture
def copy(tmp_path):
    """Copies a golden directory, with its config and tensors changed."""

    def make(name, config=None, tensors=None, without=()):
        directory = tmp_path / name
        directory.mkdir()
        fields = json.loads((GOLDEN / name / "config.json").read_text())
        files.write_json(directory / "config.json", {**fields, **(config or {})})
        found = files.read_tensors(GOLDEN / name)
        kept = {key: value for key, value in found.items() if key not in without}
        files.write_tensors(directory / "model.safetensors", {**kept, **(tensors or {})})
        return directory

    return make


def test_missing_unknown_and_misshaped_tensors_are_all_listed(copy):
    directory = copy(
        "hf_vit",
        tensors={"layernorm.bias": np.zeros(3, "f4"), "surprise": np.zeros(1, "f4")},
        without=["layernorm.weight", "encoder.layer.1.output.dense.bias"],
    )
    with pytest.raises(CheckpointError) as error:
        encoders.load(directory)
    message = str(error.value)
    assert "missing: encoder.layer.1.output.dense.bias, layernorm.weight;" in message
    assert "unknown: surprise;" in message
    assert "of another shape: layernorm.bias is (3,), not (20,)" in message


def test_a_long_list_is_cut(copy):
    with pytest.raises(CheckpointError, match=r"and \d+ more"):
        encoders.load(copy("hf_vit", {"num_hidden_layers": 4}))


@pytest.mark.parametrize(
    "name, config, message",
    [
        (
            "hf_vit",
            {"model_type": "vitt"},
            "model_type 'vitt' is not supported. Did you mean 'vit'",
        ),
        (
            "hf_vit",
            {"model_type": "clip_vision_model"},
            "is not supported. Known: albert, align, bert",
        ),
        ("hf_vit", {"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        ("hf_vit", {"hidden_act": "quick_gel"}, "Did you mean 'quick_gelu'"),
        ("hf_vit", {"head_dim": 8}, "head_dim 8 x 5 heads is not hidden_size 20"),
        ("hf_vit", {"hidden_size": "20"}, "hidden_size='20' in config.json makes no sense"),
        ("hf_vit", {"patch_size": [14]}, r"patch_size=\[14\] in config.json makes no sense"),
        ("hf_vit", {"image_size": [42, 42]}, r"position_embeddings is \(1, 7, 20\), not \(1, 10,"),
        ("hf_dinov2", {"use_swiglu_ffn": True}, "missing: encoder.layer.0.mlp.weights_in.bias"),
        ("timm_vit", {"architecture": "vit_base_patch16_clip_224"}, "is not supported; supported"),
        ("timm_vit", {"architecture": "vit_intern300m_patch14_448"}, "is not supported"),
        ("timm_vit", {"architecture": "vit_base_patch16_rope_224"}, "is not supported; supported"),
        ("timm_vit", {"architecture": "resnext50"}, "architecture 'resnext50' is not supported"),
        ("timm_vit", {"model_args": {"pre_norm": True}}, "pre_norm=True is not supported, only"),
        ("timm_vit", {"model_args": {"norm_layer": "rmsnorm"}}, "norm_layer='rmsnorm'"),
        ("timm_vit", {"model_args": {"act_layer": "relu"}}, "act_layer 'relu' is not supported"),
        ("timm_vit", {"model_args": {"num_head": 5}}, "Did you mean 'num_heads'"),
        ("timm_vit", {"model_args": {"global_pool": "max"}}, "global_pool 'max' is not supported"),
        ("timm_vit", {"model_args": {"depth": 3, "num_heads": 5}}, "missing: blocks.2.attn.proj"),
    ],
)
def test_configs_that_are_not_supported(copy, name, config, message):
    with pytest.raises(CheckpointError, match=message):
        encoders.load(copy(name, config))


def test_a_norm_before_the_blocks_is_not_ignored(copy):
    extra = {"norm_pre.weight": np.ones(20, "f4"), "norm_pre.bias": np.zeros(20, "f4")}
    with pytest.raises(CheckpointError, match=r"unknown: norm_pre.bias, norm_pre.weight"):
        encoders.load(copy("timm_vit", tensors=extra))


def test_odd_decoders_are_left_out_and_said(copy):
    tensors = files.read_tensors(GOLDEN / "hf_mae")
    zero = {"decoder.decoder_pos_embed": np.zeros_like(tensors["decoder.decoder_pos_embed"])}
    encoder = encoders.load(copy("hf_mae", tensors=zero))
    assert encoder.objective is None
    assert not encoder.heads
    reasons = set(encoder.metadata["dropped"].values())
    assert reasons == {"a decoder with other positions than the fixed sin-cos ones"}


def test_pickles_are_not_opened(tmp_path):
    shutil.copy(GOLDEN / "hf_vit" / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(
        CheckpointError, match=r"'pytorch_model.bin', a pickle, which is not opened"
    ):
        encoders.load(tmp_path)


def test_damaged_and_incomplete_files(tmp_path, copy):
    directory = copy("hf_vit")
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
        encoders.load(directory)
    (directory / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not readable JSON"):
        encoders.load(directory)
    shards = tmp_path / "shards"
    shutil.copytree(GOLDEN / "hf_dinov2", shards)
    (shards / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 'model-00002-of-00003.safetensors'"):
        encoders.load(shards)
    index = json.loads((shards / "model.safetensors.index.json").read_text())
    index["weight_map"] = {"a": "../elsewhere.safetensors"}
    files.write_json(shards / "model.safetensors.index.json", index)
    with pytest.raises(CheckpointError, match="is not a file beside it"):
        encoders.load(shards)


def test_shards_that_disagree_with_their_index(tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(GOLDEN / "hf_dinov2", shards)
    path = shards / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["ghost"] = "model-00001-of-00003.safetensors"
    files.write_json(path, index)
    with pytest.raises(CheckpointError, match="disagree about 1 tensors, such as 'ghost'"):
        encoders.load(shards)


@pytest.mark.parametrize(
    "processor, reason",
    [
        (None, "the directory has no preprocessor_config.json"),
        ({"resample": 9}, "has resample=9"),
        ({"image_mean": [0.5]}, "has 1 means or deviations for 3 channels"),
        ({"size": {"shortest_edge": 32}}, "which gives no fixed size"),
        ({"do_resize": False}, "does not resize"),
        ({"do_center_crop": True}, "crops without a crop_size"),
        ({"do_center_crop": True, "crop_size": 64}, "crops"),
    ],
)
def test_weights_are_usable_without_a_usable_processor(copy, processor, reason):
    directory = copy("hf_vit")
    if processor is not None:
        fields = json.loads((GOLDEN / "hf_vit" / "preprocessor_config.json").read_text())
        files.write_json(directory / "preprocessor_config.json", {**fields, **processor})
    encoder = encoders.load(directory)
    assert encoder.preprocessing is None
    assert reason in encoder.metadata["no_preprocessing"]


@pytest.mark.parametrize(
    "processor, image_size, fraction, mean",
    [
        ({"size": 28}, (28, 28), 1.0, 0.5),
        ({"size": 32, "do_center_crop": True, "crop_size": 28}, (28, 28), 28 / 32, 0.5),
        ({"size": {"height": 28, "width": 56}, "do_rescale": False}, (28, 56), 1.0, 0.5 / 255),
        ({"size": 28, "do_normalize": False}, (28, 28), 1.0, 0.0),
        ({"size": 28, "image_mean": 0.25}, (28, 28), 1.0, 0.25),
    ],
)
def test_processors_old_and_new(copy, processor, image_size, fraction, mean):
    directory = copy("hf_vit")
    fields = json.loads((GOLDEN / "hf_vit" / "preprocessor_config.json").read_text())
    files.write_json(directory / "preprocessor_config.json", {**fields, **processor})
    found = encoders.load(directory).preprocessing
    assert found.image_size == image_size
    assert found.crop_fraction == fraction
    assert found.keep_aspect is False
    np.testing.assert_allclose(found.mean, (mean,) * 3, rtol=1e-6)


@pytest.mark.parametrize("crop, full", [(224, 256), (224, 248), (28, 32), (336, 341), (7, 9)])
def test_crop_fraction_gives_back_the_size(crop, full):
    from encoders.checkpoints.formats.hf_processor import crop_fraction

    assert int(crop / crop_fraction(crop, full)) == full


def test_new_directory_is_all_or_nothing(tmp_path):
    target = tmp_path / "deep" / "out"

    def fail_halfway():
        with files.new_directory(target) as temporary:
            (temporary / "half").write_text("")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert list(target.parent.iterdir()) == []
    with files.new_directory(target) as temporary:
        (temporary / "whole").write_text("")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["whole"]
    with pytest.raises(StorageError, match="exists already"), files.new_directory(target):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError), files.new_directory(tmp_path / "file" / "x"):
        pass


def test_flatten_and_back():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert flatten(tree) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert unflatten(flatten(tree)) == tree
