"""Hugging Face transformers' ModernBERT, in and out.

Configs of transformers 4 say `global_attn_every_n_layers` and one theta for global and local layers
each; those of transformers 5 list the layers' types and their rotary parameters. Both are read; the
words of transformers 4, which 5 understands too, are written. Left out on import, and listed in the
metadata: heads other than that of masked tokens.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from encoders.checkpoints.formats import files, hf_heads
from encoders.checkpoints.formats.hf_rules import SIZES, Defaults, activation
from encoders.checkpoints.formats.mapping import (
    Exported,
    Imported,
    Rule,
    dump_tensors,
    fused_linear,
    linear,
    norm,
    rename,
    vector,
)
from encoders.errors import CheckpointError

# Our field -> theirs.
_FIELDS = {
    **SIZES,
    "vocab_size": "vocab_size",
    "max_length": "max_position_embeddings",
    "norm_eps": "norm_eps",
    "norm_bias": "norm_bias",
    "qkv_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
    "attention_dropout": "attention_dropout",
    "window": "local_attention",
}
_GATES = {"gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh", "silu": "swiglu"}
_GATES_OUT = {ours: theirs for theirs, ours in _GATES.items()}
_PAD = 50283
# Training's business, and zero in the published weights.
_OTHER_DROPOUT = ("embedding_dropout", "mlp_dropout")


FAMILIES = {
    "modernbert": Defaults(
        {
            "hidden_size": 768,
            "num_hidden_layers": 22,
            "num_attention_heads": 12,
            "intermediate_size": 1152,
            "hidden_activation": "gelu",
            "vocab_size": 50368,
            "max_position_embeddings": 8192,
            "norm_eps": 1e-5,
            "norm_bias": False,
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "embedding_dropout": 0.0,
            "mlp_dropout": 0.0,
            "local_attention": 128,
            "decoder_bias": True,
            "classifier_bias": False,
            "classifier_activation": "gelu",
        }
    )
}
MODELS = ("modernbert",)

_NAMES = hf_heads.VocabularyNames(
    "decoder",
    "head.dense",
    "head.norm",
    fixed={"activation": "gelu", "dense_bias": False, "norm_bias": False},
)
_HEADS = (hf_heads.masked_language("ModernBertForMaskedLM", _NAMES),)
_DROPPABLE = {r"(head|decoder|classifier)\..*": "a head; only the encoder is read"}


def read(path: pathlib.Path, config: Mapping[str, Any], where: str) -> Imported:
    """Reads the weights of a directory whose config, with defaults filled in, is `config`.

    Raises:
      CheckpointError: an option is not supported; tensors are missing, unknown or of another shape.
    """
    model = _model_section(config, where)
    tensors = rename(files.read_tensors(path), ((r"^model\.", ""),), where)
    row = hf_heads.find(_HEADS, tensors)
    # The other classes have the transform of that head as well, before a classifier.
    if "decoder.bias" not in tensors or not _is_usual_head(config):
        row = None
    return hf_heads.imported(
        tensors,
        _rules(model),
        row,
        model=model,
        config=config,
        trunk="ModernBertModel",
        droppable=_DROPPABLE if row is None else {},
        where=where,
    )


def _is_usual_head(config: Mapping[str, Any]) -> bool:
    usual = {"classifier_bias": False, "classifier_activation": "gelu", "norm_bias": False}
    return all(config[field] == value for field, value in usual.items())


def _model_section(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    section = {ours: config[theirs] for ours, theirs in _FIELDS.items()}
    mlp = activation(config, "hidden_activation", where, _GATES)
    for field in _OTHER_DROPOUT:
        if config[field]:
            raise CheckpointError(f"{where}: {field}={config[field]!r} is not supported, only 0.")
    section |= {
        "name": "modernbert",
        "mlp": mlp,
        "out_bias": config["attention_bias"],
        "global_every": _global_every(config, where),
        **_temperatures(config, where),
        "pool": config.get("classifier_pooling", "cls"),
    }
    return section | config.get("encoders", {})  # what transformers has no word for; see `write`


def _global_every(config: Mapping[str, Any], where: str) -> int:
    """The period of the layers' types, which has to be regular."""
    depth, types = config["num_hidden_layers"], config.get("layer_types")
    if types is None:
        return config.get("global_attn_every_n_layers", 3)
    every = next((i for i in range(1, depth) if types[i] == "full_attention"), depth)
    if types != ["sliding_attention" if i % every else "full_attention" for i in range(depth)]:
        raise CheckpointError(
            f"{where}: layer_types are not supported unless every n-th layer, from the first on, "
            "is 'full_attention' and the others are 'sliding_attention'."
        )
    return every


def _temperatures(config: Mapping[str, Any], where: str) -> dict[str, float]:
    found = {}
    for ours, kind, old, default in (
        ("rotary_temperature", "full_attention", "global_rope_theta", 160000.0),
        ("local_temperature", "sliding_attention", "local_rope_theta", 10000.0),
    ):
        given = (config.get("rope_parameters") or {}).get(kind) or {}
        if given.get("rope_type", "default") != "default":
            raise CheckpointError(
                f"{where}: rope_type '{given['rope_type']}' is not supported, only 'default'."
            )
        found[ours] = float(given.get("rope_theta", config.get(old) or default))
    return found


def write(directory: pathlib.Path, exported: Exported) -> None:
    """Writes config.json and model.safetensors into `directory`.

    Raises:
      CheckpointError: something that ModernBERT has not in transformers, named by its field.
    """
    fields = exported.fields
    for field, wrong, why in (
        ("mlp", fields["mlp"] not in _GATES_OUT, "its MLPs are gated"),
        ("out_bias", fields["out_bias"] != fields["qkv_bias"], "there qkv_bias is the same"),
        ("dropout", fields["dropout"] != 0, "there it has other places"),
        ("pre_norm", not fields["pre_norm"], "its norms come first"),
        ("num_token_types", fields["num_token_types"] != 0, "it has none"),
        ("embedding_dim", fields["embedding_dim"] != fields["width"], "there it is the width"),
    ):
        if wrong:
            raise CheckpointError(
                f"format 'hf': {field}={fields[field]!r} cannot be expressed for modernbert: {why}."
            )
    config = {
        "model_type": "modernbert",
        "architectures": ["ModernBertModel"],
        **{theirs: fields[ours] for ours, theirs in _FIELDS.items()},
        "hidden_activation": _GATES_OUT[fields["mlp"]],
        "global_attn_every_n_layers": fields["global_every"],
        "global_rope_theta": fields["rotary_temperature"],
        "local_rope_theta": fields["local_temperature"],
        "embedding_dropout": 0.0,
        "mlp_dropout": 0.0,
        # The published one, if there is such a token; it means no more than a row without gradient.
        "pad_token_id": _PAD if fields["vocab_size"] > _PAD else None,
        "dtype": "float32",
        "encoders": {"pool": fields["pool"]},
    }
    tensors = dump_tensors(exported.params, _rules(fields), "Hugging Face modernbert")
    tensors, config = hf_heads.with_heads(
        tensors, config, exported, _HEADS, family="modernbert", prefix="model"
    )
    files.write_json(directory / files.CONFIG, config)
    files.write_tensors(directory / files.WEIGHTS, tensors)


def _rules(fields: Mapping[str, Any]) -> list[Rule]:
    """Their encoder, without the prefix of models with a head, against ours."""
    width, hidden, norm_bias = fields["width"], fields["mlp_dim"], fields["norm_bias"]
    attention_bias, mlp_bias = fields["qkv_bias"], fields["mlp_bias"]

    def norm_rules(theirs: str, ours: str) -> list[Rule]:
        return norm(theirs, ours, width)[: 1 + norm_bias]

    words = (fields["vocab_size"], width)
    rules = [vector("embeddings.tok_embeddings.weight", "embeddings/words", words)]
    rules += norm_rules("embeddings.norm", "embeddings/norm")
    rules += norm_rules("final_norm", "norm")
    for layer in range(fields["depth"]):
        theirs, ours = f"layers.{layer}", f"blocks_{layer}"
        if layer:
            rules += norm_rules(f"{theirs}.attn_norm", f"{ours}/norm1")
        rules += norm_rules(f"{theirs}.mlp_norm", f"{ours}/norm2")
        projections = [f"{ours}/attention/{name}" for name in ("query", "key", "value")]
        fused = f"{theirs}.attn.Wqkv"
        rules += fused_linear(fused, projections, width, [width] * 3, attention_bias)
        rules += linear(f"{theirs}.attn.Wo", f"{ours}/attention/out", width, width, attention_bias)
        gated = [f"{ours}/mlp/gate", f"{ours}/mlp/fc1"]
        rules += fused_linear(f"{theirs}.mlp.Wi", gated, width, [hidden] * 2, mlp_bias)
        rules += linear(f"{theirs}.mlp.Wo", f"{ours}/mlp/fc2", hidden, width, mlp_bias)
    return rules
