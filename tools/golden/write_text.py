"""Writes tests/golden/text: tiny text encoders of transformers, and the sizes of published ones.

    python -m tools.golden.write_text [CASE ...]        # needs the extra 'parity'

Only the named cases are written, or all of them; none is ever removed.

Every case is a directory that transformers saved, and expected.npz: inputs, outputs, hidden states
and gradients under transformers' names, from PyTorch on the CPU in float32; the tests that read it
need none. parameters.json counts the parameters of every published size.
"""

from __future__ import annotations

import pathlib
import shutil
import sys
from collections.abc import Sequence

import torch
import transformers

from tools.golden.cases import save, write_counts

DIRECTORY = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "text"

_TINY = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "vocab_size": 23,
    "max_position_embeddings": 11,
}
_TINY_DISTILBERT = {
    "dim": 12,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 20,
    "vocab_size": 23,
    "max_position_embeddings": 11,
}
# What makes version 3 of version 2, in its published config.json.
_DEBERTA = {
    "relative_attention": True,
    "position_biased_input": False,
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "position_buckets": 256,
}
# Tokens are further apart than half the buckets.
_TINY_DEBERTA = {**_TINY, **_DEBERTA, "position_buckets": 4}
# name -> (class, config class, fields); those with a head are told apart by their class.
CASES = {
    "bert": ("BertModel", "BertConfig", _TINY),
    "bert_pretraining": (
        "BertForPreTraining",
        "BertConfig",
        {**_TINY, "hidden_act": "relu", "type_vocab_size": 3, "layer_norm_eps": 1e-3},
    ),
    "bert_mlm": (
        "BertForMaskedLM",
        "BertConfig",
        {**_TINY, "num_hidden_layers": 1, "tie_word_embeddings": False},
    ),
    "roberta": ("RobertaModel", "RobertaConfig", {**_TINY, "type_vocab_size": 1}),
    "roberta_mlm": (
        "RobertaForMaskedLM",
        "RobertaConfig",
        {**_TINY, "pad_token_id": 3, "layer_norm_eps": 1e-5, "tie_word_embeddings": False},
    ),
    "roberta_tied": (
        "RobertaForMaskedLM",
        "RobertaConfig",
        {**_TINY, "num_hidden_layers": 1, "hidden_act": "relu"},
    ),
    "distilbert": ("DistilBertForMaskedLM", "DistilBertConfig", _TINY_DISTILBERT),
    "albert": ("AlbertModel", "AlbertConfig", {**_TINY, "embedding_size": 8}),
    "albert_pretraining": (
        "AlbertForPreTraining",
        "AlbertConfig",
        {**_TINY, "embedding_size": 16, "hidden_act": "gelu"},
    ),
    "deberta": ("DebertaV2Model", "DebertaV2Config", {**_TINY_DEBERTA, "layer_norm_eps": 1e-5}),
    "deberta_mlm": (
        "DebertaV2ForMaskedLM",
        "DebertaV2Config",
        {
            **_TINY_DEBERTA,
            "num_hidden_layers": 1,
            "legacy": False,
            "max_relative_positions": 9,
            "position_buckets": 6,
        },
    ),
    "deberta_untied": (
        "DebertaV2ForMaskedLM",
        "DebertaV2Config",
        {**_TINY_DEBERTA, "num_hidden_layers": 1, "tie_word_embeddings": False},
    ),
    "electra": ("ElectraModel", "ElectraConfig", {**_TINY, "embedding_size": 8}),
    "electra_mlm": (
        "ElectraForMaskedLM",
        "ElectraConfig",
        {**_TINY, "num_hidden_layers": 1, "embedding_size": 8, "hidden_act": "relu"},
    ),
    "electra_pretraining": (
        "ElectraForPreTraining",
        "ElectraConfig",
        {**_TINY, "embedding_size": 12},
    ),
}


def _sizes(width: int, depth: int, heads: int, **others: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        **others,
    }


_ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1}
# family -> (class, config class, variant -> fields of its published config.json)
PUBLISHED = {
    "bert": ("BertModel", "BertConfig", {"base": {}, "large": _sizes(1024, 24, 16)}),
    "roberta": (
        "RobertaModel",
        "RobertaConfig",
        {"base": _ROBERTA, "large": _sizes(1024, 24, 16, **_ROBERTA)},
    ),
    "distilbert": ("DistilBertModel", "DistilBertConfig", {"base": {}}),
    "deberta": (
        "DebertaV2Model",
        "DebertaV2Config",
        {
            "xsmall": _sizes(384, 12, 6, **_DEBERTA),
            "small": _sizes(768, 6, 12, **_DEBERTA),
            "base": _sizes(768, 12, 12, **_DEBERTA),
            "large": _sizes(1024, 24, 16, **_DEBERTA),
        },
    ),
    "albert": (
        "AlbertModel",
        "AlbertConfig",
        {
            "base": _sizes(768, 12, 12),
            "large": _sizes(1024, 24, 16),
            "xlarge": _sizes(2048, 24, 16),
            "xxlarge": _sizes(4096, 12, 64),
        },
    ),
    "electra": (
        "ElectraModel",
        "ElectraConfig",
        {
            "small": {},
            "base": _sizes(768, 12, 12, embedding_size=768),
            "large": _sizes(1024, 24, 16, embedding_size=1024),
        },
    ),
    "modernbert": (
        "ModernBertModel",
        "ModernBertConfig",
        {"base": {}, "large": {**_sizes(1024, 28, 16), "intermediate_size": 2624}},
    ),
}


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Gives every parameter a value that matters: initial zeros and ones hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim == 2 and "embeddings." not in name:
                value.copy_(noise / value.shape[1] ** 0.5)
            elif "norm" in name.lower() and name.endswith("weight"):
                value.copy_(1 + 0.2 * noise)
            else:
                value.copy_(0.5 * noise)


def inputs(config: transformers.PreTrainedConfig) -> dict[str, torch.Tensor]:
    """Four texts of 7, 5, 1 and 0 real tokens, padded behind, before, behind and all over."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, config.vocab_size, (4, 7), generator=generator)
    mask = torch.tensor([[1] * 7, [0, 0] + [1] * 5, [1] + [0] * 6, [0] * 7])
    ids[mask == 0] = config.pad_token_id
    found = {"input_ids": ids, "attention_mask": mask}
    if (types := getattr(config, "type_vocab_size", 0)) > 1:
        found["token_type_ids"] = torch.randint(0, types, (4, 7), generator=generator)
    return found


# What pretraining models of these families are given besides ids; others have an encoder only.
_WITH_HEADS = ("bert", "roberta", "distilbert", "albert", "electra")
_HIDDEN = [[1, 1, 0, 0, 0, 0, 1], [0, 1, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]]


def heads(model: torch.nn.Module, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scores and loss of a pretraining model on the three texts that have any tokens.

    All are padded behind, as our batches are. Gradients of the loss are those of the heads and of
    the word table; those of the encoder follow from its outputs' ones. Labels are -100 where
    nothing is predicted.
    """
    given = {key: value[:3].clone() for key, value in given.items()}
    for value in given.values():
        value[1] = value[1].flip(0)
    generator = torch.Generator().manual_seed(11)
    kind, ids = type(model).__name__, given["input_ids"]
    if kind == "ElectraForPreTraining":
        labels = {"labels": torch.randint(0, 2, ids.shape, generator=generator)}
    else:
        drawn = torch.randint(0, model.config.vocab_size, ids.shape, generator=generator)
        labels = {"labels": torch.where(torch.tensor(_HIDDEN) == 1, drawn, -100)}
    if kind == "BertForPreTraining":
        labels["next_sentence_label"] = torch.tensor([1, 0, 1])
    if kind == "AlbertForPreTraining":
        labels["sentence_order_label"] = torch.tensor([1, 0, 1])
    model.zero_grad()
    out = model(**given, **labels)
    out.loss.backward()
    found = {f"labels/{key}": value for key, value in labels.items()}
    found |= {key: value for key, value in out.items() if key.endswith("logits") or key == "loss"}
    trunk = dict(model.base_model.named_parameters(prefix=model.base_model_prefix))
    for key, value in model.named_parameters():
        if value.grad is not None and (key not in trunk or "word_embeddings" in key):
            found[f"gradients/{key}"] = value.grad
    return found


def write_case(name: str) -> None:
    """Runs a network, differentiates a random linear function of its outputs, and saves all."""
    kind, config_kind, fields = CASES[name]
    config = getattr(transformers, config_kind)(**fields)
    model = getattr(transformers, kind)._from_config(config, attn_implementation="eager").eval()
    randomize(model, seed=len(name))
    shutil.rmtree(DIRECTORY / name, ignore_errors=True)
    model.save_pretrained(DIRECTORY / name)
    (DIRECTORY / name / "generation_config.json").unlink(missing_ok=True)
    trunk, given = model.base_model, inputs(config)
    out = trunk(**given, output_hidden_states=True)
    outputs = {"tokens": out.last_hidden_state}
    if getattr(out, "pooler_output", None) is not None:
        outputs["pooled"] = out.pooler_output
    generator = torch.Generator().manual_seed(7)
    cotangents = {k: torch.randn(v.shape, generator=generator) / 10 for k, v in outputs.items()}
    for value in cotangents.values():
        # The row of only padding: where all keys are masked, gradients pass through transformers'
        # scores, which are no more than a number added to them.
        value[given["attention_mask"].sum(1) == 0] = 0
    sum((outputs[key] * cotangents[key]).sum() for key in outputs).backward()
    gradients = {k: v.grad for k, v in trunk.named_parameters() if v.grad is not None}
    outputs["hidden"] = torch.stack(out.hidden_states[1:])
    groups = {
        "inputs": given,
        "outputs": outputs,
        "cotangents": cotangents,
        "gradients": {key: value.clone() for key, value in gradients.items()},
    }
    if trunk is not model and name.split("_")[0] in _WITH_HEADS:
        groups["heads"] = heads(model, given)
    save(DIRECTORY / name, groups)


def main(names: Sequence[str]) -> None:
    """Writes cases anew, and the counts of parameters."""
    for name in names or CASES:
        write_case(name)
    write_counts(DIRECTORY, PUBLISHED)


if __name__ == "__main__":
    main(sys.argv[1:])
