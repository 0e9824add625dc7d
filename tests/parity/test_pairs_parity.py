"""Two towers out again, against transformers and open_clip themselves (`make parity`)."""

import json
import pathlib

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import encoders
from encoders.config import build
from encoders.data import ImageTextPreprocessing, Preprocessing, TextPreprocessing
from encoders.models import MODELS
from tools.golden import pair_models, write_pairs
from tools.golden.inputs import picture

pytestmark = pytest.mark.parity
TOLERANCE = 1e-5
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "pairs"

_TOWERS = {
    "image": {
        "name": "vit",
        "width": 24,
        "depth": 2,
        "mlp_dim": 40,
        "num_heads": 3,
        "patch_size": 8,
    },
    "text": {
        "name": "clip_text",
        "width": 18,
        "depth": 2,
        "mlp_dim": 30,
        "num_heads": 3,
        "vocab_size": 64,
        "max_length": 10,
    },
}
_CLIP = {"pre_norm": True, "patch_bias": False, "norm_after_pool": True}
_SIGLIP = {"class_token": False, "pool": "map"}
LINEAR = {"embedding_dim": 20, "image_projection": "linear", "text_projection": "linear"}
MADE = {
    "clip": (LINEAR, {**_CLIP, "mlp": "quick_gelu", "norm_eps": 1e-4}, {"scan": True}),
    "siglip": (
        {"embedding_dim": 24, "text_projection": "linear_bias", "logit_bias": -9.0},
        {**_SIGLIP, "mlp": "gelu_tanh"},
        {"causal": False, "mlp": "gelu_tanh", "norm_eps": 1e-6},
    ),
    "open_clip": (
        {**LINEAR, "text_projection": "linear_bias", "logit_bias": -9.0},
        {**_CLIP, "pool": "mean", "norm_after_pool": False, "layer_scale": 0.3, "mlp": "gelu_tanh"},
        {"mlp": "gelu"},
    ),
}


def make(name):
    """Two towers of ours with random weights everywhere."""
    fields, image, text = MADE[name]
    towers = {"image": {**_TOWERS["image"], **image}, "text": {**_TOWERS["text"], **text}}
    module = build(MODELS, {"name": "towers", **towers, **fields}, "model")
    params = module.init(jax.random.key(0), picture((32, 32)), np.zeros((2, 10), int))["params"]
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    whole = name == "siglip"
    text = TextPreprocessing(
        (GOLDEN / "hf_clip" / "tokenizer.json").read_text(),
        max_length=10,
        token_types=False,
        attend_padding=whole,
        strip_punctuation=whole,
    )
    preprocessing = ImageTextPreprocessing(text, Preprocessing((32, 32), crop_fraction=1.0))
    variables = {"params": jax.tree.unflatten(structure, leaves)}
    return encoders.pair.PairEncoder(module, variables, preprocessing)


def reference(directory, pixels, ids, mask, shapes=None):
    """Logits of the network that the other project makes of an exported directory."""
    if shapes is None:
        pixels = pixels.transpose(0, 3, 1, 2)
    pixels = torch.from_numpy(np.ascontiguousarray(pixels))
    ids = torch.from_numpy(np.asarray(ids)).long()
    if (directory / "open_clip_config.json").is_file():
        package, _ = pair_models.open_clip()
        config = json.loads((directory / "open_clip_config.json").read_text())["model_cfg"]
        custom = config.pop("custom_text", False)
        model = package.CustomTextCLIP(**config) if custom else package.CLIP(**config)
        model.load_state_dict(load_file(directory / "open_clip_model.safetensors"), strict=True)
        image, text, scale, *bias = model.eval()(pixels, ids)
        return (scale * image @ text.T + (bias[0] if bias else 0)).detach().numpy()
    model, info = transformers.AutoModel.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    given = {} if mask.all() else {"attention_mask": torch.from_numpy(mask).long()}
    if shapes is not None:
        real = np.arange(pixels.shape[1]) < shapes.prod(1, keepdims=True)
        given["spatial_shapes"] = torch.from_numpy(shapes).long()
        given["pixel_attention_mask"] = torch.from_numpy(real).long()
    result = model.eval()(pixel_values=pixels, input_ids=ids, **given)
    return result.logits_per_image.detach().numpy()


@pytest.mark.parametrize("name", write_pairs.CASES)
def test_import_and_back(name, tmp_path):
    if name == "open_clip_siglip":
        pytest.skip("open_clip's names of timm's towers are only read")
    pair = encoders.load(GOLDEN / name)
    with np.load(GOLDEN / name / "expected.npz") as want:
        size, ids, mask = tuple(want["image_size"]), want["ids"], want["segments"]
        shapes = want.get("shapes")
    encoders.save(pair, tmp_path / "out", format="hf" if name.startswith("hf") else "open_clip")
    pixels, given = picture(size, len(ids)), {}
    if shapes is not None:
        pixels, given = pixels.reshape(*pixels.shape[:2], -1), {"shapes": shapes}
    logits = reference(tmp_path / "out", pixels, ids, mask, shapes)
    images = pair.module.apply(pair.variables, pixels, **given, method="embed_image")
    texts = pair.embed_text(ids, mask=mask)
    ours = pair.module.apply(pair.variables, images, texts, method="logits")
    np.testing.assert_allclose(ours, logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", MADE)
def test_export(name, tmp_path):
    pair, texts = make(name), write_pairs.TEXTS
    format = "open_clip" if name == "open_clip" else "hf"
    encoders.save(pair, tmp_path / "out", format=format)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    made = tokenizer(texts, padding="max_length", truncation=True, return_tensors="np")
    mask = np.asarray(made.get("attention_mask", np.ones_like(made["input_ids"])))
    images = picture((32, 32), 3)
    logits = reference(tmp_path / "out", images, made["input_ids"], mask)
    np.testing.assert_allclose(pair.similarity(images, texts), logits, rtol=0, atol=TOLERANCE)
    again = encoders.load(tmp_path / "out")
    np.testing.assert_allclose(again.similarity(images, texts), logits, rtol=0, atol=TOLERANCE)
