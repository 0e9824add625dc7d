"""The ResNets among open_clip's image towers, which are OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from encoders.checkpoints.formats.mapping import (
    Exported,
    Rule,
    batch_norm,
    convolution,
    linear,
    pair,
    prefixed,
)
from encoders.checkpoints.formats.timm_convolutions import residual_rules
from encoders.errors import CheckpointError

_GROWTH = 4
_SHRINK = 32  # pixels of an image, by side, for one of the map that is pooled


def section(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The model section of a vision_cfg whose 'layers' are a list.

    Raises:
      CheckpointError: the image is no square of whole pixels of the map.
    """
    height, width = pair(config["image_size"])
    if height != width or height % _SHRINK:
        raise CheckpointError(
            f"{where}: vision_cfg.image_size={config['image_size']} is not supported: of a ResNet "
            f"it is a square whose side is a multiple of {_SHRINK}."
        )
    return {
        "name": "clip_resnet",
        "blocks": tuple(config["layers"]),
        "width": config["width"],
        "head_dim": config["head_width"],
        "position_grid": (height // _SHRINK,) * 2,
    }


def config_of(exported: Exported) -> dict[str, Any]:
    """The inverse of `section`."""
    fields = exported.fields["image"]
    return {
        "layers": list(fields["blocks"]),
        "width": fields["width"],
        "head_width": fields["head_dim"],
        "image_size": fields["position_grid"][0] * _SHRINK,
    }


def rules(fields: Mapping[str, Any], dim: int) -> list[Rule]:
    """Their tower, with its last projection, to `dim` numbers."""
    width = fields["width"]
    found, half = [], width // 2
    for number, (a, b) in enumerate(((3, half), (half, half), (half, width)), start=1):
        found += convolution(f"conv{number}", f"stem{number}", 3, a, b)
        found += batch_norm(f"bn{number}", f"stem{number}_norm", b)
    found += residual_rules(width, fields["blocks"], _GROWTH)
    d_in = width * _GROWTH * 2 ** (len(fields["blocks"]) - 1)
    found += prefixed(_pool(fields["position_grid"], d_in), "attnpool.", "pool_attention/")
    projection = linear("visual.attnpool.c_proj", "image_projection", d_in, dim)
    return [*prefixed(found, "visual.", "image/"), *projection]


def _pool(grid: tuple[int, int], width: int) -> list[Rule]:
    table = Rule(
        (("positional_embedding", (1 + grid[0] * grid[1], width)),),
        ("mean_position", "positions"),
        lambda x: (x[0], x[1:].reshape(*grid, width)),
        lambda mean, rest: (np.concatenate([mean[None], rest.reshape(-1, width)]),),
    )
    return [
        table,
        *(
            rule
            for name in ("query", "key", "value")
            for rule in linear(f"{name[0]}_proj", name, width, width)
        ),
    ]
