"""Hugging Face transformers' text encoders: BERT, RoBERTa, DistilBERT, ALBERT, ELECTRA, in and out.

A family is a table of names, read in both directions, and a model_type is the family's name in
`MODELS`. Heads of pretraining are objectives; those of other tasks are left out on import, and
listed in the metadata. Weights that hold no pooler (those of BERT's masked-token models) pool by
the first token. On export the other ways to pool write no pooler either, so transformers makes up
one, and warns, where the family has it.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from encoders.checkpoints.formats import files, hf_heads
from encoders.checkpoints.formats.hf_rules import (
    SIZES,
    TEXT_ACTIVATIONS_OUT,
    activation,
    refuse_others,
)
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
from encoders.layers.mlp import GATED

# Our field -> theirs; `max_length` is `num_positions` there, the rows of the table.
_FIELDS = {
    **SIZES,
    "mlp": "hidden_act",
    "vocab_size": "vocab_size",
    "max_length": "max_position_embeddings",
    "num_token_types": "type_vocab_size",
    "norm_eps": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
# Options of ours that none of the families has.
PLAIN = {
    "positions": "learned",
    "pre_norm": False,
    **dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias", "norm_bias"), True),
}
# Our module inside a block -> theirs.
_BLOCK = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "mlp/fc1": "intermediate.dense",
    "mlp/fc2": "output.dense",
    "norm2": "output.LayerNorm",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """One model_type.

    Attributes:
      trunk: class of the encoder alone; in models with a head its tensors are under the model_type.
      defaults: values of config fields that a file may leave out: those of the config's class.
      fields: our field -> config field.
      only: config field -> the one value that is supported.
      layer: name of a block, with a place for its number.
      block: our module inside a block -> theirs.
      pooler: name of the pooler, or None.
      projection: name of the projection of embeddings, or None.
      pad_id: whether positions are counted from pad_token_id.
    """

    trunk: str
    defaults: Mapping[str, Any]
    fields: Mapping[str, str] = dataclasses.field(default_factory=lambda: _FIELDS)
    only: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    layer: str = "encoder.layer.{}"
    block: Mapping[str, str] = dataclasses.field(default_factory=lambda: _BLOCK)
    pooler: str | None = "pooler.dense"
    projection: str | None = None
    pad_id: bool = False


_ENCODER = {"position_embedding_type": "absolute", "is_decoder": False}
_FACTORISED = {**_FIELDS, "embedding_dim": "embedding_size"}

FAMILIES = {
    "bert": Family("BertModel", _DEFAULTS, only=_ENCODER),
    "roberta": Family(
        "RobertaModel", {**_DEFAULTS, "vocab_size": 50265}, only=_ENCODER, pad_id=True
    ),
    "distilbert": Family(
        "DistilBertModel",
        {
            "dim": 768,
            "n_layers": 6,
            "n_heads": 12,
            "hidden_dim": 3072,
            "activation": "gelu",
            "vocab_size": 30522,
            "max_position_embeddings": 512,
            "dropout": 0.1,
            "attention_dropout": 0.1,
        },
        fields={
            "width": "dim",
            "depth": "n_layers",
            "num_heads": "n_heads",
            "mlp_dim": "hidden_dim",
            "mlp": "activation",
            "vocab_size": "vocab_size",
            "max_length": "max_position_embeddings",
            "dropout": "dropout",
            "attention_dropout": "attention_dropout",
        },
        layer="transformer.layer.{}",
        block={
            "attention/query": "attention.q_lin",
            "attention/key": "attention.k_lin",
            "attention/value": "attention.v_lin",
            "attention/out": "attention.out_lin",
            "norm1": "sa_layer_norm",
            "mlp/fc1": "ffn.lin1",
            "mlp/fc2": "ffn.lin2",
            "norm2": "output_layer_norm",
        },
        pooler=None,
    ),
    "albert": Family(
        "AlbertModel",
        {
            **_DEFAULTS,
            "embedding_size": 128,
            "hidden_size": 4096,
            "num_attention_heads": 64,
            "intermediate_size": 16384,
            "hidden_act": "gelu_new",
            "vocab_size": 30000,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        fields=_FACTORISED,
        only={
            "position_embedding_type": "absolute",
            "num_hidden_groups": 1,
            "inner_group_num": 1,
        },
        layer="encoder.albert_layer_groups.0.albert_layers.{}",
        block={
            "attention/query": "attention.query",
            "attention/key": "attention.key",
            "attention/value": "attention.value",
            "attention/out": "attention.dense",
            "norm1": "attention.LayerNorm",
            "mlp/fc1": "ffn",
            "mlp/fc2": "ffn_output",
            "norm2": "full_layer_layer_norm",
        },
        pooler="pooler",
        projection="encoder.embedding_hidden_mapping_in",
    ),
    "electra": Family(
        "ElectraModel",
        {
            **_DEFAULTS,
            "embedding_size": 128,
            "hidden_size": 256,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
        },
        fields=_FACTORISED,
        only=_ENCODER,
        pooler=None,
        projection="embeddings_project",
    ),
}

# Encoders of code are RoBERTas whose inputs differ: there they are no more than that.
_AS = {"graphcodebert": "roberta", "unixcoder": "roberta"}

MODELS = (*FAMILIES, *_AS)  # every model_type is the name of our model, too

_BERT = hf_heads.VocabularyNames(
    "cls.predictions.decoder",
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.bias",
)
_ROBERTA = hf_heads.VocabularyNames(
    "lm_head.decoder", "lm_head.dense", "lm_head.layer_norm", "lm_head.bias", {"activation": "gelu"}
)
_ALBERT = hf_heads.VocabularyNames(
    "predictions.decoder", "predictions.dense", "predictions.LayerNorm", "predictions.bias"
)
_ELECTRA = hf_heads.VocabularyNames(
    "generator_lm_head",
    "generator_predictions.dense",
    "generator_predictions.LayerNorm",
    fixed={"activation": "gelu"},
)
# model_type -> the classes with heads that are read and written.
_HEADS = {
    "bert": (
        hf_heads.masked_language("BertForPreTraining", _BERT, ("nsp", "cls.seq_relationship")),
        hf_heads.masked_language("BertForMaskedLM", _BERT),
        hf_heads.ranking("BertForSequenceClassification", "classifier"),
    ),
    "roberta": (
        hf_heads.masked_language("RobertaForMaskedLM", _ROBERTA),
        hf_heads.ranking(
            "RobertaForSequenceClassification", "classifier.out_proj", "classifier.dense"
        ),
    ),
    "distilbert": (
        hf_heads.masked_language(
            "DistilBertForMaskedLM",
            hf_heads.VocabularyNames("vocab_projector", "vocab_transform", "vocab_layer_norm"),
        ),
    ),
    "albert": (
        hf_heads.masked_language(
            "AlbertForPreTraining", _ALBERT, ("sop", "sop_classifier.classifier")
        ),
        hf_heads.masked_language("AlbertForMaskedLM", _ALBERT),
    ),
    "electra": (
        hf_heads.masked_language("ElectraForMaskedLM", _ELECTRA),
        hf_heads.replaced_token(
            "ElectraForPreTraining",
            "discriminator_predictions.dense",
            "discriminator_predictions.dense_prediction",
        ),
    ),
}
_DROPPABLE = {
    (
        r"(cls|lm_head|predictions|sop_classifier|vocab_(transform|layer_norm|projector)|"
        r"(discriminator|generator)_predictions|generator_lm_head|(pre_)?classifier|qa_outputs|"
        r"sequence_summary)\..*"
    ): "a head of another task",
    r"embeddings\.(position_ids|token_type_ids)": "numbers of positions, not weights",
}


def read(path: pathlib.Path, config: Mapping[str, Any], where: str) -> Imported:
    """Reads the weights of a directory whose config, with defaults filled in, is `config`.

    Raises:
      CheckpointError: an option is not supported; tensors are missing, unknown or of another shape.
    """
    name = config["model_type"]
    family = FAMILIES[name]
    refuse_others(family.only, config, where)
    prefix = rf"^{name}\."
    legacy = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
    tensors = rename(files.read_tensors(path), ((prefix, ""), *legacy), where)
    model = {"name": name, **model_section(family, config, where)}
    row = hf_heads.find(_HEADS[name], tensors)
    if row is not None:
        tensors = row.completed(tensors)
    model["pool"] = "cls"
    if family.pooler is not None and f"{family.pooler}.weight" in tensors:
        model["pool"] = "pooler"
    model |= config.get("encoders", {})  # what transformers has no word for; see `write`
    return hf_heads.imported(
        tensors,
        trunk_rules(name, model),
        row,
        model=model,
        config=config,
        trunk=family.trunk,
        droppable=_DROPPABLE,
        where=where,
    )


def model_section(family: Family, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fields of the model in ours."""
    section = {ours: config[theirs] for ours, theirs in family.fields.items()}
    section["mlp"] = activation(config, family.fields["mlp"], where)
    if family.pad_id:
        pad_id = config.get("pad_token_id", 1)
        if not isinstance(pad_id, int) or not 0 <= pad_id < section["max_length"] - 1:
            raise CheckpointError(
                f"{where}: pad_token_id={pad_id!r} in config.json makes no sense."
            )
        section["pad_id"] = pad_id
        section["max_length"] -= pad_id + 1
    return section


def write(directory: pathlib.Path, exported: Exported) -> None:
    """Writes config.json and model.safetensors into `directory`.

    Raises:
      CheckpointError: something that the family has not in transformers, named by its field.
    """
    fields = exported.fields
    name = _AS.get(fields["name"], fields["name"])
    family = FAMILIES[name]
    for field, wrong, why in (
        ("pad_id", (fields["pad_id"] is None) == family.pad_id, "its positions are counted so"),
        ("shared", fields["shared"] != (name == "albert"), "its layers are not stored so"),
        ("norm_eps", name == "distilbert" and fields["norm_eps"] != 1e-12, "there it is 1e-12"),
    ):
        if wrong:
            raise CheckpointError(
                f"format 'hf': {field}={fields[field]!r} cannot be expressed for {name}: {why}."
            )
    for field, only in PLAIN.items():
        if fields[field] != only:
            raise CheckpointError(
                f"format 'hf': {field}={fields[field]!r} cannot be expressed for {name}: there it "
                f"is {only!r}."
            )
    if fields["mlp"] in GATED:
        raise CheckpointError(
            f"format 'hf': mlp={fields['mlp']!r} cannot be expressed for {name}: no MLP is gated."
        )
    tensors = dump_tensors(exported.params, trunk_rules(name, fields), f"Hugging Face {name}")
    config = {
        "model_type": name,
        "architectures": [family.trunk],
        **settings(family, fields),
        "dtype": "float32",
        "encoders": {field: fields[field] for field in ("name", "pool")},
    }
    tensors, config = hf_heads.with_heads(
        tensors, config, exported, _HEADS[name], family=name, prefix=name
    )
    files.write_json(directory / files.CONFIG, config)
    files.write_tensors(directory / files.WEIGHTS, tensors)


def settings(family: Family, fields: Mapping[str, Any]) -> dict[str, Any]:
    """An encoder in their words."""
    found = {theirs: fields[ours] for ours, theirs in family.fields.items()}
    found[family.fields["mlp"]] = TEXT_ACTIVATIONS_OUT[fields["mlp"]]
    found["max_position_embeddings"] = _num_positions(fields)
    if family.pad_id:
        found["pad_token_id"] = fields["pad_id"]
    return found


def _num_positions(fields: Mapping[str, Any]) -> int:
    pad_id = fields.get("pad_id")
    return fields["max_length"] + (0 if pad_id is None else pad_id + 1)


def trunk_rules(name: str, fields: Mapping[str, Any]) -> list[Rule]:
    """Their encoder, without the prefix of models with a head, against ours."""
    family, width, hidden = FAMILIES[name], fields["width"], fields["mlp_dim"]
    embedding = fields.get("embedding_dim") or width
    tables = {
        "words": ("word_embeddings", fields["vocab_size"]),
        "positions": ("position_embeddings", _num_positions(fields)),
    }
    if "num_token_types" in family.fields:
        tables["token_types"] = ("token_type_embeddings", fields["num_token_types"])
    rules = [
        vector(f"embeddings.{theirs}.weight", f"embeddings/{ours}", (rows, embedding))
        for ours, (theirs, rows) in tables.items()
    ]
    rules += norm("embeddings.LayerNorm", "embeddings/norm", embedding)
    if family.projection is not None and embedding != width:
        rules += linear(family.projection, "projection", embedding, width)
    if family.pooler is not None and fields["pool"] == "pooler":
        rules += linear(family.pooler, "pooler", width, width)
    for layer in range(1 if name == "albert" else fields["depth"]):
        theirs = family.layer.format(layer)
        for ours, inside in family.block.items():
            place, module = f"blocks_{layer}/{ours}", f"{theirs}.{inside}"
            if ours.startswith("norm"):
                rules += norm(module, place, width)
            else:
                d_in = hidden if ours == "mlp/fc2" else width
                d_out = hidden if ours == "mlp/fc1" else width
                rules += linear(module, place, d_in, d_out)
    return rules
