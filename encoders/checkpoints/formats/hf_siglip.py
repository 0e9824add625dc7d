"""Hugging Face transformers' SigLIP and SigLIP 2, in and out.

Weights of SigLIP 2 for square images of one size have the model_type 'siglip' as well; they differ
in the tokenizer. Its weights for images at their own aspect ratio, 'siglip2', take patches and the
shapes of their grids (see `ViT`), or square images.

Texts are padded to the length that the tower has positions for, and the padding is read: the vector
of a text is that of the row's last token. What SigLIP's own tokenizer does to a text first is part
of the preprocessing: lower case and no punctuation; SigLIP 2's has lower case.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

from encoders.checkpoints.formats import files
from encoders.checkpoints.formats.hf_clip import (
    DROPPABLE,
    blocks,
    image_config,
    image_section,
    imported,
    part,
    square_grid,
    text_config,
    text_rules,
    text_section,
)
from encoders.checkpoints.formats.hf_rules import Defaults
from encoders.checkpoints.formats.hf_tokenizer import SETTINGS
from encoders.checkpoints.formats.mapping import (
    Exported,
    Imported,
    Rule,
    dump_tensors,
    fused_linear,
    grid_of,
    linear,
    load_tensors,
    norm,
    pair,
    patch_convolution,
    prefixed,
    vector,
)
from encoders.checkpoints.formats.towers import (
    check_fields,
    own_fields,
    read_pair_preprocessing,
    with_own_fields,
    write_pair_preprocessing,
)
from encoders.errors import CheckpointError

FAMILIES = {"siglip": Defaults({}), "siglip2": Defaults({})}
_TEXT_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "attention_dropout": 0.0,
}
_IMAGE_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "vision_use_head": True,
}
_NAFLEX = {"num_patches": 256}
_IMAGE = {
    "class_token": False,
    "pre_norm": False,
    "patch_bias": True,
    "pool": "map",
    "norm_after_pool": False,
}
_TEXT = {"causal": False, "pool": "last"}
_HEADS = {"image_projection": "none", "text_projection": "linear_bias"}
# Where training begins (arXiv 2303.15343, section 3.2): log 10 and -10.
_START = {"logit_scale": 2.302585092994046, "logit_bias": -10.0, "max_logit_scale": None}


def read(path: pathlib.Path, config: Mapping[str, Any], where: str) -> Imported:
    """Reads the weights of a directory whose config, with defaults filled in, is `config`.

    Raises:
      CheckpointError: an option is not supported; tensors are missing, unknown or of another shape.
    """
    naflex, defaults = config["model_type"] == "siglip2", dict(_IMAGE_DEFAULTS)
    if naflex:
        defaults |= _NAFLEX
    image = part(config, "vision_config", defaults, where)
    if naflex:
        side = math.isqrt(image["num_patches"])
        if side**2 != image["num_patches"]:
            raise CheckpointError(
                f"{where}: num_patches={image['num_patches']} in config.json makes no sense: they "
                "are those of a square."
            )
        image["image_size"] = [side * n for n in pair(image["patch_size"])]
    text = part(config, "text_config", _TEXT_DEFAULTS, where)
    if not image["vision_use_head"]:
        raise CheckpointError(
            f"{where}: vision_use_head=False is not supported: without its head the image tower "
            "gives no vector."
        )
    size = text.get("projection_size") or text["hidden_size"]
    if size != image["hidden_size"]:
        raise CheckpointError(
            f"{where}: texts become vectors of {size} and images of {image['hidden_size']}, which "
            "cannot be compared."
        )
    grid = grid_of(pair(image["image_size"]), image["patch_size"])
    own = {"position_resize": "bilinear", "position_grid": grid} if naflex else {}
    model = {
        "name": "towers",
        "image": {**image_section(image, where), **_IMAGE, **own},
        "text": {**text_section(text, where), **_TEXT},
        "embedding_dim": size,
        **_HEADS,
        **_START,
    }
    model = with_own_fields(model, config)
    channels = image["num_channels"]
    rules = _rules(model, grid, channels)
    tree, dropped = load_tensors(files.read_tensors(path), rules, DROPPABLE, where)
    preprocessing, reason = read_pair_preprocessing(
        path, channels, model["text"], **_text_preparation(path, text)
    )
    architecture = "Siglip2Model" if naflex else "SiglipModel"
    return imported(model, tree, preprocessing, architecture, dropped, reason)


def _text_preparation(path: pathlib.Path, text: Mapping[str, Any]) -> dict[str, Any]:
    """What happens to a text besides the tokenizer's own rules."""
    settings = {}
    if (path / SETTINGS).is_file():
        settings = files.read_json(path / SETTINGS)
    return {
        "max_length": text["max_position_embeddings"],
        "attend_padding": True,
        "lowercase": settings.get("do_lower_case", True),
        "strip_punctuation": settings.get("tokenizer_class") == "SiglipTokenizer",
    }


def write(directory: pathlib.Path, exported: Exported) -> None:
    """Writes config.json, model.safetensors, and the files of processor and tokenizer.

    Raises:
      CheckpointError: something that SigLIP has not in transformers, named by its field.
    """
    fields = exported.fields
    only = {f"image.{field}": value for field, value in _IMAGE.items()}
    only |= {f"text.{field}": value for field, value in _TEXT.items()}
    check_fields(fields, {**only, **_HEADS, "image.layer_scale": None}, "format 'hf', siglip")
    grid = square_grid(exported, "siglip")
    tensors = dump_tensors(
        exported.params, _rules(fields, grid, exported.channels), "Hugging Face siglip"
    )
    naflex = _is_naflex(fields["image"])
    kind, name = ("siglip2", "Siglip2Model") if naflex else ("siglip", "SiglipModel")
    images = image_config(exported)
    if naflex:
        del images["image_size"]
        images["num_patches"] = grid[0] * grid[1]
    config = {
        "model_type": kind,
        "architectures": [name],
        "text_config": {
            "model_type": f"{kind}_text_model",
            **text_config(fields["text"]),
            "projection_size": fields["image"]["width"],
        },
        "vision_config": {"model_type": f"{kind}_vision_model", **images},
        "dtype": "float32",
        "encoders": own_fields(fields, *_START),
    }
    files.write_json(directory / files.CONFIG, config)
    files.write_tensors(directory / files.WEIGHTS, tensors)
    write_pair_preprocessing(directory, exported)


def _is_naflex(fields: Mapping[str, Any]) -> bool:
    return fields.get("position_resize") == "bilinear"


# --- tensors --------------------------------------------------------------------------------------


def _rules(model: Mapping[str, Any], grid: tuple[int, int], channels: int) -> list[Rule]:
    image, text = model["image"], model["text"]
    width, patches = image["width"], grid[0] * grid[1]
    patch, embedding = pair(image["patch_size"]), ("embeddings.patch_embedding", "patch_embedding")
    tower = [
        vector(
            "embeddings.position_embedding.weight", "positions", (patches, width), (*grid, width)
        ),
        *(
            linear(*embedding, channels * patch[0] * patch[1], width)
            if _is_naflex(image)
            else patch_convolution(*embedding, channels, patch, width)
        ),
        *blocks(image),
        *norm("post_layernorm", "norm", width),
        *prefixed(_pooling(image), "head.", "pooling/"),
    ]
    return [
        *prefixed(tower, "vision_model.", "image/"),
        *prefixed(text_rules(text), "text_model.", "text/"),
        *linear("text_model.head", "text_projection", text["width"], model["embedding_dim"]),
        vector("logit_scale", "logit_scale", (1,), ()),
        vector("logit_bias", "logit_bias", (1,), ()),
    ]


def _pooling(fields: Mapping[str, Any]) -> list[Rule]:
    width, hidden = fields["width"], fields["mlp_dim"]
    parts = [f"attention/{name}" for name in ("query", "key", "value")]
    return [
        vector("probe", "probe", (1, 1, width), (1, width)),
        *fused_linear("attention.in_proj", parts, width, (width,) * 3, joint="_"),
        *linear("attention.out_proj", "attention/out", width, width),
        *norm("layernorm", "norm", width),
        *linear("mlp.fc1", "mlp/fc1", width, hidden),
        *linear("mlp.fc2", "mlp/fc2", hidden, width),
    ]
