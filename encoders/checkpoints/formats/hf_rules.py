"""Which tensors of which transformers model make which of our parameters.

Names are those of saved files, which transformers 4 and 5 share; names of transformers 5's modules
are understood too.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from encoders.checkpoints.formats.mapping import (
    Rule,
    constant,
    fused_linear,
    linear,
    norm,
    pair,
    patch_convolution,
    rename,
    tokens_and_positions,
    vector,
    zeros,
)
from encoders.errors import CheckpointError, nearest
from encoders.layers.position import sincos2d

# The sizes of most of their transformers: our field -> theirs.
SIZES = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """One model_type.

    Attributes:
      prefix: what the encoder's tensors are under in models with a head.
      trunk: class of the encoder alone.
      classifier: class with a linear classifier on the class token, or None.
      defaults: values of config fields that a file may leave out: those of the config's class.
      droppable: regex -> reason, tensors that import leaves out.
      position_resize: how this family resizes positions (see `ViT`).
    """

    prefix: str
    trunk: str
    classifier: str | None
    defaults: Mapping[str, Any]
    droppable: Mapping[str, str]
    position_resize: str = "plain"


@dataclasses.dataclass(frozen=True)
class Defaults:
    """A model_type that a module of its own reads and writes.

    Attributes:
      defaults: values of config fields that a file may leave out: those of the config's class.
    """

    defaults: Mapping[str, Any]


_COMMON = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu",
    "image_size": 224,
    "num_channels": 3,
    "qkv_bias": True,
}
_VIT = {**_COMMON, "intermediate_size": 3072, "layer_norm_eps": 1e-12, "patch_size": 16}
_DINO = {
    **_COMMON,
    "mlp_ratio": 4,
    "layer_norm_eps": 1e-6,
    "patch_size": 14,
    "layerscale_value": 1.0,
    "use_swiglu_ffn": False,
}
_MASK_TOKEN = {r"embeddings\.mask_token": "mask token of a pretraining objective"}
_POOLER = {r"pooler\.dense\.(weight|bias)": "pooler; `pooled` is the normalised class token"}
_DINO_HEAD = {r"classifier\.(weight|bias)": "classifier of class token and mean together"}
_TWO_HEADS = {
    r"(cls|distillation)_classifier\.(weight|bias)": "heads of class and distillation token"
}

FAMILIES = {
    "vit": Family("vit", "ViTModel", "ViTForImageClassification", _VIT, {**_MASK_TOKEN, **_POOLER}),
    "deit": Family(
        "deit",
        "DeiTModel",
        "DeiTForImageClassification",
        _VIT,
        {**_MASK_TOKEN, **_POOLER, **_TWO_HEADS},
    ),
    "vit_mae": Family(
        "vit",
        "ViTMAEModel",
        None,
        {
            **_VIT,
            "decoder_num_attention_heads": 16,
            "decoder_hidden_size": 512,
            "decoder_num_hidden_layers": 8,
            "decoder_intermediate_size": 2048,
            "mask_ratio": 0.75,
            "norm_pix_loss": False,
        },
        {},
    ),
    "dinov2": Family("dinov2", "Dinov2Model", None, _DINO, {**_MASK_TOKEN, **_DINO_HEAD}),
    "dinov2_with_registers": Family(
        "dinov2_with_registers",
        "Dinov2WithRegistersModel",
        None,
        {**_DINO, "num_register_tokens": 4},
        {**_MASK_TOKEN, **_DINO_HEAD},
        "antialias",
    ),
}

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
ACTIVATIONS_OUT = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "swiglu": "gelu",  # not read where use_swiglu_ffn is set
}
# Those of text models, which have no gated MLPs under these names.
TEXT_ACTIVATIONS = {**ACTIVATIONS, "relu": "relu", "silu": "silu", "swish": "silu"}
TEXT_ACTIVATIONS_OUT = {**ACTIVATIONS_OUT, "relu": "relu", "silu": "silu"}


def activation(
    config: Mapping[str, Any],
    field: str,
    where: str,
    known: Mapping[str, str] = TEXT_ACTIVATIONS,
) -> str:
    """Our name of the activation in a field of a config.

    Raises:
      CheckpointError: it is none of those known.
    """
    name = config[field]
    if name not in known:
        raise CheckpointError(f"{where}: {field} '{name}' is not supported.{nearest(name, known)}")
    return known[name]


def check_types(
    config: Mapping[str, Any], defaults: Mapping[str, Any], where: str, file: str = "config.json"
) -> None:
    """A field of a file has its default's type; numbers that count something are positive.

    Raises:
      CheckpointError: one has not.
    """
    for field, default in defaults.items():
        value = config[field]
        if field in ("image_size", "patch_size") and isinstance(value, list):
            fine = len(value) == 2 and all(isinstance(n, int) and n > 0 for n in value)
        elif isinstance(default, list):
            fine = isinstance(value, list) and all(isinstance(n, int) and n >= 0 for n in value)
        elif isinstance(default, bool | str):
            fine = isinstance(value, type(default))
        elif isinstance(default, int) and field != "mlp_ratio":
            fine = isinstance(value, int) and not isinstance(value, bool) and value > 0
        else:
            fine = isinstance(value, int | float) and not isinstance(value, bool)
        if not fine:
            raise CheckpointError(f"{where}: {field}={value!r} in {file} makes no sense.")


# transformers 5 renamed its modules, but saves under the old names; its encoder's rule also catches
# MAE's decoder_layers (seen in 5.23), and its exporters may keep the new ones.
_RENAMES = (
    (r"^((?:\w+\.)?)layers\.(\d+)\.", r"\1encoder.layer.\2."),
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.down_proj\.", ".mlp.weights_out."),
)
_RENAMES_VIT = ((r"\.mlp\.fc1\.", ".intermediate.dense."), (r"\.mlp\.fc2\.", ".output.dense."))


# --- tensors ----------------------------------------------------------------------------------


def canonical(tensors: Mapping[str, Any], model_type: str, where: str) -> dict[str, Any]:
    """Tensors under the names of a saved ViTModel, without the prefix of models with a head."""
    prefix = f"{FAMILIES[model_type].prefix}."
    renames = [*_RENAMES, *(() if model_type.startswith("dinov2") else _RENAMES_VIT)]
    if any(name.startswith(prefix) for name in tensors):
        renames.append((f"^{re.escape(prefix)}", ""))
    return rename(tensors, renames, where)


def trunk_rules(
    model_type: str,
    fields: Mapping[str, Any],
    grid: tuple[int, int],
    channels: int,
    split_gate: bool = False,
) -> list[Rule]:
    """Their encoder against ours. `split_gate`: gate and value of a gated MLP are two tensors."""
    width = fields["width"]
    tokens = [("embeddings.cls_token", 1)]
    if model_type == "deit":
        tokens.append(("embeddings.distillation_token", 1))
    elif model_type == "dinov2_with_registers":
        tokens.append(("embeddings.register_tokens", fields["num_registers"]))
    rules = [
        tokens_and_positions(
            tokens,
            "embeddings.position_embeddings",
            grid,
            width,
            embedded=2 if model_type == "deit" else 1,
        ),
        *patch_convolution(
            "embeddings.patch_embeddings.projection",
            "patch_embedding",
            channels,
            pair(fields["patch_size"]),
            width,
        ),
        *norm("layernorm", "norm", width, fields["norm_bias"]),
    ]
    for layer in range(fields["depth"]):
        theirs, ours = f"encoder.layer.{layer}", f"blocks_{layer}"
        if model_type.startswith("dinov2"):
            rules += _dino_block(theirs, ours, fields, split_gate)
        else:
            rules += _vit_block(theirs, ours, fields)
    return rules


def _attention(theirs: str, ours: str, width: int, qkv_bias: bool) -> list[Rule]:
    names = ("query", "key", "value")
    rules = [
        rule
        for name in names
        for rule in linear(
            f"{theirs}.attention.attention.{name}",
            f"{ours}/attention/{name}",
            width,
            width,
            qkv_bias,
        )
    ]
    return rules + linear(f"{theirs}.attention.output.dense", f"{ours}/attention/out", width, width)


def _mlp_linear(theirs: str, ours: str, d_in: int, d_out: int, bias: bool) -> list[Rule]:
    """Their layer always has a bias; zero stands for a layer of ours without."""
    missing = [] if bias else [zeros(f"{theirs}.bias", (d_out,))]
    return linear(theirs, ours, d_in, d_out, bias) + missing


def _vit_block(theirs: str, ours: str, fields: Mapping[str, Any]) -> list[Rule]:
    width, hidden, bias = fields["width"], fields["mlp_dim"], fields["norm_bias"]
    return [
        *norm(f"{theirs}.layernorm_before", f"{ours}/norm1", width, bias),
        *_attention(theirs, ours, width, fields["qkv_bias"]),
        *norm(f"{theirs}.layernorm_after", f"{ours}/norm2", width, bias),
        *_mlp_linear(
            f"{theirs}.intermediate.dense", f"{ours}/mlp/fc1", width, hidden, fields["mlp_bias"]
        ),
        *_mlp_linear(
            f"{theirs}.output.dense", f"{ours}/mlp/fc2", hidden, width, fields["mlp_bias"]
        ),
    ]


def _dino_block(theirs: str, ours: str, fields: Mapping[str, Any], split_gate: bool) -> list[Rule]:
    width, hidden, bias = fields["width"], fields["mlp_dim"], fields["norm_bias"]
    mlp_bias = fields["mlp_bias"]
    rules = [
        *norm(f"{theirs}.norm1", f"{ours}/norm1", width, bias),
        *_attention(theirs, ours, width, fields["qkv_bias"]),
        *norm(f"{theirs}.norm2", f"{ours}/norm2", width, bias),
    ]
    for i in (1, 2):
        scale = f"{theirs}.layer_scale{i}.lambda1"
        if fields.get("layer_scale") is None:
            rules.append(constant(scale, np.ones(width, np.float32)))
        else:
            rules.append(vector(scale, f"{ours}/layer_scale{i}", (width,)))
    if fields["mlp"] != "swiglu":
        rules += _mlp_linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/fc1", width, hidden, mlp_bias)
        rules += _mlp_linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/fc2", hidden, width, mlp_bias)
        return rules
    gated = (f"{ours}/mlp/gate", f"{ours}/mlp/fc1")
    if split_gate:
        for name, our_name in zip(("gate_proj", "up_proj"), gated, strict=True):
            rules += linear(f"{theirs}.mlp.{name}", our_name, width, hidden)
    else:
        fused = f"{theirs}.mlp.weights_in"
        rules += fused_linear(fused, gated, width, (hidden, hidden), mlp_bias)
        rules += [] if mlp_bias else [zeros(f"{fused}.bias", (2 * hidden,))]
    return rules + _mlp_linear(
        f"{theirs}.mlp.weights_out", f"{ours}/mlp/fc2", hidden, width, mlp_bias
    )


def decoder_sizes(objective: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's sizes in the words of a ViT's fields."""
    decoder = objective["decoder"]
    return {
        "width": decoder["width"],
        "depth": decoder["depth"],
        "mlp_dim": round(decoder["width"] * decoder["mlp_ratio"]),
        "norm_bias": True,
        "mlp_bias": True,
        "qkv_bias": True,
    }


def decoder_positions(grid: tuple[int, int], width: int) -> np.ndarray:
    """The fixed positions [1, 1 + gh * gw, width] of an MAE decoder, the class token's zero."""
    table = sincos2d(grid, width).reshape(1, -1, width)
    return np.concatenate([np.zeros((1, 1, width), np.float32), table], axis=1)


def decoder_rules(
    decoder: Mapping[str, Any], fields: Mapping[str, Any], grid: tuple[int, int], channels: int
) -> list[Rule]:
    width, patch = decoder["width"], pair(fields["patch_size"])
    rules = [
        *linear("decoder.decoder_embed", "decoder/embed", fields["width"], width),
        vector("decoder.mask_token", "decoder/mask_token", (1, 1, width), (width,)),
        constant("decoder.decoder_pos_embed", decoder_positions(grid, width)),
        *norm("decoder.decoder_norm", "decoder/norm", width),
        *linear("decoder.decoder_pred", "decoder/predict", width, patch[0] * patch[1] * channels),
    ]
    for layer in range(decoder["depth"]):
        rules += _vit_block(f"decoder.decoder_layers.{layer}", f"decoder/blocks_{layer}", decoder)
    return rules


def swiglu_dim(mlp_dim: int) -> int:
    """DINOv2 keeps two thirds of a plain MLP's hidden size, rounded up to a multiple of 8."""
    return (int(mlp_dim * 2 / 3) + 7) // 8 * 8


def refuse_others(only: Mapping[str, Any], config: Mapping[str, Any], where: str) -> None:
    """Raises a CheckpointError if a field of `config` is there and not as it must be."""
    for field, value in only.items():
        if config.get(field, value) != value:
            raise CheckpointError(
                f"{where}: {field}={config[field]!r} is not supported, only {value!r}."
            )
