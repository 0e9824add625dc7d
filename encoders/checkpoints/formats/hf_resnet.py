"""Hugging Face transformers' ResNet, in and out, with its classifier."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from encoders.checkpoints.formats import files
from encoders.checkpoints.formats.hf_processor import read_preprocessing, write_preprocessing
from encoders.checkpoints.formats.hf_rules import Defaults
from encoders.checkpoints.formats.mapping import (
    Exported,
    Imported,
    Rule,
    batch_norm,
    convolution,
    dump_tensors,
    linear,
    load_tensors,
    prefixed,
    rename,
    split_stats,
)
from encoders.errors import CheckpointError

FAMILIES = {
    "resnet": Defaults(
        {
            "num_channels": 3,
            "embedding_size": 64,
            "hidden_sizes": [256, 512, 1024, 2048],
            "depths": [3, 4, 6, 3],
            "layer_type": "bottleneck",
            "hidden_act": "relu",
            "downsample_in_first_stage": False,
            "downsample_in_bottleneck": False,
        }
    )
}
_DROPPABLE = {r".*\.num_batches_tracked": "how many batches a running statistic is of"}
_VARIANTS = {"bottleneck": "50", "basic": "18"}  # whose blocks are of that kind
_HEAD = "classifier.1"


def read(path: pathlib.Path, config: Mapping[str, Any], where: str) -> Imported:
    """Reads the weights of a directory whose config, with defaults filled in, is `config`.

    Raises:
      CheckpointError: an option is not supported; tensors are missing, unknown or of another shape.
    """
    kind, width = config["layer_type"], config["embedding_size"]
    growth = 4 if kind == "bottleneck" else 1
    sizes = [width * growth * 2**stage for stage in range(len(config["depths"]))]
    for field, wanted in (
        ("layer_type", _VARIANTS),
        ("hidden_act", ("relu",)),
        ("hidden_sizes", (sizes,)),
        ("downsample_in_first_stage", (False,)),
        ("downsample_in_bottleneck", (False,)),
    ):
        if config[field] not in wanted:
            raise CheckpointError(
                f"{where}: {field}={config[field]!r} is not supported, only "
                f"{' or '.join(map(repr, wanted))}."
            )
    blocks = tuple(config["depths"])
    model = {"name": "resnet", "variant": _VARIANTS[kind], "width": width, "blocks": blocks}
    model |= config.get("encoders", {})
    tensors = rename(files.read_tensors(path), ((r"^resnet\.", ""),), where)
    rules, objective = _rules(model, growth, config["num_channels"]), None
    if f"{_HEAD}.weight" in tensors:
        classes = int(tensors[f"{_HEAD}.weight"].shape[0])
        rules += linear(_HEAD, "head", sizes[-1], classes)
        objective = {"name": "classification", "num_classes": classes}
    tree, dropped = load_tensors(tensors, rules, _DROPPABLE, where)
    head = {name: tree.pop(name) for name in ("head",) if name in tree}
    params, stats = split_stats(tree)
    preprocessing, reason = read_preprocessing(path, config["num_channels"])
    metadata = {
        "format": "hf",
        "architecture": (config.get("architectures") or ["ResNetModel"])[0],
        "class_names": None,
        "dropped": dropped,
        "no_preprocessing": reason,
    }
    return Imported(model, params, preprocessing, objective, head, metadata, stats)


def write(directory: pathlib.Path, exported: Exported) -> None:
    """Writes config.json, model.safetensors and preprocessor_config.json into `directory`.

    Raises:
      CheckpointError: there is a head that is no classifier.
    """
    fields, objective = exported.fields, exported.objective
    growth = fields["growth"]
    sizes = [fields["width"] * growth * 2**stage for stage in range(len(fields["blocks"]))]
    config = {
        "model_type": "resnet",
        "architectures": ["ResNetModel"],
        "num_channels": exported.channels,
        "embedding_size": fields["width"],
        "hidden_sizes": sizes,
        "depths": list(fields["blocks"]),
        "layer_type": "bottleneck" if growth > 1 else "basic",
        "hidden_act": "relu",
        "dtype": "float32",
        "encoders": {"variant": fields["variant"], "pool": fields["pool"]},
    }
    rules = _rules(fields, growth, exported.channels)
    tensors = dump_tensors(exported.params, rules, "Hugging Face resnet")
    if objective is not None:
        if objective["name"] != "classification":
            raise CheckpointError(
                f"format 'hf': objective='{objective['name']}' cannot be expressed: a ResNet there "
                "has a classifier or nothing."
            )
        classes = objective["num_classes"]
        head = linear(_HEAD, "head", sizes[-1], classes)
        tensors = {f"resnet.{name}": tensor for name, tensor in tensors.items()}
        tensors |= dump_tensors(exported.objective_params, head, "Hugging Face resnet")
        names = exported.class_names or [f"LABEL_{i}" for i in range(classes)]
        config |= {
            "architectures": ["ResNetForImageClassification"],
            "id2label": {str(i): name for i, name in enumerate(names)},
            "label2id": {name: i for i, name in enumerate(names)},
        }
    files.write_json(directory / files.CONFIG, config)
    files.write_tensors(directory / files.WEIGHTS, tensors)
    if exported.preprocessing is not None:
        write_preprocessing(directory, exported.preprocessing)


def _rules(fields: Mapping[str, Any], growth: int, channels: int) -> list[Rule]:
    width = fields["width"]
    rules = _pair("embedder.embedder", "stem", "stem_norm", 7, channels, width)
    number, d_in = 0, width
    for stage, blocks in enumerate(fields["blocks"]):
        inside = width * 2**stage
        out = inside * growth
        for layer in range(blocks):
            theirs = f"encoder.stages.{stage}.layers.{layer}."
            one: list[Rule] = []
            if d_in != out or (stage and not layer):
                one += _pair("shortcut", "shortcut", "shortcut_norm", 1, d_in, out)
            if growth > 1:
                sizes = ((1, d_in, inside), (3, inside, inside), (1, inside, out))
            else:
                sizes = ((3, d_in, inside), (3, inside, inside))
            for index, (kernel, a, b) in enumerate(sizes):
                names = f"conv{index + 1}", f"norm{index + 1}"
                one += _pair(f"layer.{index}", *names, kernel, a, b)
            rules += prefixed(one, theirs, f"blocks_{number}/")
            number, d_in = number + 1, out
    return rules


def _pair(theirs: str, conv: str, norm: str, kernel: int, d_in: int, d_out: int) -> list[Rule]:
    """A convolution and its batch norm."""
    rules = convolution(f"{theirs}.convolution", conv, kernel, d_in, d_out)
    return [*rules, *batch_norm(f"{theirs}.normalization", norm, d_out)]
