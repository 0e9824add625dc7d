"""Hugging Face transformers' CLIP, in and out.

transformers reads a text's vector at the first end-of-text token (its eos_token_id; of older
configs, which say 2, at the largest id), ours at the last real token: the same place, as the end of
text comes last. Left out on import, and listed in the metadata: numbers of positions, which older
files hold.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from encoders.checkpoints.formats import files
from encoders.checkpoints.formats.hf_rules import (
    ACTIVATIONS,
    SIZES,
    TEXT_ACTIVATIONS,
    TEXT_ACTIVATIONS_OUT,
    Defaults,
    activation,
    check_types,
)
from encoders.checkpoints.formats.mapping import (
    Exported,
    Imported,
    Rule,
    dump_tensors,
    grid_of,
    linear,
    load_tensors,
    norm,
    pair,
    patch_convolution,
    prefixed,
    reshaped,
    tokens_and_positions,
    vector,
)
from encoders.checkpoints.formats.towers import (
    MAX_LOGIT_SCALE,
    check_fields,
    own_fields,
    read_pair_preprocessing,
    with_own_fields,
    write_pair_preprocessing,
)
from encoders.data.tokenizer import Tokenizer
from encoders.errors import CheckpointError

FAMILIES = {"clip": Defaults({"projection_dim": 512, "logit_scale_init_value": 2.6592})}
_TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
}
_IMAGE_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
# Our field -> theirs, of either tower.
_FIELDS = {
    **SIZES,
    "norm_eps": "layer_norm_eps",
}
_TEXT_FIELDS = {
    **_FIELDS,
    "vocab_size": "vocab_size",
    "max_length": "max_position_embeddings",
    "attention_dropout": "attention_dropout",
}
_IMAGE = {
    "class_token": True,
    "pre_norm": True,
    "patch_bias": False,
    "pool": "cls",
    "norm_after_pool": True,
}
_TEXT = {"causal": True, "pool": "last"}
_HEADS = {"image_projection": "linear", "text_projection": "linear", "logit_bias": None}
DROPPABLE = {r"(text|vision)_model\.embeddings\.position_ids": "numbers of positions, not weights"}


# --- in -------------------------------------------------------------------------------------------


def read(path: pathlib.Path, config: Mapping[str, Any], where: str) -> Imported:
    """Reads the weights of a directory whose config, with defaults filled in, is `config`.

    Raises:
      CheckpointError: an option is not supported; tensors are missing, unknown or of another shape.
    """
    image_config = part(config, "vision_config", _IMAGE_DEFAULTS, where)
    text_config = part(config, "text_config", _TEXT_DEFAULTS, where)
    model = {
        "name": "towers",
        "image": {**image_section(image_config, where), **_IMAGE},
        "text": {**text_section(text_config, where), **_TEXT},
        "embedding_dim": config["projection_dim"],
        **_HEADS,
        "logit_scale": float(config["logit_scale_init_value"]),
        "max_logit_scale": MAX_LOGIT_SCALE,
    }
    model = with_own_fields(model, config)
    channels, image_size = image_config["num_channels"], pair(image_config["image_size"])
    rules = _rules(model, grid_of(image_size, model["image"]["patch_size"]), channels)
    tree, dropped = load_tensors(files.read_tensors(path), rules, DROPPABLE, where)
    preprocessing, reason = read_pair_preprocessing(path, channels, model["text"])
    return imported(model, tree, preprocessing, "CLIPModel", dropped, reason)


def imported(
    model: dict[str, Any],
    tree: dict[str, Any],
    preprocessing: dict[str, Any] | None,
    architecture: str,
    dropped: Mapping[str, str],
    reason: str | None,
    stats: dict[str, Any] | None = None,
) -> Imported:
    """Two towers of transformers; `reason`: why there is no preprocessing."""
    metadata = {
        "format": "hf",
        "architecture": architecture,
        "class_names": None,
        "dropped": dropped,
        "no_preprocessing": reason,
    }
    return Imported(model, tree, preprocessing, None, {}, metadata, stats or {})


def part(
    config: Mapping[str, Any], name: str, defaults: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """The config of one tower, with defaults filled in.

    Raises:
      CheckpointError: it is none, or a field has a value that makes no sense.
    """
    found = dict(defaults)
    # Configs of the first converted weights also have a text_config_dict, which comes before.
    for key, start in ((name, found), (f"{name}_dict", defaults)):
        given = config.get(key)
        if given is None:
            continue
        if not isinstance(given, Mapping):
            raise CheckpointError(f"{where}: {key} in config.json is no section, but {given!r}.")
        found = {**found, **start, **given}
    check_types(found, defaults, f"{where}, {name}")
    return found


def image_section(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fields of a ViT that CLIP's and SigLIP's towers share."""
    patch, image = pair(config["patch_size"]), pair(config["image_size"])
    cut = image[0] % patch[0] or image[1] % patch[1]
    return {
        "name": "vit",
        **({"crop_rest": True} if cut else {}),
        **{ours: config[theirs] for ours, theirs in _FIELDS.items()},
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "mlp": activation(config, "hidden_act", f"{where}, vision_config", ACTIVATIONS),
        "position_resize": "plain",
    }


def text_section(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fields of a text tower that CLIP and SigLIP share."""
    return {
        "name": "clip_text",
        **{ours: config[theirs] for ours, theirs in _TEXT_FIELDS.items()},
        "mlp": activation(config, "hidden_act", f"{where}, text_config", TEXT_ACTIVATIONS),
    }


# --- out ------------------------------------------------------------------------------------------


def write(directory: pathlib.Path, exported: Exported) -> None:
    """Writes config.json, model.safetensors, and the files of processor and tokenizer.

    Raises:
      CheckpointError: something that CLIP has not in transformers, named by its field.
    """
    fields = exported.fields
    only = {f"image.{field}": value for field, value in _IMAGE.items()}
    only |= {f"text.{field}": value for field, value in _TEXT.items()}
    only |= {"image.norm_after_pool": [True, False], "image.layer_scale": None}  # of a class token
    check_fields(fields, {**only, **_HEADS}, "format 'hf', clip")
    grid = square_grid(exported, "clip")
    tensors = dump_tensors(
        exported.params, _rules(fields, grid, exported.channels), "Hugging Face clip"
    )
    dim = fields["embedding_dim"]
    config = {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": dim,
        "logit_scale_init_value": fields["logit_scale"],
        "text_config": {
            "model_type": "clip_text_model",
            **text_config(fields["text"]),
            **_end_of_text(exported),
            "projection_dim": dim,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            **image_config(exported),
            "projection_dim": dim,
        },
        "dtype": "float32",
        "encoders": own_fields(fields, "max_logit_scale"),
    }
    files.write_json(directory / files.CONFIG, config)
    files.write_tensors(directory / files.WEIGHTS, tensors)
    write_pair_preprocessing(directory, exported)


def _end_of_text(exported: Exported) -> dict[str, int]:
    """Where transformers is to read a text's vector; 2 stands for the largest id."""
    if exported.preprocessing is None:
        return {"eos_token_id": 2}
    tokenizer = Tokenizer.load(exported.preprocessing["text"]["tokenizer"])
    return {"eos_token_id": tokenizer.vocabulary.sep_id}


def square_grid(exported: Exported, family: str) -> tuple[int, int]:
    """(rows, columns) of patches.

    Raises:
      CheckpointError: the image or a patch is no square, which transformers cannot say.
    """
    patch = pair(exported.fields["image"]["patch_size"])
    for field, (height, width) in (("image_size", exported.image_size), ("patch_size", patch)):
        if height != width:
            raise CheckpointError(
                f"format 'hf', {family}: {field}={(height, width)} cannot be expressed: there it "
                "is a square."
            )
    return grid_of(exported.image_size, patch)


def text_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A text tower in their words."""
    config = {theirs: fields[ours] for ours, theirs in _TEXT_FIELDS.items()}
    return {**config, "hidden_act": TEXT_ACTIVATIONS_OUT[fields["mlp"]]}


def image_config(exported: Exported) -> dict[str, Any]:
    """An image tower in their words."""
    fields = exported.fields["image"]
    return {
        **{theirs: fields[ours] for ours, theirs in _FIELDS.items()},
        "hidden_act": TEXT_ACTIVATIONS_OUT[fields["mlp"]],
        "image_size": exported.image_size[0],
        "patch_size": pair(fields["patch_size"])[0],
        "num_channels": exported.channels,
    }


# --- tensors --------------------------------------------------------------------------------------


def _rules(model: Mapping[str, Any], grid: tuple[int, int], channels: int) -> list[Rule]:
    image, text, dim = model["image"], model["text"], model["embedding_dim"]
    width, patches = image["width"], grid[0] * grid[1]
    table, token = "embeddings.position_embedding.weight", "embeddings.class_embedding"
    positions = tokens_and_positions([(token, 1)], table, grid, width, embedded=1)
    tower = [
        reshaped(positions, (width,), (1 + patches, width)),
        *patch_convolution(
            "embeddings.patch_embedding",
            "patch_embedding",
            channels,
            pair(image["patch_size"]),
            width,
            bias=False,
        ),
        *norm("pre_layrnorm", "norm_pre", width),  # so spelt there
        *blocks(image),
        *norm("post_layernorm", "norm", width),
    ]
    return [
        *prefixed(tower, "vision_model.", "image/"),
        *prefixed(text_rules(text), "text_model.", "text/"),
        *linear("visual_projection", "image_projection", width, dim, bias=False),
        *linear("text_projection", "text_projection", text["width"], dim, bias=False),
        vector("logit_scale", "logit_scale", ()),
    ]


def text_rules(fields: Mapping[str, Any]) -> list[Rule]:
    """Their text tower against ours, without its projection."""
    width, embeddings = fields["width"], "embeddings"
    words, positions = (fields["vocab_size"], width), (fields["max_length"], width)
    return [
        vector(f"{embeddings}.token_embedding.weight", f"{embeddings}/words", words),
        vector(f"{embeddings}.position_embedding.weight", f"{embeddings}/positions", positions),
        *blocks(fields),
        *norm("final_layer_norm", "norm", width),
    ]


def blocks(fields: Mapping[str, Any]) -> list[Rule]:
    """The blocks of either tower."""
    width, hidden, rules = fields["width"], fields["mlp_dim"], []
    for layer in range(fields["depth"]):
        theirs, ours = f"encoder.layers.{layer}", f"blocks_{layer}"
        for name in ("query", "key", "value", "out"):
            short = "out" if name == "out" else name[0]
            module = f"{theirs}.self_attn.{short}_proj"
            rules += linear(module, f"{ours}/attention/{name}", width, width)
        rules += norm(f"{theirs}.layer_norm1", f"{ours}/norm1", width)
        rules += norm(f"{theirs}.layer_norm2", f"{ours}/norm2", width)
        rules += linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/fc1", width, hidden)
        rules += linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/fc2", hidden, width)
    return rules
