"""What formats of two towers, one for images and one for texts, have in common."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

from encoders.checkpoints.formats.hf_processor import read_preprocessing, write_preprocessing
from encoders.checkpoints.formats.hf_tokenizer import read_text_preprocessing, write_tokenizer
from encoders.checkpoints.formats.mapping import Exported
from encoders.errors import CheckpointError
from encoders.layers.mlp import GATED

MAX_LOGIT_SCALE = math.log(100)  # CLIP, section 2.5

# Options of ours that none of the formats has.
_PLAIN_IMAGE = {
    "name": "vit",
    "positions": "learned",
    "num_registers": 0,
    "qk_norm": False,
    "parallel": False,
    **dict.fromkeys(("qkv_bias", "mlp_bias", "norm_bias"), True),
}
_PLAIN_TEXT = {
    "name": "clip_text",
    "positions": "learned",
    "pre_norm": True,
    "shared": False,
    "num_token_types": 0,
    "pad_id": None,
    **dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias", "norm_bias"), True),
}


def check_fields(
    fields: Mapping[str, Any], only: Mapping[str, Any], format: str, vit: bool = True
) -> None:
    """Whether a model of two towers can be expressed.

    Args:
      fields: of `Towers`, with those of the towers under 'image' and 'text'.
      only: 'image.pool' and the like -> the one value that the format has, or several in a list.
      format: named in errors.
      vit: whether the image tower is one.

    Raises:
      CheckpointError: a field has another value.
    """
    plain = {f"image.{field}": value for field, value in _PLAIN_IMAGE.items() if vit}
    plain |= {f"text.{field}": value for field, value in _PLAIN_TEXT.items()}
    for path, value in {**plain, **only}.items():
        node: Any = fields
        for key in path.split("."):
            node = node[key]
        allowed = value if isinstance(value, list) else [value]
        if node not in allowed:
            there = " or ".join(map(repr, allowed))
            raise CheckpointError(
                f"{format}: model.{path}={node!r} cannot be expressed: there it is {there}."
            )
    for tower in ("image", "text"):
        if fields[tower].get("mlp") in GATED:
            raise CheckpointError(
                f"{format}: model.{tower}.mlp={fields[tower]['mlp']!r} cannot be expressed: no MLP "
                "is gated there."
            )
    width, embedding = fields["text"]["width"], fields["text"].get("embedding_dim")
    if embedding not in (None, width):
        raise CheckpointError(
            f"{format}: model.text.embedding_dim={embedding} cannot be expressed: there it is the "
            f"width, {width}."
        )


def own_fields(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """What a format has no word for: fields of `Towers`, and how its image tower resizes."""
    names_of_image = [name for name in ("position_resize",) if name in fields["image"]]
    resize = {name: fields["image"][name] for name in names_of_image}
    return {**resize, **{name: fields[name] for name in names}}


def with_own_fields(model: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A model section with what `own_fields` wrote into a config."""
    given = dict(config.get("encoders") or {})
    image = {name: given.pop(name) for name in ("position_resize",) if name in given}
    return {**model, **given, "image": {**model["image"], **image}}


def read_pair_preprocessing(
    directory: pathlib.Path, channels: int, text: Mapping[str, Any], **fields: Any
) -> tuple[dict[str, Any] | None, str | None]:
    """Processor and tokenizer of a directory as a config section of `ImageTextPreprocessing`.

    Args:
      directory: of the files.
      channels: of the images.
      text: fields of the text tower.
      **fields: of `TextPreprocessing`, besides those that the tokenizer gives.

    Returns:
      (section, None), or (None, why there is none).
    """
    image, reason = read_preprocessing(directory, channels)
    if image is None:
        return None, reason
    tokens, reason = read_text_preprocessing(directory, text["vocab_size"], text["max_length"])
    if tokens is None:
        return None, reason
    del image["name"], tokens["name"]
    return {"name": "image_text", "image": image, "text": {**tokens, **fields}}, None


def write_pair_preprocessing(directory: pathlib.Path, exported: Exported) -> None:
    """Writes processor and tokenizer, if the encoder has them.

    Raises:
      CheckpointError: the processor cannot be expressed.
    """
    if exported.preprocessing is not None:
        write_preprocessing(directory, exported.preprocessing["image"])
        write_tokenizer(directory, exported.preprocessing["text"])
