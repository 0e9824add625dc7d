"""The tokenizer of a Hugging Face directory: the preprocessing of the encoder beside it."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import string
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import normalizers

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
    section, reason = read_text_preprocessing(
        directory, imported.model["vocab_size"], imported.model.get("max_length"), max_length
    )
    if section is not None:
        section["token_types"] = (imported.model.get("num_token_types") or 0) > 1
    metadata = {**imported.metadata, "no_preprocessing": reason}
    return dataclasses.replace(imported, preprocessing=section, metadata=metadata)


def read_text_preprocessing(
    directory: pathlib.Path, rows: int, positions: int | None, max_length: int | None = None
) -> tuple[dict[str, Any] | None, str | None]:
    """The tokenizer in a directory as a config section of `TextPreprocessing`, without token types.

    Args:
      directory: of its files.
      rows: of the model's table of words.
      positions: how long a text the model takes; None for any.
      max_length: as of `with_tokenizer`.

    Returns:
      (section, None), or (None, why there is none).
    """
    try:
        tokenizer = Tokenizer.load(str(directory))
    except DataError as error:
        return None, str(error).removeprefix("preprocessing.tokenizer: ").rstrip(".")
    vocabulary = tokenizer.vocabulary
    if vocabulary.size > rows:
        return None, f"its tokenizer has {vocabulary.size} ids, the model only {rows}"
    settings = _settings(directory)
    lengths = [max_length or _length(settings), positions]
    section = {
        "name": "text",
        "tokenizer": tokenizer.to_json(),
        "max_length": min((int(n) for n in lengths if n), default=_LENGTH),
        "token_types": False,
    }
    # Not every family pads with the token that is called so.
    padding = settings.get("pad_token")
    padding = padding.get("content") if isinstance(padding, Mapping) else padding
    pad_id = tokenizer.inner.token_to_id(padding) if isinstance(padding, str) else None
    if pad_id in vocabulary.special_ids and pad_id != vocabulary.pad_id:
        section["vocabulary"] = dataclasses.asdict(dataclasses.replace(vocabulary, pad_id=pad_id))
    return section, None


def _settings(directory: pathlib.Path) -> dict[str, Any]:
    path = directory / SETTINGS
    return files.read_json(path) if path.is_file() else {}


def _length(settings: Mapping[str, Any]) -> int | None:
    """What tokenizer_config.json says; the huge number that stands for no limit is none."""
    length = settings.get("model_max_length")
    sensible = isinstance(length, int | float) and 3 <= length < 2**31
    return int(length) if sensible else None


def write_tokenizer(directory: pathlib.Path, fields: Mapping[str, Any]) -> None:
    """Writes the tokenizer of `TextPreprocessing`'s fields so that transformers opens it.

    What they do to a text before becomes rules of the tokenizer.
    """
    tokenizer = Tokenizer.load(fields["tokenizer"])
    inner = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    before = []
    if fields.get("lowercase"):
        before.append(normalizers.Lowercase())
    if fields.get("strip_punctuation"):
        marks = tokenizers.Regex(f"[{re.escape(string.punctuation)}]")
        spaces = tokenizers.Regex(r"\s+")
        before += [normalizers.Replace(marks, ""), normalizers.Replace(spaces, " ")]
        before.append(normalizers.Strip())
    if before:
        before += [inner.normalizer] if inner.normalizer is not None else []
        inner.normalizer = normalizers.Sequence(before)
    (directory / FILE).write_text(inner.to_str(), encoding="utf-8")
    ids = fields.get("vocabulary") or dataclasses.asdict(tokenizer.vocabulary)
    special = {
        f"{name}_token": tokenizer.inner.id_to_token(ids[f"{name}_id"])
        for name in ("pad", "unk", "cls", "sep", "mask")
    }
    inputs = ["input_ids", *(["token_type_ids"] if fields["token_types"] else [])]
    inputs += [] if fields.get("attend_padding") else ["attention_mask"]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields["max_length"],
        "model_input_names": inputs,
        **special,
    }
    if "lowercase" in fields:
        settings["do_lower_case"] = False  # by us, that is
    files.write_json(directory / SETTINGS, settings)
