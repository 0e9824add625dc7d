"""Heads of transformers' encoders of raw speech: wav2vec 2.0's pre-training, and letter models.

Heads of pre-training are the objective 'speech_contrast'; those of a letter model (...ForCTC) are
'ctc', with the characters of its vocab.json, or the phones.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from encoders.checkpoints.formats import files, hf_heads
from encoders.checkpoints.formats.mapping import Rule, linear, vector
from encoders.data.characters import Characters
from encoders.errors import CheckpointError, DataError

VOCABULARY = "vocab.json"


def _contrast_rules(fields: Mapping[str, Any], section: Mapping[str, Any]) -> list[Rule]:
    sizes = section["quantizer"]
    groups, entries, width = sizes["groups"], sizes["entries"], sizes["width"]
    book, dim = (groups, entries, width // groups), section["projection_dim"]
    return [
        vector("quantizer.codevectors", "quantizer/codebook", (1, groups * entries, book[2]), book),
        *linear("quantizer.weight_proj", "quantizer/logits", fields["conv_dim"], groups * entries),
        *linear("project_hid", "project_hidden", fields["width"], dim),
        *linear("project_q", "project_target", width, dim),
    ]


# Field of the objective -> theirs.
_CONTRAST = {
    "projection_dim": "proj_codevector_dim",
    "num_negatives": "num_negatives",
    "logit_temperature": "contrastive_logits_temperature",
    "diversity_weight": "diversity_loss_weight",
    "feature_dropout": "feat_quantizer_dropout",
}
_QUANTIZER = {
    "groups": "num_codevector_groups",
    "entries": "num_codevectors_per_group",
    "width": "codevector_dim",
}


def _contrast_section(tensors: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    quantizer = {ours: config[theirs] for ours, theirs in _QUANTIZER.items()}
    return {"quantizer": quantizer, **{ours: config[theirs] for ours, theirs in _CONTRAST.items()}}


def _contrast_settings(section: Mapping[str, Any]) -> dict[str, Any]:
    found = {theirs: section[ours] for ours, theirs in _CONTRAST.items()}
    return found | {theirs: section["quantizer"][ours] for ours, theirs in _QUANTIZER.items()}


def _ctc(architecture: str) -> hf_heads.Heads:
    return hf_heads.Heads(
        architecture,
        ("lm_head.weight",),
        "ctc",
        lambda fields, section: linear("lm_head", "head", fields["width"], section["vocab_size"]),
        lambda tensors, config: {
            "dropout": config["final_dropout"],
            "vocab_size": len(tensors["lm_head.weight"]),
        },
        settings=lambda section: {
            "vocab_size": section["vocab_size"],
            "final_dropout": section["dropout"],
        },
    )


# model_type -> the classes with heads that are read and written.
HEADS = {
    "wav2vec2": (
        hf_heads.Heads(
            "Wav2Vec2ForPreTraining",
            ("quantizer.codevectors", "project_q.weight"),
            "speech_contrast",
            _contrast_rules,
            _contrast_section,
            settings=_contrast_settings,
        ),
        _ctc("Wav2Vec2ForCTC"),
    ),
    "hubert": (_ctc("HubertForCTC"),),
    "data2vec-audio": (_ctc("Data2VecAudioForCTC"),),
}


# --- letters --------------------------------------------------------------------------------------


def characters(
    path: pathlib.Path, config: Mapping[str, Any], size: int
) -> tuple[str | None, str | None]:
    """Content of a vocab.json with all tokens of a letter model, or (None, why there is none)."""
    if not (path / VOCABULARY).is_file():
        return None, f"that no {VOCABULARY} spells"
    tokens = dict(files.read_json(path / VOCABULARY))
    if (path / "added_tokens.json").is_file():
        tokens |= files.read_json(path / "added_tokens.json")
    numbers = [number for number in tokens.values() if type(number) is int]
    if len(numbers) != len(tokens) or sorted(numbers) != list(range(size)):
        return None, f"of which {VOCABULARY} spells {len(numbers)}, where there are {size}"
    blank = [token for token in ("<pad>", "[PAD]") if token in tokens]
    number = config.get("pad_token_id", 0)
    if not blank or tokens[blank[0]] != number:
        return None, f"without <pad> as the blank, number {number}"
    found = json.dumps(dict(sorted(tokens.items(), key=lambda item: item[1])))
    try:
        Characters.load(found)
    except DataError:  # numbers and blank are right
        return None, "of more than one character each"
    return found, None


def write_letters(
    directory: pathlib.Path, preprocessing: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Writes the tokens of a letter model, and returns what its config says of them."""
    if preprocessing is None or preprocessing["characters"] is None:
        raise CheckpointError(
            "format 'hf': a letter model needs its characters, and there is no preprocessing that "
            "has them."
        )
    tokens = json.loads(preprocessing["characters"])
    files.write_json(directory / VOCABULARY, tokens)
    special = {
        "pad_token": ("<pad>", "[PAD]"),
        "unk_token": ("<unk>", "[UNK]"),
        "bos_token": ("<s>",),
        "eos_token": ("</s>",),
        "word_delimiter_token": ("|", " "),
    }
    names = {
        name: next((token for token in known if token in tokens), None)
        for name, known in special.items()
    }
    kind = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "processor_class": "Wav2Vec2Processor"}
    if Characters.load(preprocessing["characters"]).phones:
        kind["tokenizer_class"] = "Wav2Vec2PhonemeCTCTokenizer"
        kind |= {"do_phonemize": False, "phone_delimiter_token": " "}
    files.write_json(directory / "tokenizer_config.json", {**kind, **names})
    ids = {f"{name}_id": tokens.get(names[name]) for name in ("bos_token", "eos_token")}
    return {"pad_token_id": tokens[names["pad_token"]], **ids}
