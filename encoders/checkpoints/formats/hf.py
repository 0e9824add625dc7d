"""Hugging Face transformers: ViT, DeiT, ViTMAE, DINOv2 with and without registers, in and out.

Text encoders are read and written by the modules of `_TEXT`, image and text encoders that belong
together by those of `_TOWERS`.

Names are those of saved files, which transformers 4 and 5 share; names of transformers 5's modules
are understood too. What differs between the families:

  vit                      the plain one
  deit                     a distillation token after the class token: a register, here
  vit_mae                  vit, and a decoder: the objective 'masked_image'
  dinov2                   LayerScale; gated MLP in its largest size, gate and value in one matrix
  dinov2_with_registers    registers without positions

Left out on import, and listed in the metadata: the pooler (a tanh layer nobody trains), the mask
token, DINOv2's classifier (it reads class token and mean at once) and the two heads of a DeiT with
teacher. Dropout and drop path rates are training's business and not read.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from encoders.checkpoints.formats import (
    files,
    hf_align,
    hf_clip,
    hf_deberta,
    hf_modernbert,
    hf_resnet,
    hf_siglip,
    hf_speech,
    hf_text,
    hf_whisper,
    hf_xlnet,
)
from encoders.checkpoints.formats.hf_processor import read_preprocessing, write_preprocessing
from encoders.checkpoints.formats.hf_rules import (
    ACTIVATIONS,
    ACTIVATIONS_OUT,
    FAMILIES,
    activation,
    canonical,
    check_types,
    decoder_positions,
    decoder_rules,
    decoder_sizes,
    swiglu_dim,
    trunk_rules,
)
from encoders.checkpoints.formats.hf_tokenizer import with_tokenizer, write_tokenizer
from encoders.checkpoints.formats.mapping import (
    Exported,
    Imported,
    Rule,
    dump_tensors,
    grid_of,
    linear,
    load_tensors,
    pair,
)
from encoders.errors import CheckpointError, nearest
from encoders.layers.position import sincos2d

# Each has FAMILIES: model_type -> what has `defaults`, the config fields that a file may leave out;
# MODELS: names in `encoders.models.MODELS` that it writes; and read and write, as `hf_text` has.
_TEXT = (hf_text, hf_deberta, hf_modernbert, hf_xlnet)
_SPEECH = (hf_speech, hf_whisper)  # as those of texts
_TOWERS = (hf_align, hf_clip, hf_siglip)  # of two towers: FAMILIES, read and write
_TEXT_READERS = {model_type: module for module in _TEXT for model_type in module.FAMILIES}
_SPEECH_READERS = {model_type: module for module in _SPEECH for model_type in module.FAMILIES}
# Name of a model -> what writes it.
SPEECH_MODELS = {name: module for module in _SPEECH for name in module.MODELS}
_OTHERS = (hf_resnet,)  # image encoders that are no ViTs
_OTHERS_READERS = {model_type: module for module in _OTHERS for model_type in module.FAMILIES}
_TOWERS_READERS = {model_type: module for module in _TOWERS for model_type in module.FAMILIES}
_TEXT_WRITERS = {name: module for module in _TEXT for name in module.MODELS}

# --- in -------------------------------------------------------------------------------------------


def read(path: pathlib.Path) -> Imported:
    """Reads a directory of config.json, model.safetensors (or shards) and preprocessor_config.json.

    Raises:
      CheckpointError: the model_type, an option or the activation is not supported; tensors are
        missing, unknown or of another shape; the weights are a pickle, or damaged.
    """
    config = files.read_json(path / files.CONFIG)
    model_type = str(config.get("model_type"))
    families = dict(FAMILIES)
    for module in (*_TEXT, *_SPEECH, *_TOWERS, *_OTHERS):
        families |= module.FAMILIES
    if model_type not in families:
        raise CheckpointError(
            f"{path}: model_type '{model_type}' is not supported.{nearest(model_type, families)}"
        )
    family = families[model_type]
    config = {**family.defaults, **config}
    where = f"{path} ({model_type})"
    check_types(config, family.defaults, where)
    classes = config.get("architectures") or []
    if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise CheckpointError(f"{where}: architectures={classes!r} in config.json makes no sense.")
    if model_type in _TEXT_READERS:
        return with_tokenizer(_TEXT_READERS[model_type].read(path, config, where), path)
    if model_type in _SPEECH_READERS:
        return _SPEECH_READERS[model_type].read(path, config, where)
    if model_type in _TOWERS_READERS:
        return _TOWERS_READERS[model_type].read(path, config, where)
    if model_type in _OTHERS_READERS:
        return _OTHERS_READERS[model_type].read(path, config, where)
    model, image_size = _model_section(config, model_type, where)
    tensors = canonical(files.read_tensors(path), model_type, where)
    fields, grid = (
        {"norm_bias": True, "mlp_bias": True, **model},
        grid_of(image_size, model["patch_size"]),
    )
    split = "encoder.layer.0.mlp.gate_proj.weight" in tensors
    rules = trunk_rules(model_type, fields, grid, config["num_channels"], split)
    head_rules, objective = [], None
    droppable = dict(family.droppable)
    if "decoder.mask_token" in tensors:
        if reason := _odd_decoder(config, tensors, grid):
            droppable[r"decoder\..*"] = f"a decoder with {reason}"
        else:
            objective = _masked_image_section(config)
            decoder = decoder_sizes(objective)
            head_rules = decoder_rules(decoder, fields, grid, config["num_channels"])
    elif family.classifier and "classifier.weight" in tensors:
        classes = tensors["classifier.weight"].shape[0]
        objective = {"name": "classification", "num_classes": int(classes)}
        head_rules = linear("classifier", "head", model["width"], classes)
    tree, dropped = load_tensors(tensors, [*rules, *head_rules], droppable, where)
    heads = {path.split("/")[0] for rule in head_rules for path in rule.ours}
    preprocessing, reason = read_preprocessing(path, config["num_channels"])
    metadata = {
        "format": "hf",
        "architecture": (config.get("architectures") or [family.trunk])[0],
        "class_names": _class_names(config, objective),
        "dropped": dropped,
        "no_preprocessing": reason,
    }
    return Imported(
        model,
        {name: value for name, value in tree.items() if name not in heads},
        preprocessing,
        objective,
        {name: value for name, value in tree.items() if name in heads},
        metadata,
    )


def _model_section(
    config: Mapping[str, Any], model_type: str, where: str
) -> tuple[dict[str, Any], tuple[int, int]]:
    """The config's meaning for us: model section, and image size in pixels."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if config.get("head_dim", width // heads) * heads != width:
        raise CheckpointError(
            f"{where}: head_dim {config['head_dim']} x {heads} heads is not hidden_size {width}."
        )
    patch, image = pair(config["patch_size"]), pair(config["image_size"])
    section = {
        "name": "vit",
        "width": width,
        "depth": config["num_hidden_layers"],
        "num_heads": heads,
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "position_resize": FAMILIES[model_type].position_resize,
        "qkv_bias": config["qkv_bias"],
        "norm_eps": float(config["layer_norm_eps"]),
        "mlp": activation(config, "hidden_act", where, ACTIVATIONS),
        **config.get("encoders", {}),  # what transformers has no word for; see `write`
    }
    if model_type.startswith("dinov2"):
        section["layer_scale"] = float(config["layerscale_value"])
        section["mlp_dim"] = int(width * config["mlp_ratio"])
        if config["use_swiglu_ffn"]:
            section["mlp"] = "swiglu"
            section["mlp_dim"] = swiglu_dim(section["mlp_dim"])
    else:
        section["mlp_dim"] = config["intermediate_size"]
    if model_type == "dinov2_with_registers":
        section["num_registers"] = config["num_register_tokens"]
    if model_type == "deit":
        section["num_registers"] = 1
    return section, image


def _odd_decoder(
    config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], grid: tuple[int, int]
) -> str | None:
    """What an MAE decoder has that ours has not, or None."""
    if ACTIVATIONS[config["hidden_act"]] != "gelu":
        return f"hidden_act '{config['hidden_act']}'"
    if not config["qkv_bias"]:
        return "no biases of queries, keys and values"
    table = decoder_positions(grid, config["decoder_hidden_size"])
    found = tensors.get("decoder.decoder_pos_embed", table)
    if found.shape == table.shape and not np.allclose(found, table, atol=1e-3):
        # transformers itself zeroes them in models that it makes rather than loads.
        return "other positions than the fixed sin-cos ones"
    return None


def _masked_image_section(config: Mapping[str, Any]) -> dict[str, Any]:
    width = config["decoder_hidden_size"]
    return {
        "name": "masked_image",
        "mask_ratio": float(config["mask_ratio"]),
        "norm_pix": bool(config["norm_pix_loss"]),
        "decoder": {
            "width": width,
            "depth": config["decoder_num_hidden_layers"],
            "num_heads": config["decoder_num_attention_heads"],
            "mlp_ratio": config["decoder_intermediate_size"] / width,
            "norm_eps": float(config["layer_norm_eps"]),
        },
    }


def _class_names(config: Mapping[str, Any], objective: Any) -> list[str] | None:
    names = config.get("id2label")
    if objective is None or objective["name"] != "classification" or not names:
        return None
    names = [names[key] for key in sorted(names, key=int)]
    placeholders = [f"LABEL_{i}" for i in range(len(names))]
    return names if len(names) == objective["num_classes"] and names != placeholders else None


# --- out ------------------------------------------------------------------------------------------


def write(directory: pathlib.Path, exported: Exported) -> None:
    """Writes config.json, model.safetensors and preprocessor_config.json into `directory`.

    The family is the simplest that has the encoder's features: 'vit', 'deit' with one register,
    'dinov2' with LayerScale or a gated MLP, 'dinov2_with_registers' with registers as well. Missing
    biases become zeros and missing LayerScale ones, fixed positions a learned table of the same
    numbers. With pool='cls' the pooler is written as the identity, so that `pooler_output` is the
    class token rather than noise.

    Raises:
      CheckpointError: something that none of the families has, named by its field.
    """
    if exported.fields["name"] == "towers":
        module = hf_clip if exported.fields["text"].get("causal") else hf_siglip
        if exported.fields["image"]["name"] == "efficientnet":
            module = hf_align
        module.write(directory, exported)
        return
    if exported.fields["name"] == "resnet":
        hf_resnet.write(directory, exported)
        return
    if exported.fields["name"] in SPEECH_MODELS:
        SPEECH_MODELS[exported.fields["name"]].write(directory, exported)
        return
    if exported.fields["name"] in _TEXT_WRITERS:
        _TEXT_WRITERS[exported.fields["name"]].write(directory, exported)
        if exported.preprocessing is not None:
            write_tokenizer(directory, exported.preprocessing)
        return
    fields, grid = exported.fields, grid_of(exported.image_size, exported.fields["patch_size"])
    model_type = _choose_family(exported, grid)
    family, objective = FAMILIES[model_type], exported.objective
    config = _config(model_type, exported)
    rules = trunk_rules(model_type, fields, grid, exported.channels)
    params = {**exported.params, **_fixed_positions(fields, grid)}
    tensors = dump_tensors(params, rules, f"Hugging Face {model_type}")
    architecture = family.trunk
    if objective is None and fields["pool"] == "cls" and model_type in ("vit", "deit"):
        width = fields["width"]
        config.update(pooler_act="linear", pooler_output_size=width)
        tensors["pooler.dense.weight"] = np.eye(width, dtype=np.float32)
        tensors["pooler.dense.bias"] = np.zeros(width, np.float32)
    if model_type.startswith("dinov2"):
        tensors["embeddings.mask_token"] = np.zeros((1, fields["width"]), np.float32)
    if objective is not None:
        tensors = {f"{family.prefix}.{name}": value for name, value in tensors.items()}
        architecture, heads, settings = _heads(model_type, exported, grid)
        tensors |= dump_tensors(exported.objective_params, heads, f"Hugging Face {architecture}")
        config |= settings
    files.write_json(directory / files.CONFIG, {"architectures": [architecture], **config})
    files.write_tensors(directory / files.WEIGHTS, tensors)
    if exported.preprocessing is not None:
        write_preprocessing(directory, exported.preprocessing)


def _refuse(field: str, value: Any, why: str) -> CheckpointError:
    return CheckpointError(f"format 'hf': {field}={value!r} cannot be expressed: {why}.")


def _choose_family(exported: Exported, grid: tuple[int, int]) -> str:
    fields = exported.fields
    for field, allowed, why in (
        ("class_token", (True,), "every model there has a class token; format='timm' can"),
        ("positions", ("learned", "sincos2d", "none"), "positions there are added, not rotary"),
        ("qk_norm", (False,), "no norm of queries and keys there; format='timm' can"),
        ("parallel", (False,), "no parallel blocks there"),
        ("pool", ("cls", "mean", "none"), "no attention pooling there; format='timm' can"),
        ("norm_after_pool", (False,), "tokens are normalised there; format='timm' can"),
    ):
        if fields[field] not in allowed:
            raise _refuse(field, fields[field], why)
    registers = fields["num_registers"]
    dino = fields["layer_scale"] is not None or fields["mlp"] == "swiglu"
    if not dino and registers < 2:
        return "deit" if registers else "vit"
    if grid[0] != grid[1]:
        raise _refuse("positions", f"a {grid[0]} x {grid[1]} grid", "DINOv2's is square")
    _mlp_ratio(fields)
    return "dinov2_with_registers" if registers else "dinov2"


def _mlp_ratio(fields: Mapping[str, Any]) -> int:
    width, hidden = fields["width"], fields["mlp_dim"]
    gated = fields["mlp"] == "swiglu"
    for ratio in range(1, 65):
        if hidden == (swiglu_dim(width * ratio) if gated else width * ratio):
            return ratio
    raise _refuse(
        "mlp_dim", hidden, f"DINOv2 has whole multiples of the width, {width}, as mlp_ratio"
    )


def _config(model_type: str, exported: Exported) -> dict[str, Any]:
    fields, image = exported.fields, exported.image_size
    patch = pair(fields["patch_size"])
    config = {
        "model_type": model_type,
        "hidden_size": fields["width"],
        "num_hidden_layers": fields["depth"],
        "num_attention_heads": fields["num_heads"],
        "hidden_act": ACTIVATIONS_OUT[fields["mlp"]],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": fields["norm_eps"],
        "image_size": image[0] if image[0] == image[1] else list(image),
        "patch_size": patch[0] if patch[0] == patch[1] else list(patch),
        "num_channels": exported.channels,
        "qkv_bias": fields["qkv_bias"],
        "dtype": "float32",
        "encoders": {field: fields[field] for field in ("pool", "position_resize")},
    }
    if model_type.startswith("dinov2"):
        scale = fields["layer_scale"]
        config |= {
            "mlp_ratio": _mlp_ratio(fields),
            "use_swiglu_ffn": fields["mlp"] == "swiglu",
            "layerscale_value": 1.0 if scale is None else scale,
        }
    else:
        config["intermediate_size"] = fields["mlp_dim"]
    if model_type == "dinov2_with_registers":
        config["num_register_tokens"] = fields["num_registers"]
    return config


def _fixed_positions(fields: Mapping[str, Any], grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """A table for networks that compute their positions or have none."""
    if fields["positions"] == "learned":
        return {}
    if fields["positions"] == "none":
        return {"positions": np.zeros((*grid, fields["width"]), np.float32)}
    return {"positions": sincos2d(grid, fields["width"], fields["sincos"])}


def _heads(
    model_type: str, exported: Exported, grid: tuple[int, int]
) -> tuple[str, list[Rule], dict[str, Any]]:
    """Class, rules and config of a model with a classifier or a decoder."""
    fields, objective = exported.fields, exported.objective
    name, width = objective["name"], fields["width"]
    if name == "masked_image":
        if model_type != "vit" or grid[0] != grid[1]:
            raise _refuse("objective", name, "ViTMAE has a plain ViT on square images")
        if fields["mlp"] != "gelu" or not fields["qkv_bias"]:
            raise _refuse("objective", name, "ViTMAE's decoder shares mlp='gelu' and qkv_bias=True")
        decoder = objective["decoder"]
        if decoder["norm_eps"] != fields["norm_eps"]:
            raise _refuse(
                "objective.decoder.norm_eps", decoder["norm_eps"], "the encoder's is used"
            )
        sizes = decoder_sizes(objective)
        settings = {
            "model_type": "vit_mae",
            "decoder_hidden_size": sizes["width"],
            "decoder_num_hidden_layers": sizes["depth"],
            "decoder_intermediate_size": sizes["mlp_dim"],
            "decoder_num_attention_heads": decoder["num_heads"],
            "mask_ratio": objective["mask_ratio"],
            "norm_pix_loss": objective["norm_pix"],
        }
        rules = decoder_rules(sizes, fields, grid, exported.channels)
        return "ViTMAEForPreTraining", rules, settings
    if name != "classification":
        raise _refuse("objective", name, "only classifiers and MAE decoders have a place there")
    if FAMILIES[model_type].classifier is None:
        raise _refuse("objective", name, f"a classifier of {model_type} reads other features")
    if fields["pool"] != "cls" or objective.get("linear_probe"):
        odd = "linear_probe" if objective.get("linear_probe") else "pool"
        value = fields["pool"] if odd == "pool" else True
        raise _refuse(odd, value, "a classifier there reads the class token as it is")
    classes = objective["num_classes"]
    names = exported.class_names or [f"LABEL_{i}" for i in range(classes)]
    settings = {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
    if "distillation_head" in exported.objective_params:
        rules = linear("cls_classifier", "head", width, classes)
        rules += linear("distillation_classifier", "distillation_head", width, classes)
        return "DeiTForImageClassificationWithTeacher", rules, settings
    return FAMILIES[model_type].classifier, linear("classifier", "head", width, classes), settings
