"""Weights in and out, against transformers and timm themselves (`make parity`; needs PyTorch)."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import timm
import transformers
from safetensors.numpy import load_file

import encoders
from encoders.checkpoints.formats.timm_rules import fields_of_architecture
from encoders.config import build
from encoders.data import Preprocessing
from encoders.errors import CheckpointError
from encoders.models import MODELS
from encoders.objectives import OBJECTIVES
from tools.golden import interop_models
from tools.golden.inputs import mask_noise, picture

pytestmark = pytest.mark.parity
TOLERANCE = 1e-5


def reload(directory, heads=None):
    """The network that the other project makes of an exported directory, nothing left over."""
    if (directory / "config.json").read_text().find('"architecture"') > 0:
        return timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    kind = getattr(transformers, heads) if heads else transformers.AutoModel
    model, info = kind.from_pretrained(directory, output_loading_info=True)
    left = {key: names for key, names in info.items() if names}
    # An encoder whose `pooled` is no class token is written without a pooler.
    left = {key: [n for n in names if "pooler" not in n] for key, names in left.items()}
    assert not any(left.values()), left
    return model.eval()


def reference(directory, images, heads=None):
    model = reload(directory, heads)
    name = "timm_" if isinstance(model, timm.models.VisionTransformer) else "hf_"
    return interop_models.outputs(name, model, images)


def check(out, expected, depth):
    np.testing.assert_allclose(out.tokens, expected["tokens"], atol=TOLERANCE)
    for layer in range(depth):
        np.testing.assert_allclose(out.hidden[layer], expected["hidden"][layer], atol=TOLERANCE)


@pytest.mark.parametrize("name", interop_models.CASES)
def test_import_and_back(name, tmp_path):
    case, model = interop_models.CASES[name], interop_models.build(name)
    interop_models.save(name, model, tmp_path)
    images = picture(case.image_size)
    expected = interop_models.outputs(name, model, images)
    encoder = encoders.load(tmp_path)
    out = encoder(images, layers="all")
    check(out, expected, interop_models.DEPTH)
    if "pooled" in expected:
        np.testing.assert_allclose(out.pooled, expected["pooled"], atol=TOLERANCE)

    own = "timm" if name.startswith("timm_") else "hf"
    with_heads = bool(encoder.heads)
    encoders.save(encoder, tmp_path / "out", format=own, heads=with_heads)
    heads = encoder.metadata["architecture"] if own == "hf" and with_heads else None
    back = reference(tmp_path / "out", images, heads)
    check(out, back, interop_models.DEPTH)
    for key in ("logits", "loss", "prediction"):
        if key in expected and with_heads:
            np.testing.assert_allclose(back[key], expected[key], atol=TOLERANCE)


MADE = {
    "vit": {"positions": "sincos2d", "norm_bias": False, "mlp_bias": False},
    "mean": {"pool": "mean", "positions": "none", "mlp": "gelu_tanh", "qkv_bias": False},
    "deit": {"num_registers": 1, "patch_size": (8, 4), "scan": True},
    "dinov2": {"layer_scale": 0.3, "mlp": "quick_gelu", "mlp_dim": 72},
    "gated": {"mlp": "swiglu", "mlp_dim": 32, "mlp_bias": False},
    "registers": {"num_registers": 3, "layer_scale": 0.3, "mlp": "swiglu", "mlp_dim": 64},
    "bare_registers": {"num_registers": 2, "mlp_dim": 96, "sincos": "big_vision"},
}
MADE_TIMM = {
    "map": {"pool": "map", "class_token": False, "num_registers": 2},
    "after": {"pool": "mean", "norm_after_pool": True, "qk_norm": True},
    "raw": {"pool": "none", "class_token": False, "mlp_dim": 50},
}


def make_encoder(fields, image_size):
    """An encoder of ours with random weights everywhere."""
    section = {"name": "vit", "width": 24, "depth": 2, "mlp_dim": 48, "num_heads": 3}
    module = build(MODELS, {**section, "patch_size": 8, **fields}, "model")
    images = picture(image_size)
    params = module.init(jax.random.key(0), images)["params"]
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    preprocessing = Preprocessing(image_size=image_size, keep_aspect=False)
    variables = {"params": jax.tree.unflatten(structure, leaves)}
    return encoders.Encoder(module, variables, preprocessing), images


@pytest.mark.parametrize("name", MADE | MADE_TIMM)
@pytest.mark.parametrize("format", ["hf", "timm"])
def test_export(name, format, tmp_path):
    fields = (MADE | MADE_TIMM)[name]
    square = fields.get("layer_scale") or "swiglu" in fields.values() or name == "bare_registers"
    encoder, images = make_encoder(fields, (24, 24) if square else (16, 24))
    if format == "hf" and name in MADE_TIMM:
        with pytest.raises(CheckpointError, match="cannot be expressed"):
            encoders.save(encoder, tmp_path / "out", format=format)
        return
    encoders.save(encoder, tmp_path / "out", format=format)
    out = encoder(images, layers="all")
    expected = reference(tmp_path / "out", images)
    check(out, expected, 2)
    if "pooled" in expected and encoder.module.pool != "none":
        np.testing.assert_allclose(out.pooled, expected["pooled"], atol=TOLERANCE)
    again = encoders.load(tmp_path / "out")
    assert again.module.pool == encoder.module.pool
    np.testing.assert_allclose(again(images).tokens, out.tokens, atol=1e-6)
    if out.pooled is not None:
        np.testing.assert_allclose(again(images).pooled, out.pooled, atol=1e-6)


def test_pooler_output_is_the_class_token(tmp_path):
    encoder, images = make_encoder({}, (16, 24))
    encoders.save(encoder, tmp_path / "out", format="hf")
    model = reload(tmp_path / "out")
    pixels = interop_models.torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    pooled = model(pixels).pooler_output.detach().numpy()
    np.testing.assert_allclose(pooled, encoder(images).pooled, atol=TOLERANCE)


@pytest.mark.parametrize("format", ["hf", "timm"])
def test_classifier_is_exported(format, tmp_path):
    encoder, images = make_encoder({}, (16, 24))
    kernel = np.random.default_rng(0).standard_normal((24, 3)).astype(np.float32)
    head = {"kernel": kernel, "bias": np.arange(3, dtype=np.float32)}
    encoder = dataclasses.replace(
        encoder,
        objective={"name": "classification", "num_classes": 3},
        heads={"head": head},
        metadata={"class_names": ["bee", "cat", "dog"]},
    )
    encoders.save(encoder, tmp_path / "out", format=format, heads=True)
    expected = reference(tmp_path / "out", images, "ViTForImageClassification")
    logits = encoder(images).pooled @ kernel + head["bias"]
    np.testing.assert_allclose(expected["logits"], logits, atol=TOLERANCE)
    assert encoders.load(tmp_path / "out").metadata["class_names"] == ["bee", "cat", "dog"]


def test_two_heads_of_a_distilled_classifier(tmp_path):
    encoder, images = make_encoder({"num_registers": 1}, (16, 24))
    rng = np.random.default_rng(0)
    heads = {
        name: {"kernel": rng.standard_normal((24, 3)).astype("f4"), "bias": np.ones(3, "f4")}
        for name in ("head", "distillation_head")
    }
    objective = {"name": "classification", "num_classes": 3, "distillation": {"token": True}}
    encoder = dataclasses.replace(encoder, objective=objective, heads=heads)
    encoders.save(encoder, tmp_path / "out", format="hf", heads=True)
    model = reload(tmp_path / "out", "DeiTForImageClassificationWithTeacher")
    tokens = encoder(images).tokens
    answers = [
        tokens[:, i] @ heads[name]["kernel"] + heads[name]["bias"]
        for i, name in enumerate(("head", "distillation_head"))
    ]
    pixels = interop_models.torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    logits = model(pixels).logits.detach().numpy()
    np.testing.assert_allclose(logits, (answers[0] + answers[1]) / 2, atol=TOLERANCE)


def test_masked_image_decoder_is_exported(tmp_path):
    encoder, _ = make_encoder({"positions": "sincos2d", "patch_size": 4}, (24, 24))
    section = {
        "name": "masked_image",
        "mask_ratio": 0.6,
        "decoder": {"width": 16, "depth": 2, "num_heads": 2, "scan": True},
    }
    objective = build(OBJECTIVES, section, "objective", encoder=encoder.module)
    images = picture((24, 24))
    params = objective.init(jax.random.key(0), {"image": images})["params"]
    encoder = dataclasses.replace(
        encoder,
        variables={"params": params["encoder"]},
        objective=section,
        heads={"decoder": params["decoder"]},
    )
    encoders.save(encoder, tmp_path / "out", format="hf", heads=True)
    expected = reference(tmp_path / "out", images, "ViTMAEForPreTraining")
    noise = mask_noise(36)
    outcome = objective.apply({"params": params}, {"image": images}, noise, method="loss")
    np.testing.assert_allclose(outcome.loss / outcome.weight, expected["loss"], atol=TOLERANCE)


def test_resized_positions(tmp_path):
    """Another image size than the weights': each project's own way to resize."""
    for name, size in (("hf_dinov2", (42, 42)), ("hf_dinov2_registers", (42, 56))):
        model = interop_models.build(name)
        interop_models.save(name, model, tmp_path / name)
        images = picture(size)
        out = encoders.load(tmp_path / name)(images, layers="all")
        check(out, interop_models.outputs(name, model, images), interop_models.DEPTH)


def test_state_dict_of_timm_comes_back_bit_for_bit(tmp_path):
    model = interop_models.build("timm_dinov2_registers")
    interop_models.save("timm_dinov2_registers", model, tmp_path)
    encoders.save(encoders.load(tmp_path), tmp_path / "out", format="timm")
    before = load_file(tmp_path / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for key in before:
        np.testing.assert_array_equal(before[key], after[key])


def test_known_architectures_agree_with_timm(monkeypatch):
    """Heads and activation of every name that we read, from timm's own entry points."""
    seen = {}

    class Stop(Exception):
        pass

    def record(cls, variant, pretrained, **arguments):
        seen[variant] = (cls.__name__, arguments)
        raise Stop

    for module in (timm.models.vision_transformer, timm.models.deit):
        monkeypatch.setattr(module, "build_model_with_cfg", record)
    known = [name for name in timm.list_models() if fields_of_architecture(name)]
    assert len(known) > 80
    for name in known:
        with pytest.raises(Stop):
            timm.create_model(name)
        kind, arguments = seen[name]
        fields = fields_of_architecture(name)
        assert kind in ("VisionTransformer", "VisionTransformerDistilled"), name
        assert arguments["num_heads"] == fields["num_heads"], name
        gated = "mlp_layer" in arguments
        assert gated or arguments.get("act_layer", "gelu") == fields.get("mlp", "gelu"), name
        assert not {"pre_norm", "block_fn", "attn_layer", "norm_layer", "final_norm"} & set(
            arguments
        ), name


def test_config_has_only_what_transformers_knows(tmp_path):
    encoder, _ = make_encoder({}, (16, 24))
    encoders.save(encoder, tmp_path / "out", format="hf")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    plain = transformers.ViTConfig().to_dict()
    assert set(config) - set(plain) == {"encoders"}
