"""Hugging Face transformers' DeBERTa-v3, in and out; its model_type is 'deberta-v2'.

Version 3 has the code of version 2 with other options, and only version 3's are read: one table of
relative positions in buckets, normalised, through the projections of the content; no convolution,
no absolute positions in the input, no token types. Not read, and listed in the metadata: absolute
positions that the authors' files hold beside the encoder, for the decoder of masked tokens, and the
generator's head where there is the discriminator's. transformers has no class for that one: it is
written under the authors' names, and what transformers loads of it is the encoder.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from encoders.checkpoints.formats import files, hf_heads
from encoders.checkpoints.formats.hf_rules import SIZES, TEXT_ACTIVATIONS_OUT, Defaults, activation
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
    **SIZES,
    "mlp": "hidden_act",
    "vocab_size": "vocab_size",
    "max_length": "max_position_embeddings",
    "position_buckets": "position_buckets",
    "norm_eps": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
# Of version 2, which their config's class is named for.
_DEFAULTS = {
    "hidden_size": 1536,
    "num_hidden_layers": 24,
    "num_attention_heads": 24,
    "intermediate_size": 6144,
    "hidden_act": "gelu",
    "vocab_size": 128100,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-7,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
# Config field -> what it is where a file leaves it out, and the one value that is supported.
_ONLY = {
    "relative_attention": (False, True),
    "position_biased_input": (True, False),
    "share_att_key": (False, True),
    "norm_rel_ebd": ("none", "layer_norm"),
    "type_vocab_size": (0, 0),
    "conv_kernel_size": (0, 0),
}
# Our module inside a block -> theirs.
_BLOCK = {
    "attention/query": "attention.self.query_proj",
    "attention/key": "attention.self.key_proj",
    "attention/value": "attention.self.value_proj",
    "attention/out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "mlp/fc1": "intermediate.dense",
    "mlp/fc2": "output.dense",
    "norm2": "output.LayerNorm",
}


FAMILIES = {"deberta-v2": Defaults(_DEFAULTS)}
MODELS = ("deberta",)

# The encoder's prefix, and how the authors' code spells a part of the discriminator's head.
_RENAMES = ((r"^deberta\.", ""), (r"(?<=^mask_predictions\.)classifer", "classifier"))
_DROPPABLE = {
    r"(cls|lm_predictions|mask_predictions|classifier|qa_outputs)\..*": "a head of another task",
    r"embeddings\.position_ids": "numbers of positions, not weights",
    r"embeddings\.position_embeddings\.weight": "not of the encoder, but of its mask decoder",
    r"pooler\.dense\.(weight|bias)": "a layer of a classifier's",
}


def _discriminator(fields: Mapping[str, Any], section: Mapping[str, Any]) -> list[Rule]:
    head, width, theirs = section.get("head") or {}, fields["width"], "mask_predictions"
    if head.get("context") is False:
        raise CheckpointError(
            "format 'hf': objective.head.context=False cannot be expressed for deberta: there the "
            "first token is added to every one."
        )
    rules = norm(f"{theirs}.LayerNorm", "head/norm", width)
    rules += linear(f"{theirs}.dense", "head/dense", width, width)
    return rules + linear(f"{theirs}.classifier", "head/score", width, 1)


def _tied(section: Mapping[str, Any]) -> bool:
    return hf_heads.tied(section) and not section.get("pair")


_LM, _CLS = "lm_predictions.lm_head", "cls.predictions"
_HEADS = (
    hf_heads.Heads(
        "DebertaV2Model",
        ("mask_predictions.LayerNorm.weight",),
        "replaced_token",
        _discriminator,
    ),
    # The head that the authors' files hold, always tied.
    dataclasses.replace(
        hf_heads.masked_language(
            "DebertaV2ForMaskedLM",
            hf_heads.VocabularyNames(
                f"{_LM}.decoder", f"{_LM}.dense", f"{_LM}.LayerNorm", f"{_LM}.bias"
            ),
        ),
        fits=_tied,
        settings=lambda _: {"tie_word_embeddings": True, "legacy": False},
    ),
    # The same function under the names of transformers' first version, where it can be untied.
    hf_heads.masked_language(
        "DebertaV2ForMaskedLM",
        hf_heads.VocabularyNames(
            f"{_CLS}.decoder",
            f"{_CLS}.transform.dense",
            f"{_CLS}.transform.LayerNorm",
            f"{_CLS}.bias",
        ),
    ),
)


def read(path: pathlib.Path, config: Mapping[str, Any], where: str) -> Imported:
    """Reads the weights of a directory whose config, with defaults filled in, is `config`.

    Raises:
      CheckpointError: an option is not supported; tensors are missing, unknown or of another shape.
    """
    model = _model_section(config, where)
    tensors = rename(files.read_tensors(path), _RENAMES, where)
    return hf_heads.imported(
        tensors,
        _rules(model),
        hf_heads.find(_HEADS, tensors),
        model=model,
        config=config,
        trunk="DebertaV2Model",
        droppable=_DROPPABLE,
        where=where,
    )


def _model_section(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    for field, (absent, value) in _ONLY.items():
        if config.get(field, absent) != value:
            raise CheckpointError(
                f"{where}: {field}={config.get(field, absent)!r} is not supported, only {value!r} "
                "of DeBERTa-v3."
            )
    kinds = config.get("pos_att_type") or []
    kinds = kinds.split("|") if isinstance(kinds, str) else kinds
    if sorted(kind.strip() for kind in kinds) != ["c2p", "p2c"]:
        raise CheckpointError(
            f"{where}: pos_att_type={kinds!r} is not supported, only ['p2c', 'c2p'] of DeBERTa-v3."
        )
    buckets = config.get("position_buckets", -1)
    if not isinstance(buckets, int) or buckets < 2 or buckets % 2:
        raise CheckpointError(
            f"{where}: position_buckets={buckets!r} is not supported, only even numbers from 2 on."
        )
    section = {ours: config[theirs] for ours, theirs in _FIELDS.items()}
    section |= {"name": "deberta", "mlp": activation(config, "hidden_act", where)}
    distance = config.get("max_relative_positions", -1)
    section["max_distance"] = distance if distance > 0 else section["max_length"]
    if config.get("embedding_size", section["width"]) != section["width"]:
        section["embedding_dim"] = config["embedding_size"]
    return section | config.get("encoders", {})  # what transformers has no word for; see `write`


def write(directory: pathlib.Path, exported: Exported) -> None:
    """Writes config.json and model.safetensors into `directory`.

    The positions of a `mask_decoder` are written where the authors' files hold them; transformers
    leaves them and the decoder out.

    Raises:
      CheckpointError: something that DeBERTa-v3 has not in transformers, named by its field.
    """
    fields = exported.fields
    for field, expected in (
        ("shared", False),
        ("pad_id", None),
        ("qkv_bias", True),
        ("out_bias", True),
        ("mlp_bias", True),
        ("norm_bias", True),
    ):
        if fields[field] != expected:
            raise CheckpointError(
                f"format 'hf': {field}={fields[field]!r} cannot be expressed for deberta: there it "
                f"is {expected!r}."
            )
    distance, length = fields["max_distance"], fields["max_length"]
    settings = {theirs: fields[ours] for ours, theirs in _FIELDS.items()}
    settings["hidden_act"] = TEXT_ACTIVATIONS_OUT[fields["mlp"]]
    if fields["embedding_dim"] != fields["width"]:
        settings["embedding_size"] = fields["embedding_dim"]
    config = {
        "model_type": "deberta-v2",
        "architectures": ["DebertaV2Model"],
        **settings,
        **{field: value for field, (absent, value) in _ONLY.items() if value != absent},
        "pos_att_type": ["p2c", "c2p"],
        "max_relative_positions": -1 if distance == length else distance,
        "dtype": "float32",
        "encoders": {field: fields[field] for field in ("pool", "mask_decoder")},
    }
    tensors = dump_tensors(exported.params, _rules(fields), "Hugging Face deberta-v2")
    tensors, config = hf_heads.with_heads(
        tensors, config, exported, _HEADS, family="deberta", prefix="deberta"
    )
    files.write_json(directory / files.CONFIG, config)
    files.write_tensors(directory / files.WEIGHTS, tensors)


def _rules(fields: Mapping[str, Any]) -> list[Rule]:
    """Their encoder, without the prefix of models with a head, against ours."""
    width, hidden = fields["width"], fields["mlp_dim"]
    embedding = fields.get("embedding_dim") or width
    words, table = (fields["vocab_size"], embedding), (2 * fields["position_buckets"], width)
    rules = [
        vector("embeddings.word_embeddings.weight", "embeddings/words", words),
        vector("encoder.rel_embeddings.weight", "relative_embeddings", table),
        *norm("embeddings.LayerNorm", "norm_embeddings", width),
        *norm("encoder.LayerNorm", "norm_relative_embeddings", width),
    ]
    if embedding != width:
        rules += linear("embeddings.embed_proj", "projection", embedding, width, bias=False)
    if fields.get("mask_decoder"):
        shape = (fields["max_length"], width)
        rules.append(vector("embeddings.position_embeddings.weight", "mask_positions", shape))
    for layer in range(fields["depth"]):
        for ours, inside in _BLOCK.items():
            place, module = f"blocks_{layer}/{ours}", f"encoder.layer.{layer}.{inside}"
            if ours.startswith("norm"):
                rules += norm(module, place, width)
            else:
                d_in = hidden if ours == "mlp/fc2" else width
                d_out = hidden if ours == "mlp/fc1" else width
                rules += linear(module, place, d_in, d_out)
    return rules
