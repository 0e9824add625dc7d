"""Hugging Face transformers' Whisper: its encoder, in and out.

Left out on import, and listed in the metadata: the decoder and the head of vocabulary. The table of
positions is a constant there too, so it is checked and not kept. What masked frames are replaced by
is zero there: so it is here on import, and left out on export. Written is a WhisperModel without a
decoder (decoder_layers=0): `WhisperModel.from_pretrained(directory).encoder`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from encoders.checkpoints.formats import files
from encoders.checkpoints.formats.hf_rules import Defaults
from encoders.checkpoints.formats.mapping import (
    Exported,
    Imported,
    Rule,
    constant,
    dump_tensors,
    linear,
    load_tensors,
    norm,
    rename,
    vector,
)
from encoders.errors import CheckpointError
from encoders.layers.position import sinusoids

FAMILIES = {
    "whisper": Defaults(
        {
            "num_mel_bins": 80,
            "d_model": 384,
            "encoder_layers": 4,
            "encoder_attention_heads": 6,
            "encoder_ffn_dim": 1536,
            "max_source_positions": 1500,
            "activation_function": "gelu",
            "scale_embedding": False,
        }
    )
}
MODELS = ("whisper",)

# Our field -> theirs.
_FIELDS = {
    "width": "d_model",
    "depth": "encoder_layers",
    "num_heads": "encoder_attention_heads",
    "mlp_dim": "encoder_ffn_dim",
    "num_mels": "num_mel_bins",
}
_DROPPABLE = {
    r"decoder\..*": "the decoder; only the encoder is read",
    r"proj_out\..*": "the decoder's head",
    r"(projector|classifier|layer_weights)(\..*)?": "a classifier; only the encoder is read",
}
_POSITIONS = "encoder.embed_positions.weight"
_EPS = 1e-5  # PyTorch's own, which no config says


def read(path: pathlib.Path, config: Mapping[str, Any], where: str) -> Imported:
    """Reads the weights of a directory whose config, with defaults filled in, is `config`.

    Raises:
      CheckpointError: an option is not supported; positions are no sinusoids; tensors are missing,
        unknown or of another shape.
    """
    for field, wanted in (("activation_function", "gelu"), ("scale_embedding", False)):
        if config[field] != wanted:
            raise CheckpointError(
                f"{where}: {field}={config[field]!r} is not supported, only {wanted!r}."
            )
    model = {"name": "whisper", **{ours: config[theirs] for ours, theirs in _FIELDS.items()}}
    positions = config["max_source_positions"]
    model |= {"pad_to": 2 * positions} | config.get("encoders", {})
    tensors = rename(files.read_tensors(path), ((r"^model\.", ""),), where)
    expected = sinusoids(positions, model["width"])
    params, dropped = load_tensors(tensors, _rules(model, positions), _DROPPABLE, where)
    if not np.allclose(tensors[_POSITIONS].astype(np.float32), expected, atol=1e-2):
        raise CheckpointError(f"{where}: '{_POSITIONS}' is not Whisper's table of sinusoids.")
    metadata = {
        "format": "hf",
        "architecture": (config.get("architectures") or ["WhisperModel"])[0],
        "dropped": dropped,
    }
    params["mask_embedding"] = np.zeros(2 * model["num_mels"], np.float32)
    preprocessing = {"name": "audio", "sample_rate": 16000, "max_samples": 320 * positions}
    return Imported(model, params, preprocessing, None, {}, metadata)


def write(directory: pathlib.Path, exported: Exported) -> None:
    """Writes config.json and model.safetensors into `directory`.

    Raises:
      CheckpointError: something that Whisper has not in transformers, named by its field.
    """
    fields = exported.fields
    if exported.objective is not None:
        raise CheckpointError("format 'hf': heads cannot be expressed for whisper.")
    if fields["norm_eps"] != _EPS:
        raise CheckpointError(
            f"format 'hf': norm_eps={fields['norm_eps']!r} cannot be expressed for whisper: there "
            f"it is {_EPS}."
        )
    positions = (fields["pad_to"] or 3000) // 2
    config = {
        "model_type": "whisper",
        "architectures": ["WhisperModel"],
        **{theirs: fields[ours] for ours, theirs in _FIELDS.items()},
        "max_source_positions": positions,
        "activation_function": "gelu",
        "decoder_layers": 0,
        "decoder_attention_heads": fields["num_heads"],
        "vocab_size": 1,
        "max_target_positions": 1,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
        "decoder_start_token_id": 0,
        "dtype": "float32",
        "encoders": {"pad_to": fields["pad_to"], "pool": fields["pool"]},
    }
    where = "Hugging Face whisper"
    params = {name: x for name, x in exported.params.items() if name != "mask_embedding"}
    tensors = dump_tensors(params, _rules(fields, positions), where)
    tensors |= _no_decoder(fields["width"])
    files.write_json(directory / files.CONFIG, config)
    files.write_tensors(directory / files.WEIGHTS, tensors)


def _no_decoder(width: int) -> dict[str, np.ndarray]:
    """What is left of a decoder without layers, words or positions."""
    names = ("embed_tokens.weight", "embed_positions.weight")
    tensors = {f"decoder.{name}": np.zeros((1, width), np.float32) for name in names}
    norm_of = {"weight": np.ones, "bias": np.zeros}
    return tensors | {
        f"decoder.layer_norm.{name}": make(width, np.float32) for name, make in norm_of.items()
    }


def _rules(fields: Mapping[str, Any], positions: int) -> list[Rule]:
    width, hidden = fields["width"], fields["mlp_dim"]
    rules = [constant(_POSITIONS, sinusoids(positions, width))]
    for name, d_in in (("conv1", fields["num_mels"]), ("conv2", width)):
        rules += _convolution(f"encoder.{name}", name, 3, d_in, width)
    rules += norm("encoder.layer_norm", "norm", width)
    for layer in range(fields["depth"]):
        theirs, ours = f"encoder.layers.{layer}", f"blocks_{layer}"
        attention = f"{theirs}.self_attn"
        for name, part in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "out")):
            path = f"{ours}/attention/{part}"
            rules += linear(f"{attention}.{name}_proj", path, width, width, part != "key")
        rules += norm(f"{theirs}.self_attn_layer_norm", f"{ours}/norm1", width)
        rules += norm(f"{theirs}.final_layer_norm", f"{ours}/norm2", width)
        rules += linear(f"{theirs}.fc1", f"{ours}/mlp/fc1", width, hidden)
        rules += linear(f"{theirs}.fc2", f"{ours}/mlp/fc2", hidden, width)
    return rules


def _convolution(theirs: str, ours: str, kernel: int, d_in: int, d_out: int) -> list[Rule]:
    """weight [out, in, k] against kernel [k, in, out], and the bias."""
    weight = Rule(
        ((f"{theirs}.weight", (d_out, d_in, kernel)),),
        (f"{ours}/kernel",),
        lambda x: (x.transpose(2, 1, 0),),
        lambda x: (x.transpose(2, 1, 0),),
    )
    return [weight, vector(f"{theirs}.bias", f"{ours}/bias", (d_out,))]
