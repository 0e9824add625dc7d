"""Hugging Face transformers' ALIGN, in and out: an EfficientNet and a BERT.

Its temperature divides the cosines, ours is the logarithm of what they are multiplied by. The
pooler of the text tower, which nothing reads, is left out on import and is the identity on export.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from encoders.checkpoints.formats import files, hf_text
from encoders.checkpoints.formats.hf_clip import imported, part
from encoders.checkpoints.formats.hf_rules import Defaults
from encoders.checkpoints.formats.mapping import (
    Exported,
    Imported,
    Rule,
    batch_norm,
    constant,
    convolution,
    dump_tensors,
    linear,
    load_tensors,
    pointwise,
    prefixed,
    split_stats,
)
from encoders.checkpoints.formats.towers import read_pair_preprocessing, write_pair_preprocessing
from encoders.errors import CheckpointError
from encoders.layers.inverted_bottleneck import plan, squeezed

FAMILIES = {"align": Defaults({"projection_dim": 640, "temperature_init_value": 1.0})}
_TEXT = hf_text.FAMILIES["bert"]
_IMAGE_DEFAULTS = {
    "num_channels": 3,
    "image_size": 600,
    "width_coefficient": 2.0,
    "depth_coefficient": 3.1,
    "depthwise_padding": [],
    "batch_norm_eps": 0.001,
    "batch_norm_momentum": 0.99,
    "drop_connect_rate": 0.2,
}
# What is always so here.
_ONLY = {
    "depth_divisor": 8,
    "kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
    "in_channels": [32, 16, 24, 40, 80, 112, 192],
    "out_channels": [16, 24, 40, 80, 112, 192, 320],
    "strides": [1, 2, 2, 2, 1, 2, 1],
    "num_block_repeats": [1, 2, 2, 3, 3, 4, 1],
    "expand_ratios": [1, 6, 6, 6, 6, 6, 6],
    "squeeze_expansion_ratio": 0.25,
    "hidden_act": ("swish", "silu"),
    "pooling_type": "mean",
}
_FIELDS = {
    "width_factor": "width_coefficient",
    "depth_factor": "depth_coefficient",
    "norm_eps": "batch_norm_eps",
    "norm_momentum": "batch_norm_momentum",
    "drop_path": "drop_connect_rate",
}
_HEADS = {"image_projection": "none", "text_projection": "linear_bias", "logit_bias": None}
_DROPPABLE = {
    r"text_model\.pooler\..*": "a pooler that nothing reads",
    r"text_model\.embeddings\.(position|token_type)_ids": "numbers of positions, not weights",
    r".*\.num_batches_tracked": "how many batches a running statistic is of",
}


# --- in -------------------------------------------------------------------------------------------


def read(path: pathlib.Path, config: Mapping[str, Any], where: str) -> Imported:
    """Reads the weights of a directory whose config, with defaults filled in, is `config`.

    Raises:
      CheckpointError: an option is not supported; tensors are missing, unknown or of another shape.
    """
    image_config = part(config, "vision_config", _IMAGE_DEFAULTS, where)
    for field, value in _ONLY.items():
        found = image_config.get(field, value)
        if found != value and found not in (value if isinstance(value, tuple) else ()):
            raise CheckpointError(
                f"{where}: vision_config.{field}={found!r} is not supported, only {value!r}."
            )
    text_config = part(config, "text_config", _TEXT.defaults, where)
    image = {ours: image_config[theirs] for ours, theirs in _FIELDS.items()}
    odd = tuple(image_config["depthwise_padding"])
    image |= {"name": "efficientnet", "head": False, "padding": "late", "odd_blocks": odd}
    text = {"name": "bert", **hf_text.model_section(_TEXT, text_config, where), "pool": "cls"}
    model = {
        "name": "towers",
        "image": image,
        "text": text,
        "embedding_dim": config["projection_dim"],
        **_HEADS,
        "logit_scale": -math.log(config["temperature_init_value"]),
    }
    model |= config.get("encoders", {})
    rules = _rules(model, image_config["num_channels"], pooler=False)
    tree, dropped = load_tensors(files.read_tensors(path), rules, _DROPPABLE, where)
    params, stats = split_stats(tree)
    preprocessing, reason = read_pair_preprocessing(path, image_config["num_channels"], text)
    return imported(model, params, preprocessing, "AlignModel", dropped, reason, stats)


# --- out ------------------------------------------------------------------------------------------


def write(directory: pathlib.Path, exported: Exported) -> None:
    """Writes config.json, model.safetensors, and the files of processor and tokenizer.

    Raises:
      CheckpointError: something that ALIGN has not in transformers, named by its field.
    """
    fields = exported.fields
    image, text = fields["image"], fields["text"]
    only = {
        "image.head": (image["head"], False),
        "image.padding": (image["padding"], "late"),
        "image.pool": (image["pool"], "mean"),
        "text.name": (text["name"], "bert"),
        "text.pool": (text["pool"], "cls"),
        **{name: (fields[name], value) for name, value in _HEADS.items()},
        **{f"text.{name}": (text[name], value) for name, value in hf_text.PLAIN.items()},
    }
    for field, (value, wanted) in only.items():
        if value != wanted:
            raise CheckpointError(
                f"format 'hf', align: model.{field}={value!r} cannot be expressed: there it is "
                f"{wanted!r}."
            )
    rules = _rules(fields, exported.channels, pooler=True)
    tensors = dump_tensors(exported.params, rules, "Hugging Face align")
    side = max(exported.image_size)
    config = {
        "model_type": "align",
        "architectures": ["AlignModel"],
        "projection_dim": fields["embedding_dim"],
        "temperature_init_value": math.exp(-fields["logit_scale"]),
        "text_config": {"model_type": "align_text_model", **hf_text.settings(_TEXT, text)},
        "vision_config": {
            "model_type": "align_vision_model",
            **{theirs: image[ours] for ours, theirs in _FIELDS.items()},
            "depthwise_padding": list(image["odd_blocks"]),
            "image_size": side,
            "num_channels": exported.channels,
            "hidden_dim": 4 * side,  # of the square that is averaged: more than there are pixels
        },
        "dtype": "float32",
        "encoders": {"max_logit_scale": fields["max_logit_scale"]},
    }
    files.write_json(directory / files.CONFIG, config)
    files.write_tensors(directory / files.WEIGHTS, tensors)
    write_pair_preprocessing(directory, exported)


# --- tensors --------------------------------------------------------------------------------------


def _rules(model: Mapping[str, Any], channels: int, pooler: bool) -> list[Rule]:
    text = model["text"]
    width = text["width"]
    texts = hf_text.trunk_rules("bert", text)
    if pooler:
        texts = [
            *texts,
            constant("pooler.dense.weight", np.eye(width, dtype=np.float32)),
            constant("pooler.dense.bias", np.zeros(width, np.float32)),
        ]
    return [
        *prefixed(_image_rules(model["image"], channels), "vision_model.", "image/"),
        *prefixed(texts, "text_model.", "text/"),
        *linear("text_projection", "text_projection", width, model["embedding_dim"]),
        Rule(
            (("temperature", ()),),
            ("logit_scale",),
            lambda x: (-np.log(x),),
            lambda x: (np.exp(-x),),
        ),
    ]


def _image_rules(image: Mapping[str, Any], channels: int) -> list[Rule]:
    plans = list(plan(image["width_factor"], image["depth_factor"]))
    stem = plans[0].channels
    rules = convolution("embeddings.convolution", "stem", 3, channels, stem)
    rules += batch_norm("embeddings.batchnorm", "stem_norm", stem)
    for number, block in enumerate(plans):
        theirs, ours = f"encoder.blocks.{number}", f"blocks_{number}"
        inside, small = block.channels * block.expansion, squeezed(block.channels)
        if block.expansion > 1:
            name = f"{theirs}.expansion.expand_conv"
            rules += convolution(name, f"{ours}/expand", 1, block.channels, inside)
            rules += batch_norm(f"{theirs}.expansion.expand_bn", f"{ours}/expand_norm", inside)
        name = f"{theirs}.depthwise_conv.depthwise"
        rules += convolution(f"{name}_conv", f"{ours}/filter", block.kernel, inside, inside, True)
        rules += batch_norm(f"{name}_norm", f"{ours}/filter_norm", inside)
        name = f"{theirs}.squeeze_excite"
        rules += pointwise(f"{name}.reduce", f"{ours}/squeeze", inside, small)
        rules += pointwise(f"{name}.expand", f"{ours}/excite", small, inside)
        name = f"{theirs}.projection.project"
        rules += convolution(f"{name}_conv", f"{ours}/project", 1, inside, block.features)
        rules += batch_norm(f"{name}_bn", f"{ours}/project_norm", block.features)
    return rules
