"""Tiny networks of transformers and timm with random weights; needs PyTorch and both of them.

Shared by `write_interop`, which stores them with their outputs, and by tests/parity, which compares
directly. Shapes are odd on purpose: images that are no squares, 5 heads, patches of 14 or (4, 6).
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import timm
import torch
import transformers
from timm.models._hub import save_for_hf

from tools.golden.inputs import mask_noise

WIDTH, DEPTH, HEADS, HIDDEN = 20, 2, 5, 40

_HF = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "initializer_range": 0.2,
}
_HF_VIT = {**_HF, "intermediate_size": HIDDEN, "layer_norm_eps": 1e-12}
_HF_DINO = {**_HF, "mlp_ratio": 2, "image_size": 28, "patch_size": 14, "layerscale_value": 0.5}
_TIMM = {
    "embed_dim": WIDTH,
    "depth": DEPTH,
    "num_heads": HEADS,
    "mlp_ratio": HIDDEN / WIDTH,
    "num_classes": 3,
}
_NAMES = {"id2label": {0: "bee", 1: "cat", 2: "dog"}, "label2id": {"bee": 0, "cat": 1, "dog": 2}}
_PROCESSORS = {
    "vit": {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    },
    "dinov2": {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 32},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 28, "width": 28},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    },
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
      make: builds it.
      image_size: (height, width) it is fed with.
      half: whether its weights are stored in float16.
      shard: whether they are stored in several files.
      stored: whether `write_interop` stores the network.
    """

    make: Callable[[], torch.nn.Module]
    image_size: tuple[int, int]
    half: bool = False
    shard: bool = False
    stored: bool = True


def _hf(model: str, config: str, **fields: Any) -> Callable[[], torch.nn.Module]:
    def make() -> torch.nn.Module:
        return getattr(transformers, model)(getattr(transformers, config)(**fields))

    return make


def _timm(name: str, **arguments: Any) -> Callable[[], torch.nn.Module]:
    return lambda: timm.create_model(name, **{**_TIMM, **arguments})


_ODD = {"image_size": (28, 42), "patch_size": 14}
CASES = {
    "hf_vit": Case(_hf("ViTModel", "ViTConfig", **_HF_VIT, **_ODD), (28, 42)),
    "hf_vit_classifier": Case(
        _hf(
            "ViTForImageClassification",
            "ViTConfig",
            **{**_HF_VIT, "layer_norm_eps": 1e-3, "hidden_act": "quick_gelu", "qkv_bias": False},
            image_size=(12, 24),
            patch_size=(4, 6),
            **_NAMES,
        ),
        (12, 24),
    ),
    "hf_vit_tanh": Case(
        _hf("ViTModel", "ViTConfig", **_HF_VIT, **_ODD, hidden_act="gelu_new"),
        (28, 42),
        stored=False,
    ),
    "hf_mae": Case(
        _hf(
            "ViTMAEForPreTraining",
            "ViTMAEConfig",
            **_HF_VIT,
            image_size=24,
            patch_size=4,
            decoder_hidden_size=16,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=24,
            mask_ratio=0.6,
            norm_pix_loss=True,
        ),
        (24, 24),
    ),
    "hf_mae_encoder": Case(
        _hf("ViTMAEModel", "ViTMAEConfig", **_HF_VIT, image_size=24, patch_size=4, mask_ratio=0.0),
        (24, 24),
        stored=False,
    ),
    "hf_dinov2": Case(_hf("Dinov2Model", "Dinov2Config", **_HF_DINO), (28, 28), shard=True),
    "hf_dinov2_gated": Case(
        _hf("Dinov2Model", "Dinov2Config", **_HF_DINO, use_swiglu_ffn=True), (28, 28)
    ),
    "hf_dinov2_classifier": Case(
        _hf("Dinov2ForImageClassification", "Dinov2Config", **_HF_DINO), (28, 28), stored=False
    ),
    "hf_dinov2_registers": Case(
        _hf(
            "Dinov2WithRegistersModel",
            "Dinov2WithRegistersConfig",
            **_HF_DINO,
            num_register_tokens=3,
        ),
        (28, 28),
        half=True,
    ),
    "hf_deit": Case(
        _hf(
            "DeiTForImageClassification",
            "DeiTConfig",
            **_HF_VIT,
            image_size=(16, 24),
            patch_size=8,
            **_NAMES,
        ),
        (16, 24),
    ),
    "hf_deit_teacher": Case(
        _hf("DeiTForImageClassificationWithTeacher", "DeiTConfig", **_HF_VIT, **_ODD),
        (28, 42),
        stored=False,
    ),
    "timm_vit": Case(_timm("vit_base_patch16_224", img_size=(28, 42), patch_size=14), (28, 42)),
    "timm_mean": Case(
        _timm(
            "vit_base_patch16_224",
            img_size=(16, 24),
            patch_size=8,
            global_pool="avg",
            qk_norm=True,
            qkv_bias=False,
            act_layer="quick_gelu",
        ),
        (16, 24),
    ),
    "timm_dinov2_registers": Case(
        _timm("vit_small_patch14_reg4_dinov2", img_size=(28, 42), reg_tokens=3, num_classes=0),
        (28, 42),
    ),
    "timm_dinov2_gated": Case(
        _timm("vit_giant_patch14_dinov2", img_size=28, mlp_ratio=4.0, num_classes=0),
        (28, 28),
        stored=False,
    ),
    "timm_siglip": Case(
        _timm("vit_large_patch16_siglip_512", img_size=(16, 24), patch_size=8, num_classes=0),
        (16, 24),
    ),
    "timm_embedded_register": Case(
        _timm("test_vit2", img_size=(16, 24), patch_size=8, dynamic_img_size=False), (16, 24)
    ),
    "timm_gap": Case(
        _timm("vit_medium_patch16_gap_256", img_size=(16, 24), patch_size=8),
        (16, 24),
        stored=False,
    ),
    "timm_distilled": Case(
        _timm("deit_tiny_distilled_patch16_224", img_size=(16, 24), patch_size=8), (16, 24)
    ),
}


def build(name: str) -> torch.nn.Module:
    """A case's network in evaluation mode, all weights random: initial zeros and ones hide bugs."""
    torch.manual_seed(0)
    model = CASES[name].make().eval()
    if isinstance(model, transformers.ViTMAEForPreTraining):
        # transformers 5.23 zeroes the decoder's fixed positions in new models, not in loaded ones.
        model.decoder.initialize_weights(model.vit.embeddings.patch_embeddings.num_patches)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "decoder_pos_embed" not in parameter_name:
                parameter += 0.1 * torch.randn_like(parameter)
            if CASES[name].half:
                parameter.copy_(parameter.half().float())
    return model


def save(name: str, model: torch.nn.Module, directory: pathlib.Path) -> None:
    """Saves a network the way its project does, with its preprocessing."""
    case = CASES[name]
    if name.startswith("timm_"):
        save_for_hf(model, str(directory), safe_serialization=True)
        return
    saved = model.half() if case.half else model
    saved.save_pretrained(directory, max_shard_size="20KB" if case.shard else "1GB")
    model.float()
    kind = "dinov2" if "dinov2" in name else "vit"
    processor = dict(_PROCESSORS[kind])
    height, width = case.image_size
    processor.setdefault("size", {"height": height, "width": width})
    text = json.dumps(processor, indent=2, sort_keys=True)
    (directory / "preprocessor_config.json").write_text(text + "\n")


def outputs(name: str, model: torch.nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
    """What the network computes of images [B, H, W, 3].

    Returns:
      'tokens' [B, T, D] as our Encoded has them, 'hidden' [depth, B, T, D], 'pooled' [B, D] where
      the project has one that means the same, 'logits', and 'loss' and 'prediction' of MAE.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        found = (
            _timm_outputs(model, pixels) if name.startswith("timm_") else _hf_outputs(model, pixels)
        )
    return {key: np.asarray(value, np.float32) for key, value in found.items()}


def _timm_outputs(model: torch.nn.Module, pixels: torch.Tensor) -> dict[str, Any]:
    hidden: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda module, inputs, output: hidden.append(output))
        for block in model.blocks
    ]
    tokens = model.forward_features(pixels)
    for hook in hooks:
        hook.remove()
    found = {"tokens": tokens, "hidden": torch.stack(hidden)}
    if not hasattr(model, "head_dist"):  # a distilled one averages two answers
        found["pooled"] = model.forward_head(tokens, pre_logits=True)
        if model.num_classes:
            found["logits"] = model.forward_head(tokens)
    return found


def _hf_outputs(model: torch.nn.Module, pixels: torch.Tensor) -> dict[str, Any]:
    found = {}
    trunk = getattr(model, model.base_model_prefix, model)
    if isinstance(model, transformers.ViTMAEForPreTraining):
        patches = trunk.embeddings.patch_embeddings.num_patches
        noise = torch.from_numpy(mask_noise(patches, len(pixels)))
        result = model(pixels, noise=noise)
        found = {"loss": result.loss, "prediction": result.logits}
        trunk.config.mask_ratio = 0.0
    keywords = {}
    if isinstance(trunk, transformers.ViTMAEModel):
        # Without masking, and in an order that leaves the patches where they are.
        keywords["noise"] = torch.arange(trunk.embeddings.patch_embeddings.num_patches)
        keywords["noise"] = keywords["noise"].float().expand(len(pixels), -1)
    result = trunk(pixels, output_hidden_states=True, **keywords)
    found["tokens"] = result.last_hidden_state
    found["hidden"] = torch.stack(result.hidden_states[1:])
    if getattr(model, "classifier", None) is not None:
        found["logits"] = model(pixels).logits
    return found
