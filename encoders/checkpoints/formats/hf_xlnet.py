"""Hugging Face transformers' XLNet, in and out, with the head that predicts tokens.

Left out on import, and listed in the metadata: other heads. What is not read: `mem_len` and
`reuse_len`, which say how much of a memory to keep, and nothing of the network.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from encoders.checkpoints.formats import files, hf_heads
from encoders.checkpoints.formats.hf_rules import TEXT_ACTIVATIONS_OUT, Defaults, activation
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

# Our field -> theirs.
_FIELDS = {
    "width": "d_model",
    "depth": "n_layer",
    "num_heads": "n_head",
    "mlp_dim": "d_inner",
    "vocab_size": "vocab_size",
    "norm_eps": "layer_norm_eps",
    "dropout": "dropout",
    "attention_dropout": "dropout",
}
_ONLY = {"attn_type": "bi", "bi_data": False}
_POOLS = {"last": "last", "first": "cls", "mean": "mean"}  # by summary_type


FAMILIES = {
    "xlnet": Defaults(
        {
            "d_model": 1024,
            "n_layer": 24,
            "n_head": 16,
            "d_inner": 4096,
            "ff_activation": "gelu",
            "vocab_size": 32000,
            "layer_norm_eps": 1e-12,
            "dropout": 0.1,
            "attn_type": "bi",
            "bi_data": False,
            "summary_type": "last",
        }
    )
}
MODELS = ("xlnet",)

_UNTIED = {"head": {"tied": False}}
_NAMES = hf_heads.VocabularyNames("lm_loss", fixed={"transform": False})
_HEADS = (
    hf_heads.Heads(
        "XLNetLMHeadModel",
        ("lm_loss.bias",),
        "permutation",
        _NAMES.rules,
        lambda tensors, config: {} if _NAMES.is_tied(tensors, config) else _UNTIED,
        settings=lambda section: {"tie_word_embeddings": hf_heads.tied(section)},
        droppable=_NAMES.copies,
    ),
)
_DROPPABLE = {
    r"(lm_loss|sequence_summary|logits_proj|classifier|qa_outputs|"
    r"(start|end)_logits|answer_class)\..*": "a head of another task"
}


def read(path: pathlib.Path, config: Mapping[str, Any], where: str) -> Imported:
    """Reads the weights of a directory whose config, with defaults filled in, is `config`.

    Raises:
      CheckpointError: an option is not supported; tensors are missing, unknown or of another shape.
    """
    for field, value in _ONLY.items():
        if config[field] != value:
            raise CheckpointError(
                f"{where}: {field}={config[field]!r} is not supported, only {value!r}."
            )
    model = _model_section(config, where)
    tensors = rename(files.read_tensors(path), ((r"^transformer\.", ""),), where)
    return hf_heads.imported(
        tensors,
        _rules(model),
        hf_heads.find(_HEADS, tensors),
        model=model,
        config=config,
        trunk="XLNetModel",
        droppable=_DROPPABLE,
        where=where,
    )


def _model_section(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    clamp = config.get("clamp_len", -1)
    section = {
        "name": "xlnet",
        **{ours: config[theirs] for ours, theirs in _FIELDS.items()},
        "mlp": activation(config, "ff_activation", where),
        "clamp_length": clamp if clamp > 0 else None,
        "pool": _POOLS.get(config["summary_type"], "last"),
    }
    return section | config.get("encoders", {})  # what transformers has no word for; see `write`


def write(directory: pathlib.Path, exported: Exported) -> None:
    """Writes config.json and model.safetensors into `directory`.

    Raises:
      CheckpointError: something that XLNet has not in transformers, named by its field.
    """
    fields = exported.fields
    config = {
        "model_type": "xlnet",
        "architectures": ["XLNetModel"],
        **{theirs: fields[ours] for ours, theirs in _FIELDS.items()},
        "dropout": fields["dropout"],
        "ff_activation": TEXT_ACTIVATIONS_OUT[fields["mlp"]],
        "clamp_len": fields["clamp_length"] or -1,
        "mem_len": None,
        "dtype": "float32",
        # There, one rate is for all.
        "encoders": {name: fields[name] for name in ("pool", "attention_dropout")},
    }
    tensors = dump_tensors(exported.params, _rules(fields), "Hugging Face xlnet")
    tensors, config = hf_heads.with_heads(
        tensors, config, exported, _HEADS, family="xlnet", prefix="transformer"
    )
    files.write_json(directory / files.CONFIG, config)
    files.write_tensors(directory / files.WEIGHTS, tensors)


def _rules(fields: Mapping[str, Any]) -> list[Rule]:
    """Their encoder, without the prefix of models with a head, against ours."""
    width, hidden, heads = fields["width"], fields["mlp_dim"], fields["num_heads"]
    per_head = (heads, width // heads)
    rules = [
        vector("word_embedding.weight", "embeddings/words", (fields["vocab_size"], width)),
        vector("mask_emb", "mask_token", (1, 1, width), (width,)),
    ]
    for layer in range(fields["depth"]):
        theirs, ours = f"layer.{layer}.rel_attn", f"blocks_{layer}/attention"
        for name, place in (("q", "query"), ("k", "key"), ("v", "value"), ("r", "position")):
            kernel = f"{ours}/{place}/kernel"
            rules.append(vector(f"{theirs}.{name}", kernel, (width, *per_head), (width, width)))
        rules.append(_out(f"{theirs}.o", f"{ours}/out/kernel", width, per_head))
        for name, place in (("r_w", "content"), ("r_r", "position"), ("r_s", "segment")):
            rules.append(vector(f"{theirs}.{name}_bias", f"{ours}/{place}_bias", per_head))
        rules.append(vector(f"{theirs}.seg_embed", f"{ours}/segments", (2, *per_head)))
        rules += norm(f"{theirs}.layer_norm", f"blocks_{layer}/norm1", width)
        mlp = f"layer.{layer}.ff"
        rules += linear(f"{mlp}.layer_1", f"blocks_{layer}/mlp/fc1", width, hidden)
        rules += linear(f"{mlp}.layer_2", f"blocks_{layer}/mlp/fc2", hidden, width)
        rules += norm(f"{mlp}.layer_norm", f"blocks_{layer}/norm2", width)
    return rules


def _out(theirs: str, ours: str, width: int, per_head: tuple[int, int]) -> Rule:
    """[D, H, d], of which the last two are what comes in, against a kernel [in, out]."""
    shape = (width, *per_head)

    def load(x: np.ndarray) -> tuple[np.ndarray]:
        return (x.reshape(width, width).T,)

    return Rule(((theirs, shape),), (ours,), load, lambda x: (x.T.reshape(shape),))
