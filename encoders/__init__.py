"""Pretraining encoders at scale in JAX: one loop for every family, exactly reproducible.

encoder = encoders.load("runs/x")      # a run, a checkpoint, a Hugging Face or timm directory
out = encoder(images)                  # Encoded: tokens [B, T, D], pooled [B, D], mask [B, T]
pair.similarity(images, texts)         # of two towers: logits [N, M]; embed_image, embed_text
encoders.save(encoder, "dir", format="hf")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from encoders.encoder import Encoder
    from encoders.loading import load, save
    from encoders.types import Encoded

__all__ = ["Encoded", "Encoder", "load", "save"]

# Looked up on first use: importing the package, or one of its parts, loads nothing else.
_HOMES = {"Encoded": "types", "Encoder": "encoder", "load": "loading", "save": "loading"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'encoders' has no attribute '{name}'")
    return getattr(importlib.import_module(f"encoders.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
