"""What examples have beside an image, and what stands where they have none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from encoders.data.sources.base import CorruptExample

Example = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrays:
    """Normalises an example's spectrogram and depths; goes before 'tokenize'.

    Adds 'has_text', 'has_audio' and 'has_depth', False where there is none, and then an empty text
    or zeros: a batch has one form, whatever its examples have.

    Attributes:
      arrays: their forms, of `ImageTextPreprocessing` (supplied).
    """

    arrays: Mapping[str, Any]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Raises a CorruptExample where an array has another shape, or is not finite."""
        del rng
        text = example.get("text")
        found = {**example, "has_text": bool(text), "text": text or ""}
        for name, form in self.arrays.items():
            given = example.get(name)
            found[f"has_{name}"] = given is not None
            if given is None:
                found[name] = np.zeros(form.shape, np.float32)
                continue
            array = np.asarray(given, np.float32)
            if array.ndim == 2:
                array = array[..., None]
            if array.shape != tuple(form.shape) or not np.isfinite(array).all():
                raise CorruptExample(
                    f"'{name}' is {array.shape}, expected finite numbers of {form.shape}"
                )
            found[name] = (array - form.mean) / form.std
        return found
