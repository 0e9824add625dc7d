"""CLIP and SigLIP that transformers wrote: outputs, losses, gradients and names, both ways.

Written by `python -m tools.golden.write_pairs`; read here without PyTorch.
"""

import dataclasses
import json

import chex
import jax
import numpy as np
import pairs
import pytest

import encoders
from encoders.checkpoints.formats import files
from encoders.config import build
from encoders.errors import CheckpointError, DataError
from encoders.models import MODELS
from encoders.objectives import OBJECTIVES
from tools.golden.inputs import picture

NAMES = ("hf_clip", "hf_clip_gelu", "hf_siglip", "hf_siglip2", "hf_siglip2_naflex")
ATOL = 5e-6


@pytest.mark.parametrize("name", NAMES)
def test_towers_embeddings_logits_and_loss(name):
    pairs.check(name, ATOL)


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name, tmp_path):
    *_, gradients = pairs.run(name)
    # Written as if they were weights: under the names of transformers.
    carrier = dataclasses.replace(pairs.load(name), variables={"params": gradients})
    encoders.save(carrier, tmp_path / "out", format="hf")
    ours = files.read_tensors(tmp_path / "out")
    theirs = pairs.gradients(name)
    assert {"logit_scale", "vision_model.embeddings.patch_embedding.weight"} < set(theirs)
    for key, gradient in theirs.items():
        rows = slice("position" in key and "vision" in key and "clip" in name, None)
        found = ours[key][rows] if gradient.ndim else ours[key]  # not the class token's position
        np.testing.assert_allclose(
            found, gradient[rows] if gradient.ndim else gradient, rtol=0, atol=ATOL, err_msg=key
        )


@pytest.mark.parametrize("name", NAMES)
def test_export_of_import_is_the_same(name, tmp_path):
    pair = pairs.load(name)
    encoders.save(pair, tmp_path / "out", format="hf")
    before, after = files.read_tensors(pairs.GOLDEN / name), files.read_tensors(tmp_path / "out")
    if "clip" in name:  # the class token's position is added to it for good
        table = before["vision_model.embeddings.position_embedding.weight"]
        before["vision_model.embeddings.class_embedding"] += table[0]
        table[0] = 0
    chex.assert_trees_all_equal(after, before)
    given = json.loads((pairs.GOLDEN / name / "config.json").read_text())
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    for tower in ("text_config", "vision_config"):
        own = {("eos_token_id", 49), ("projection_dim", 10)}
        assert written[tower].items() <= given[tower].items() | own
    again = encoders.load(tmp_path / "out")
    assert again.module == pair.module
    chex.assert_trees_all_equal(again.variables, pair.variables)
    assert again.preprocessing.image == pair.preprocessing.image
    texts = pairs.tokenized(name)["texts"]
    np.testing.assert_array_equal(again.embed_text(texts), pair.embed_text(texts))


@pytest.mark.parametrize("name", NAMES)
def test_texts_become_the_ids_of_transformers(name):
    text, want = pairs.load(name).preprocessing.text, pairs.tokenized(name)
    [tokenize] = text.eval_transforms()
    rows = [tokenize({"text": t}, np.random.default_rng(0)) for t in want["texts"]]
    np.testing.assert_array_equal([row["ids"] for row in rows], want["ids"])
    whole = "siglip" in name
    mask = np.ones_like(want["ids"]) if whole else want["mask"]
    np.testing.assert_array_equal([row["segments"] for row in rows], mask)
    assert text.max_length == 10
    assert (text.attend_padding, text.lowercase) == (whole, whole)


def test_the_files_that_older_tokenizers_have(tmp_path):
    """vocab.json and merges.txt, as OpenAI's weights were first converted."""
    directory = pairs.copied("hf_clip", tmp_path / "copy")
    model = json.loads((directory / "tokenizer.json").read_text())["model"]
    (directory / "tokenizer.json").unlink()
    files.write_json(directory / "vocab.json", model["vocab"])
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""]
    (directory / "merges.txt").write_text("\n".join(lines))
    text, want = encoders.load(directory).preprocessing.text, pairs.tokenized("hf_clip")
    [tokenize] = text.eval_transforms()
    rows = [tokenize({"text": t}, np.random.default_rng(0)) for t in want["texts"]]
    np.testing.assert_array_equal([row["ids"] for row in rows], want["ids"])
    assert text.special == pairs.load("hf_clip").preprocessing.text.special


def test_a_pair_is_called_with_pictures_and_texts():
    pair, want = pairs.load("hf_clip"), pairs.expected("hf_clip")
    logits = pair.similarity(picture((32, 32), 4), want["ids"])
    np.testing.assert_allclose(logits, want["logits"], rtol=0, atol=ATOL)


def test_a_pair_is_called_with_pictures_of_many_shapes():
    pair = pairs.load("hf_siglip2_naflex")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((16, 56), (40, 40), (9, 200))]
    vectors = pair.embed_image(images)
    assert vectors.shape == (3, 12)
    np.testing.assert_allclose(pair.embed_image(images[1:])[0], vectors[1], atol=1e-6)
    patches, given = pair.image._prepared(images)
    assert patches.shape == (3, 20, 192)
    assert given["shapes"].tolist() == [[2, 7], [4, 4], [1, 20]]
    np.testing.assert_array_equal(pair.embed_image(patches, **given), vectors)
    with pytest.raises(DataError, match=r"expected patches \[B, N, P\], got \(16, 56, 3, 1\)"):
        pair.embed_image(images[0][..., None], **given)
    with pytest.raises(DataError, match="got an empty one"):
        pair.embed_image([])


def test_processors_are_read():
    clip, siglip = (pairs.load(name).preprocessing.image for name in ("hf_clip", "hf_siglip"))
    assert (clip.image_size, clip.keep_aspect, clip.crop_fraction) == ((32, 32), True, 1.0)
    assert clip.mean == (0.48145466, 0.4578275, 0.40821073)
    assert (siglip.image_size, siglip.keep_aspect, siglip.std) == ((32, 32), False, (0.5,) * 3)


@pytest.mark.parametrize(
    "name, objective", [("hf_clip", "softmax_contrast"), ("hf_siglip", "sigmoid_contrast")]
)
def test_the_objective_is_the_published_loss(name, objective):
    pair, want = pairs.load(name), pairs.expected(name)
    built = build(OBJECTIVES, {"name": objective}, "objective", encoder=pair.module)
    batch = {"image": picture((32, 32), 4), "ids": want["ids"], "segments": want["segments"]}
    batch["row"] = np.arange(4, dtype=np.int32)
    variables = {"params": {"encoder": pair.variables["params"]}}
    outcome = jax.jit(lambda v: built.apply(v, batch, train=False))(variables)
    np.testing.assert_allclose(outcome.loss / outcome.weight, want["loss"], rtol=0, atol=ATOL)


# --- published sizes ------------------------------------------------------------------------------

_CLIP = {
    "image": {
        "name": "vit",
        "variant": "B/32",
        "pre_norm": True,
        "patch_bias": False,
        "norm_after_pool": True,
    },
    "text": {"name": "clip_text"},
    "embedding_dim": 512,
    "image_projection": "linear",
    "text_projection": "linear",
}


def siglip(variant, text, crop_rest=False, **fields):
    return {
        "image": {
            "name": "vit",
            "variant": variant,
            "class_token": False,
            "pool": "map",
            "crop_rest": crop_rest,
        },
        "text": {
            "name": "clip_text",
            "variant": text,
            "vocab_size": 32000,
            "max_length": 64,
            **fields,
        },
        "embedding_dim": None,
        "text_projection": "linear_bias",
        "logit_bias": -10.0,
    }


PUBLISHED = {
    "clip_b32": (_CLIP, 224),
    "clip_b16": ({**_CLIP, "image": {**_CLIP["image"], "variant": "B/16"}}, 224),
    "clip_l14": (
        {
            **_CLIP,
            "image": {**_CLIP["image"], "variant": "L/14"},
            "text": {"name": "clip_text", "variant": "B"},
            "embedding_dim": 768,
        },
        224,
    ),
    "siglip_b16_224": ({**siglip("B/16", "B"), "embedding_dim": 768}, 224),
    "siglip_l16_256": ({**siglip("L/16", "L"), "embedding_dim": 1024}, 256),
    "siglip_so400m14_384": (
        {**siglip("So400m/14", "So400m", crop_rest=True), "embedding_dim": 1152},
        384,
    ),
    "siglip2_b16_224": ({**siglip("B/16", "B", vocab_size=256000), "embedding_dim": 768}, 224),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_as_many_parameters(name):
    fields, size = PUBLISHED[name]
    towers = {name: {**fields[name], "scan": True} for name in ("image", "text")}
    module = build(MODELS, {"name": "towers", **fields, **towers}, "model")
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    ids = jax.ShapeDtypeStruct((1, 8), np.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images, ids)
    counts = json.loads((pairs.GOLDEN / "parameters.json").read_text())
    # The class token's position is added to the token.
    folded = module.image.size.width if module.image.class_token else 0
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == counts[name] - folded


# --- bad input ------------------------------------------------------------------------------------


def text(**fields):
    return lambda config: config["text_config"].update(fields)


def vision(**fields):
    return lambda config: config["vision_config"].update(fields)


@pytest.mark.parametrize(
    "name, edit, message",
    [
        ("hf_clip", text(hidden_act="mish"), "text_config: hidden_act 'mish' is not supported"),
        ("hf_clip", vision(hidden_act="relu"), "vision_config: hidden_act 'relu' is not supported"),
        (
            "hf_clip",
            text(hidden_size="15"),
            "text_config: hidden_size='15' in config.json makes no",
        ),
        (
            "hf_clip",
            vision(image_size=40),
            r"position_embedding.weight is \(17, 12\), not \(26, 12\)",
        ),
        ("hf_clip", text(num_hidden_layers=3), "missing: text_model.encoder.layers.2.layer_norm1"),
        ("hf_clip", lambda c: c.update(projection_dim=9), r"is \(10, 15\), not \(9, 15\)"),
        ("hf_clip", lambda c: c.update(text_config=3), "text_config in config.json is no section"),
        ("hf_clip", lambda c: c.update(model_type="clipp"), "Did you mean 'clip'"),
        ("hf_siglip", vision(vision_use_head=False), "vision_use_head=False is not supported"),
        ("hf_siglip", text(projection_size=15), "texts become vectors of 15 and images of 12"),
        ("hf_siglip", lambda c: c.update(model_type="clip"), "tensors do not fit the config"),
    ],
)
def test_what_is_not_supported_is_refused(name, edit, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        encoders.load(pairs.copied(name, tmp_path / "copy", edit))


def test_missing_and_older_tensors(tmp_path):
    ids = {"text_model.embeddings.position_ids": np.arange(10)[None]}
    found = encoders.load(pairs.copied("hf_clip", tmp_path / "older", tensors=ids))
    assert set(found.metadata["dropped"]) == set(ids)
    chex.assert_trees_all_equal(found.variables, pairs.load("hf_clip").variables)
    broken = pairs.copied("hf_clip", tmp_path / "broken", without=["logit_scale"])
    with pytest.raises(CheckpointError, match="missing: logit_scale"):
        encoders.load(broken)


def test_a_config_dict_of_the_first_weights_comes_first(tmp_path):
    def edit(config):
        config["text_config_dict"] = dict(config["text_config"])
        config["text_config"] = {"hidden_size": 99, "hidden_act": "gelu"}

    found = encoders.load(pairs.copied("hf_clip", tmp_path / "copy", edit))
    assert found.module == pairs.load("hf_clip").module


def test_where_a_text_ends_is_not_guessed(tmp_path):
    directory = pairs.copied("hf_clip", tmp_path / "copy")
    (directory / "tokenizer.json").unlink()
    found, want = encoders.load(directory), pairs.expected("hf_clip")
    with pytest.raises(DataError, match="pass `mask`"):
        found.embed_text(want["ids"])
    given = found.embed_text(want["ids"], mask=want["segments"])
    np.testing.assert_allclose(given, want["text_embeddings"], atol=ATOL)


def test_weights_are_usable_without_a_tokenizer(tmp_path):
    directory = pairs.copied("hf_siglip", tmp_path / "copy")
    (directory / "tokenizer.json").unlink()
    found, want = encoders.load(directory), pairs.expected("hf_siglip")
    assert found.preprocessing is None
    assert "has no tokenizer.json" in found.metadata["no_preprocessing"]
    np.testing.assert_allclose(found.embed_text(want["ids"]), want["text_embeddings"], atol=ATOL)


@pytest.mark.parametrize(
    "name, image, text, message",
    [
        (
            "hf_clip",
            {"pool": "mean"},
            {},
            "model.image.pool='mean' cannot be expressed: there it is 'cls'",
        ),
        ("hf_clip", {}, {"pool": "mean"}, "clip: model.text.pool='mean' cannot be expressed"),
        (
            "hf_siglip",
            {"pre_norm": True},
            {},
            "siglip: model.image.pre_norm=True cannot be expressed",
        ),
        (
            "hf_siglip",
            {},
            {"mlp": "geglu"},
            "model.text.mlp='geglu' cannot be expressed: no MLP is gated",
        ),
        ("hf_siglip", {}, {"embedding_dim": 8}, "model.text.embedding_dim=8 cannot be expressed"),
    ],
)
def test_what_a_family_has_not_is_refused(name, image, text, message, tmp_path):
    pair = pairs.load(name)
    towers = {"image": pair.module.image.clone(**image), "text": pair.module.text.clone(**text)}
    changed = dataclasses.replace(pair, module=pair.module.clone(**towers))
    with pytest.raises(CheckpointError, match=message):
        encoders.save(changed, tmp_path / "out", format="hf")
    with pytest.raises(CheckpointError, match="format 'timm': writes a ViT, and this is Towers"):
        encoders.save(pair, tmp_path / "out", format="timm")
