"""What scripts that run transformers' networks write: arrays of cases, counts of parameters."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping

import numpy as np
import torch
import transformers


def save(directory: pathlib.Path, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Writes expected.npz, {'group/key': array}, and says how large the case is."""
    arrays = {
        f"{group}/{key}": value.detach().numpy()
        for group, values in groups.items()
        for key, value in values.items()
    }
    np.savez_compressed(directory / "expected.npz", **arrays)
    print(directory.name, sum(file.stat().st_size for file in directory.iterdir()), "bytes")


def write_counts(
    directory: pathlib.Path, published: Mapping[str, tuple[str, str, Mapping[str, Mapping]]]
) -> None:
    """Writes parameters.json: our model -> variant -> parameters of transformers' encoder.

    Args:
      directory: where.
      published: our model -> (their class, its config's, variant -> fields of the config).
    """
    counts: dict[str, dict[str, int]] = {}
    for name, (kind, config_kind, variants) in published.items():
        counts[name] = {}
        for variant, fields in variants.items():
            with torch.device("meta"):
                model = getattr(transformers, kind)(getattr(transformers, config_kind)(**fields))
            counts[name][variant] = sum(value.numel() for value in model.parameters())
    text = json.dumps(counts, indent=2) + "\n"
    (directory / "parameters.json").write_text(text, encoding="utf-8")
