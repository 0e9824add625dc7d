"""Hugging Face transformers' encoders of raw speech: wav2vec 2.0, HuBERT, data2vec, in and out.

A family is a table of names (`hf_speech_families`), read in both directions. Heads of wav2vec 2.0's
pre-training are the objective 'speech_contrast', a letter model (...ForCTC) is 'ctc' with the
characters of vocab.json; those of other tasks are left out on import, and listed in the metadata.
Weight norm of the positions is read under both of PyTorch's names, weight_g and weight_v or
parametrizations, and written under the first, which all versions understand.

Whether waveforms are normalised is said in preprocessor_config.json; where there is none, those of
networks with layer norms in their convolutions are, as published.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from encoders.checkpoints.formats import files, hf_heads, hf_speech_heads
from encoders.checkpoints.formats.hf_processor import FILE
from encoders.checkpoints.formats.hf_rules import (
    TEXT_ACTIVATIONS_OUT,
    activation,
    check_types,
    refuse_others,
)
from encoders.checkpoints.formats.hf_speech_families import FAMILIES, MODELS, Family
from encoders.checkpoints.formats.mapping import (
    Exported,
    Imported,
    Rule,
    dump_tensors,
    linear,
    norm,
    rename,
    vector,
)
from encoders.errors import CheckpointError
from encoders.layers.conv_features import receptive_field
from encoders.layers.mlp import GATED

PROCESSOR = "processor_config.json"
_EXTRACTOR = {"feature_size": 1, "sampling_rate": 16000, "do_normalize": True}  # its defaults

# Our module inside a block -> theirs.
_BLOCK = {
    "attention/query": "attention.q_proj",
    "attention/key": "attention.k_proj",
    "attention/value": "attention.v_proj",
    "attention/out": "attention.out_proj",
    "norm1": "layer_norm",
    "mlp/fc1": "feed_forward.intermediate_dense",
    "mlp/fc2": "feed_forward.output_dense",
    "norm2": "final_layer_norm",
}
_WEIGHT_NORM = (
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
)
_DROPPABLE = {
    r"(lm_head|quantizer|project_hid|project_q|projector|classifier|tdnn|objective)\..*": (
        "a head of another task"
    ),
    r"(feature_extractor\.(weight|bias)|layer_weights)": "a head of another task",
}


# --- in -------------------------------------------------------------------------------------------


def read(path: pathlib.Path, config: Mapping[str, Any], where: str) -> Imported:
    """Reads the weights of a directory whose config, with defaults filled in, is `config`.

    Raises:
      CheckpointError: an option is not supported; tensors are missing, unknown or of another shape.
    """
    model_type = config["model_type"]
    family = FAMILIES[model_type]
    refuse_others(family.only, config, where)
    model = _model_section(family, config, where)
    preprocessing, normalize, reason = _preprocessing(path, model, where)
    if normalize is None:
        normalize = model["conv_norm"] == "layer"
    model["normalize_waveform"] = normalize
    model |= config.get("encoders", {})  # what transformers has no word for; see `write`
    tensors = rename(files.read_tensors(path), ((rf"^{family.prefix}\.", ""), *_WEIGHT_NORM), where)
    if "masked_spec_embed" not in tensors:  # of models that were made without masks
        tensors["masked_spec_embed"] = np.zeros(model["width"], np.float32)
    row, droppable = hf_heads.find(hf_speech_heads.HEADS[model_type], tensors), _DROPPABLE
    if row is not None and row.objective == "ctc":
        # Its vocabulary travels with the preprocessing.
        characters, why = hf_speech_heads.characters(path, config, len(tensors["lm_head.weight"]))
        if preprocessing is None or characters is None:
            why = f"letters {why}" if characters is None else f"letters, and {reason}"
            row, droppable = None, {r"lm_head\..*": why, **droppable}
        else:
            preprocessing["characters"] = characters
    found = hf_heads.imported(
        tensors,
        trunk_rules(model_type, model),
        row,
        model=model,
        config=config,
        trunk=family.trunk,
        droppable=droppable,
        where=where,
    )
    objective = found.objective
    if objective is not None:
        objective = {name: x for name, x in objective.items() if name != "vocab_size"}
    metadata = {**found.metadata, "no_preprocessing": reason}
    return dataclasses.replace(
        found, preprocessing=preprocessing, objective=objective, metadata=metadata
    )


def _model_section(family: Family, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    section = {ours: config[theirs] for ours, theirs in family.fields.items()}
    layers = len(config["conv_kernel"])
    if len(set(config["conv_dim"])) != 1 or {len(config["conv_dim"]), layers} != {
        len(config["conv_stride"])
    }:
        raise CheckpointError(
            f"{where}: conv_dim={config['conv_dim']} is not supported, only one size for each of "
            f"the {layers} convolutions that conv_kernel and conv_stride list."
        )
    if section.get("conv_norm", "layer") not in ("group", "layer"):
        raise CheckpointError(
            f"{where}: feat_extract_norm={section['conv_norm']!r} is not supported, only 'group' "
            "and 'layer'."
        )
    section |= family.fixed
    section["mlp"] = activation(config, "hidden_act", where)
    if section["mlp"] in GATED:
        raise CheckpointError(f"{where}: hidden_act={config['hidden_act']!r} is not supported.")
    kernels, strides = (tuple(section[name]) for name in ("conv_kernels", "conv_strides"))
    sizes = {"conv_dim": config["conv_dim"][0], "conv_kernels": kernels, "conv_strides": strides}
    return {"name": family.name, **section, **sizes}


def _preprocessing(
    path: pathlib.Path, model: Mapping[str, Any], where: str
) -> tuple[dict[str, Any] | None, bool | None, str | None]:
    """(section, whether waveforms are normalised, None), or (None, None, why there is none)."""
    if (path / FILE).is_file():
        file, config = FILE, files.read_json(path / FILE)
    elif (path / PROCESSOR).is_file():  # of transformers 5, for an extractor and a tokenizer
        file, config = PROCESSOR, files.read_json(path / PROCESSOR).get("feature_extractor")
    else:
        return None, None, f"the directory has no {FILE}"
    if not isinstance(config, dict):
        return None, None, f"its {PROCESSOR} has no feature_extractor"
    config = {**_EXTRACTOR, **config}
    check_types(config, _EXTRACTOR, where, file)
    if config["feature_size"] != 1:
        return None, None, f"its {file} has feature_size={config['feature_size']}, not 1"
    stride = 1
    for step in model["conv_strides"]:
        stride *= step
    rate = config["sampling_rate"]
    section = {
        "name": "audio",
        "sample_rate": rate,
        "max_samples": 35 * rate,  # the longest clips of LibriSpeech
        "min_samples": receptive_field(model["conv_kernels"], model["conv_strides"]),
        "units_per_second": rate / stride,
        "samples_per_frame": stride,
    }
    return section, config["do_normalize"], None


# --- out ------------------------------------------------------------------------------------------


def write(directory: pathlib.Path, exported: Exported) -> None:
    """Writes config.json, model.safetensors, preprocessor_config.json, and a letter model's tokens.

    Raises:
      CheckpointError: something that the family has not in transformers, named by its field.
    """
    fields = exported.fields
    model_type = MODELS[fields["name"]]
    family = FAMILIES[model_type]
    for field, only in family.fixed.items():
        if fields[field] != only:
            raise CheckpointError(
                f"format 'hf': {field}={fields[field]!r} cannot be expressed for {model_type}: "
                f"there it is {only!r}."
            )
    tensors = dump_tensors(
        exported.params, trunk_rules(model_type, fields), f"Hugging Face {model_type}"
    )
    layers = len(fields["conv_kernels"])
    config = {
        "model_type": model_type,
        "architectures": [family.trunk],
        **{theirs: fields[ours] for ours, theirs in family.fields.items()},
        "hidden_act": TEXT_ACTIVATIONS_OUT[fields["mlp"]],
        "conv_dim": [fields["conv_dim"]] * layers,
        "num_feat_extract_layers": layers,
        "dtype": "float32",
        "encoders": {field: fields[field] for field in ("pool", "feature_gradient")},
    }
    preprocessing, objective = exported.preprocessing, exported.objective
    processor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "do_normalize": fields["normalize_waveform"],
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": fields["conv_norm"] == "layer",
        "sampling_rate": 16000 if preprocessing is None else preprocessing["sample_rate"],
    }
    if objective is not None and objective["name"] == "ctc":
        processor["processor_class"] = "Wav2Vec2Processor"
        head = exported.objective_params["head"]["kernel"]
        objective = {**objective, "vocab_size": head.shape[1]}
        config |= hf_speech_heads.write_letters(directory, preprocessing)
    tensors, config = hf_heads.with_heads(
        tensors,
        config,
        dataclasses.replace(exported, objective=objective),
        hf_speech_heads.HEADS[model_type],
        family=model_type,
        prefix=family.prefix,
    )
    files.write_json(directory / files.CONFIG, config)
    files.write_tensors(directory / files.WEIGHTS, tensors)
    files.write_json(directory / FILE, processor)


# --- names ----------------------------------------------------------------------------------------


def trunk_rules(model_type: str, fields: Mapping[str, Any]) -> list[Rule]:
    """Their encoder, without the prefix of models with a head, against ours."""
    width, hidden, dim = fields["width"], fields["mlp_dim"], fields["conv_dim"]
    rules: list[Rule] = []
    for layer, kernel in enumerate(fields["conv_kernels"]):
        theirs, ours = f"feature_extractor.conv_layers.{layer}", f"convolutions/conv_{layer}"
        rules.append(_convolution(f"{theirs}.conv", ours, (kernel, dim if layer else 1, dim)))
        if fields["conv_bias"]:
            rules.append(vector(f"{theirs}.conv.bias", f"{ours}/bias", (dim,)))
        if fields["conv_norm"] == "layer" or layer == 0:
            rules += norm(f"{theirs}.layer_norm", f"convolutions/norm_{layer}", dim)
    if fields["feature_norm"]:
        rules += norm("feature_projection.layer_norm", "norm_features", dim)
    rules += linear("feature_projection.projection", "projection/linear", dim, width)
    rules.append(vector("masked_spec_embed", "projection/mask_embedding", (width,)))
    rules += _positions(fields)
    rules += norm("encoder.layer_norm", "norm" if fields["pre_norm"] else "norm_pre", width)
    for layer in range(fields["depth"]):
        for ours, inside in _BLOCK.items():
            place, module = f"blocks_{layer}/{ours}", f"encoder.layers.{layer}.{inside}"
            if ours.startswith("norm"):
                rules += norm(module, place, width)
            else:
                d_in = hidden if ours == "mlp/fc2" else width
                rules += linear(module, place, d_in, hidden if ours == "mlp/fc1" else width)
    return rules


def _positions(fields: Mapping[str, Any]) -> list[Rule]:
    width, kernel = fields["width"], fields["position_kernel"]
    shape, theirs = (kernel, width // fields["position_groups"], width), "encoder.pos_conv_embed"
    if "position_depth" not in fields:
        return [
            _convolution(f"{theirs}.conv", "positions", shape, "weight_v"),
            vector(f"{theirs}.conv.weight_g", "positions/scale", (1, 1, kernel), (kernel,)),
            vector(f"{theirs}.conv.bias", "positions/bias", (width,)),
        ]
    rules = []
    for layer in range(fields["position_depth"]):
        place = f"_{layer}" if fields["position_depth"] > 1 else ""
        module = f"{theirs}.layers.{layer}.conv"
        rules.append(_convolution(module, "positions", shape, ours_name=f"kernel{place}"))
        rules.append(vector(f"{module}.bias", f"positions/bias{place}", (width,)))
    return rules


def _convolution(
    theirs: str,
    ours: str,
    shape: tuple[int, int, int],
    name: str = "weight",
    ours_name: str = "kernel",
) -> Rule:
    """weight [out, in, k] against kernel [k, in, out] of `shape`."""
    return Rule(
        ((f"{theirs}.{name}", shape[::-1]),),
        (f"{ours}/{ours_name}",),
        lambda x: (x.transpose(2, 1, 0),),
        lambda x: (x.transpose(2, 1, 0),),
    )
