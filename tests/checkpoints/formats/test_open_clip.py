"""CLIP, CLIPA and SigLIP that open_clip wrote: outputs, losses, gradients and names, both ways.

Written by `python -m tools.golden.write_pairs`; read here without PyTorch.
"""

import dataclasses
import json

import chex
import numpy as np
import pairs
import pytest

import encoders
from encoders.checkpoints.formats import files
from encoders.errors import CheckpointError

NAMES = ("open_clip", "open_clip_quick", "open_clip_mean", "open_clip_siglip")
OWN = NAMES[:3]  # with open_clip's own image tower
ATOL = 5e-6
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


@pytest.mark.parametrize("name", NAMES)
def test_towers_embeddings_logits_and_loss(name):
    pairs.check(name, ATOL)


@pytest.mark.parametrize("name", OWN)
def test_gradients(name, tmp_path):
    *_, gradients = pairs.run(name)
    # Written as if they were weights: under the names of open_clip, where no tower has a prefix.
    carrier = dataclasses.replace(pairs.load(name), variables={"params": gradients})
    encoders.save(carrier, tmp_path / "out", format="open_clip")
    ours = files.read_tensors(tmp_path / "out")
    theirs = {key.removeprefix("text."): x for key, x in pairs.gradients(name).items()}
    assert {"logit_scale", "visual.conv1.weight", "text_projection"} < set(theirs)
    for key, gradient in theirs.items():
        found = ours[key]
        if key == "visual.positional_embedding":  # not the class token's
            found, gradient = found[1:], gradient[1:]
        np.testing.assert_allclose(found, gradient, rtol=0, atol=ATOL, err_msg=key)


def test_gradients_of_a_tower_of_timm():
    *_, gradients = pairs.run("open_clip_siglip")
    theirs = pairs.gradients("open_clip_siglip")
    pooling = gradients["image"]["pooling"]
    for ours, name in (
        (pooling["probe"], "visual.trunk.attn_pool.latent"),
        (pooling["mlp"]["fc1"]["kernel"].T, "visual.trunk.attn_pool.mlp.fc1.weight"),
        (gradients["text"]["embeddings"]["words"], "text.token_embedding.weight"),
        (gradients["text_projection"]["bias"], "text.text_projection.bias"),
        (gradients["logit_bias"], "logit_bias"),
    ):
        np.testing.assert_allclose(ours, theirs[name].reshape(ours.shape), rtol=0, atol=ATOL)


@pytest.mark.parametrize("name", OWN)
def test_export_of_import_is_the_same(name, tmp_path):
    pair = pairs.load(name)
    encoders.save(pair, tmp_path / "out", format="open_clip")
    before = files.read_tensors(pairs.GOLDEN / name, WEIGHTS)
    before = {key.removeprefix("text."): value for key, value in before.items()}
    # The class token's position is added to it for good.
    before["visual.class_embedding"] += before["visual.positional_embedding"][0]
    before["visual.positional_embedding"][0] = 0
    chex.assert_trees_all_equal(files.read_tensors(tmp_path / "out", WEIGHTS), before)
    again = encoders.load(tmp_path / "out")
    assert again.module == pair.module
    chex.assert_trees_all_equal(again.variables, pair.variables)
    if pair.preprocessing is not None:
        assert again.preprocessing.image == pair.preprocessing.image
        assert again.preprocessing.text.to_json() == pair.preprocessing.text.to_json()
    with pytest.raises(CheckpointError, match="format 'hf'"):  # an image that is no square
        encoders.save(pair, tmp_path / "hf", format="hf")


def test_from_transformers_to_open_clip_and_back(tmp_path):
    pair = pairs.load("hf_clip")
    encoders.save(pair, tmp_path / "open_clip", format="open_clip")
    there = encoders.load(tmp_path / "open_clip")
    chex.assert_trees_all_equal(there.variables, pair.variables)
    assert there.module == pair.module
    assert there.preprocessing.image == pair.preprocessing.image
    plain = there.module.image.clone(norm_after_pool=False)  # the same for a class token
    there = dataclasses.replace(there, module=there.module.clone(image=plain))
    encoders.save(there, tmp_path / "hf", format="hf")
    again = encoders.load(tmp_path / "hf")
    chex.assert_trees_all_equal(again.variables, pair.variables)
    assert again.module == pair.module


@pytest.mark.parametrize("name", ["open_clip", "open_clip_siglip"])
def test_texts_become_the_ids_of_the_tokenizer(name):
    text, want = pairs.load(name).preprocessing.text, pairs.tokenized(name)
    [tokenize] = text.eval_transforms()
    rows = [tokenize({"text": t}, np.random.default_rng(0)) for t in want["texts"]]
    np.testing.assert_array_equal([row["ids"] for row in rows], want["ids"])
    whole = name == "open_clip_siglip"
    assert (text.attend_padding, text.lowercase, text.strip_punctuation) == (whole,) * 3


def test_which_gelu_is_read_from_the_config():
    mlps = {name: pairs.load(name).module for name in NAMES}
    assert {name: (m.image.mlp, m.text.mlp) for name, m in mlps.items()} == {
        "open_clip": ("gelu", "gelu"),
        "open_clip_quick": ("quick_gelu", "quick_gelu"),
        "open_clip_mean": ("gelu", "gelu"),
        "open_clip_siglip": ("gelu", "gelu_tanh"),
    }


def test_the_processor_is_read():
    image = pairs.load("open_clip").preprocessing.image
    assert (image.image_size, image.keep_aspect, image.crop_fraction) == ((28, 42), True, 1.0)
    assert (image.interpolation, image.mean[0]) == ("bicubic", 0.48145466)


def test_directories_that_hold_both(tmp_path):
    directory = pairs.copied("open_clip", tmp_path / "copy")
    config = (pairs.GOLDEN / "hf_clip" / "config.json").read_bytes()
    (directory / "config.json").write_bytes(config)
    assert encoders.load(directory).metadata["format"] == "open_clip"
    weights = (pairs.GOLDEN / "hf_clip" / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(weights)
    assert encoders.load(directory).metadata["format"] == "hf"


# --- bad input ------------------------------------------------------------------------------------


def test_the_activation_is_not_guessed(tmp_path):
    directory = pairs.copied("open_clip", tmp_path / "copy")
    config = json.loads((directory / CONFIG).read_text())
    del config["preprocess_cfg"]  # nothing says that open_clip wrote it
    files.write_json(directory / CONFIG, config)
    with pytest.raises(CheckpointError, match="says nothing of the activation"):
        encoders.load(directory)
    config["model_cfg"]["quick_gelu"] = True
    files.write_json(directory / CONFIG, config)
    assert encoders.load(directory).module.text.mlp == "quick_gelu"
    (directory / CONFIG).unlink()
    (directory / WEIGHTS).rename(directory / "weights.safetensors")
    with pytest.raises(
        CheckpointError, match=r'neither config.json nor open_clip_config.json.*"quick'
    ):
        encoders.load(directory)


def image(**fields):
    return lambda config: config["model_cfg"]["vision_cfg"].update(fields)


def text(**fields):
    return lambda config: config["model_cfg"]["text_cfg"].update(fields)


def model(**fields):
    return lambda config: config["model_cfg"].update(fields)


@pytest.mark.parametrize(
    "name, edit, message",
    [
        ("open_clip", image(layers=[3, 4]), "vision_cfg.mlp_ratio is not supported"),
        ("open_clip", image(attentional_pool=True), "attentional_pool=True is not supported"),
        ("open_clip", image(pool_typ="avg"), "pool_typ is not supported. Did you mean 'pool_type'"),
        ("open_clip", image(qk_norm=True), "vision_cfg.qk_norm=True is not supported, only False"),
        ("open_clip", image(width="12"), "vision_cfg.width='12' in open_clip_config.json makes no"),
        ("open_clip", image(image_size=[28, 28]), r"is \(7, 12\), not \(5, 12\)"),
        ("open_clip", image(act_kwargs={"inplace": True}), "'inplace': True}.* is not supported"),
        ("open_clip", text(hf_model_name="roberta-base"), "hf_model_name='roberta-base' is not"),
        ("open_clip", text(embed_cls=True), "text_cfg.embed_cls=True is not supported"),
        ("open_clip", text(no_causal_mask=True), "the padding behind a text would be read"),
        ("open_clip", text(layers=3), "missing: transformer.resblocks.2.attn.in_proj_bias"),
        ("open_clip", model(quick_gelu="no"), "model_cfg.quick_gelu='no' in open_clip_config.json"),
        ("open_clip", model(multimodal_cfg={}), "model_cfg.multimodal_cfg is not supported"),
        ("open_clip", model(embed_dim=None), "model_cfg has no embed_dim"),
        ("open_clip", model(vision_cfg=None), "vision_cfg in open_clip_config.json is no section"),
        ("open_clip_siglip", image(timm_model_name="resnet50"), "'resnet50' is not supported"),
        ("open_clip_siglip", image(timm_proj="mlp"), "timm_proj 'mlp' is not supported"),
    ],
)
def test_what_is_not_supported_is_refused(name, edit, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        encoders.load(pairs.copied(name, tmp_path / "copy", edit))


def test_tensors_beside_the_weights(tmp_path):
    sizes = {"input_resolution": np.array(28), "context_length": np.array(10)}
    found = encoders.load(pairs.copied("open_clip", tmp_path / "copy", tensors=sizes))
    assert set(found.metadata["dropped"]) == set(sizes)
    broken = pairs.copied("open_clip", tmp_path / "broken", without=["visual.proj"])
    with pytest.raises(CheckpointError, match=r"missing: visual\.proj"):
        encoders.load(broken)


@pytest.mark.parametrize(
    "field, edit, reason",
    [
        ("preprocess_cfg", {"resize_mode": "longest"}, "its resize_mode is 'longest'"),
        ("text_cfg", {"tokenizer_kwargs": {"strip_sep_token": True}}, "its tokenizer_kwargs are"),
        ("text_cfg", {"tokenizer_mode": "clips"}, "its tokenizer_mode is 'clips'"),
    ],
)
def test_weights_are_usable_without_preparation_that_is_not_supported(
    field, edit, reason, tmp_path
):
    def change(config):
        (config if field in config else config["model_cfg"])[field].update(edit)

    found = encoders.load(pairs.copied("open_clip", tmp_path / "copy", change))
    assert found.preprocessing is None
    assert reason in found.metadata["no_preprocessing"]


@pytest.mark.parametrize(
    "name, image, text, message",
    [
        ("open_clip", {"pool": "map"}, {}, "model.image.pool='map' .* there it is 'cls' or 'mean'"),
        ("open_clip", {}, {"mlp": "quick_gelu"}, "both towers have quick_gelu there, or none"),
        ("open_clip", {}, {"mlp": "relu"}, "mlp='relu' cannot be expressed"),
        ("open_clip_siglip", {}, {}, "model.image.class_token=False cannot be expressed"),
    ],
)
def test_what_open_clip_has_not_is_refused(name, image, text, message, tmp_path):
    pair = pairs.load(name)
    towers = {"image": pair.module.image.clone(**image), "text": pair.module.text.clone(**text)}
    changed = dataclasses.replace(pair, module=pair.module.clone(**towers))
    with pytest.raises(CheckpointError, match=message):
        encoders.save(changed, tmp_path / "out", format="open_clip")


def test_goldens_are_small():
    assert sum(file.stat().st_size for file in pairs.GOLDEN.rglob("*")) < 1_200_000
