"""The tokenizer of a Hugging Face directory: the preprocessing of the encoder beside it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from encoders.checkpoints.formats import files
from encoders.checkpoints.formats.mapping import Imported
from encoders.data.tokenizer import Tokenizer
from encoders.errors import DataError

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
_LENGTH = 512  # of encoders whose positions have no end


def with_tokenizer(
    imported: Imported, directory: pathlib.Path, max_length: int | None = None
) -> Imported:
    """A text encoder with the tokenizer that stands in the directory of its weights.

    Where there is none that it can use, it stays without preprocessing, and its metadata say why:
    the weights are still good for ids.

    Args:
      imported: the encoder.
      directory: of its files.
      max_length: the length to cut texts to, special tokens included; None is what the tokenizer
        says, or what the encoder has positions for, if that is less.
    """
    model = imported.model
    try:
        tokenizer = Tokenizer.load(str(directory))
    except DataError as error:
        return _without(imported, str(error).removeprefix("preprocessing.tokenizer: ").rstrip("."))
    size, rows = tokenizer.vocabulary.size, model["vocab_size"]
    if size > rows:
        return _without(imported, f"its tokenizer has {size} ids, the model only {rows}")
    lengths = [max_length or _length(directory), model.get("max_length")]
    section = {
        "name": "text",
        "tokenizer": tokenizer.to_json(),
        "max_length": min((int(n) for n in lengths if n), default=_LENGTH),
        "token_types": (model.get("num_token_types") or 0) > 1,
    }
    metadata = {**imported.metadata, "no_preprocessing": None}
    return dataclasses.replace(imported, preprocessing=section, metadata=metadata)


def _without(imported: Imported, reason: str) -> Imported:
    return dataclasses.replace(imported, metadata={**imported.metadata, "no_preprocessing": reason})


def _length(directory: pathlib.Path) -> int | None:
    """What tokenizer_config.json says; the huge number that stands for no limit is none."""
    if not (directory / SETTINGS).is_file():
        return None
    length = files.read_json(directory / SETTINGS).get("model_max_length")
    sensible = isinstance(length, int | float) and 3 <= length < 2**31
    return int(length) if sensible else None


def write_tokenizer(directory: pathlib.Path, fields: Mapping[str, Any]) -> None:
    """Writes the tokenizer of `TextPreprocessing`'s fields so that transformers opens it."""
    tokenizer = Tokenizer.load(fields["tokenizer"])
    (directory / FILE).write_text(tokenizer.to_json(), encoding="utf-8")
    ids = dataclasses.asdict(tokenizer.vocabulary)
    special = {
        f"{name}_token": tokenizer.inner.id_to_token(ids[f"{name}_id"])
        for name in ("pad", "unk", "cls", "sep", "mask")
    }
    inputs = ["input_ids", *(["token_type_ids"] if fields["token_types"] else []), "attention_mask"]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields["max_length"],
        "model_input_names": inputs,
        **special,
    }
    files.write_json(directory / SETTINGS, settings)
