"""What a pair of encoders expects of images and of their texts; it travels with the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from encoders.data.preprocessing import Preprocessing
from encoders.data.text import TextPreprocessing
from encoders.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class ArrayPreprocessing:
    """Form of what is neither an image nor a text: a spectrogram, or a map of depths.

    Attributes:
      shape: (height, width, channels).
      mean, std: what is subtracted, and then divided by.
    """

    shape: tuple[int, int, int]
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1 or self.std <= 0:
            raise ConfigError(
                f"preprocessing: expected a shape of three numbers from 1 and a positive std, got "
                f"{self.shape} and {self.std}."
            )

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {"shape": list(self.shape), "mean": self.mean, "std": self.std}


@dataclasses.dataclass(frozen=True)
class ImageTextPreprocessing:
    """How images and texts are prepared, each as for an encoder of its own.

    Attributes:
      text: tokenizer, length and form of texts.
      image: size and normalisation of images.
      audio, depth: form of what else an example may have; None where it has none. An example may
        then lack everything but its image, see the transform 'arrays'.
    """

    modality = "image_text"  # of the encoders that it is for

    text: TextPreprocessing
    image: Preprocessing = dataclasses.field(default_factory=Preprocessing)
    audio: ArrayPreprocessing | None = None
    depth: ArrayPreprocessing | None = None

    @property
    def arrays(self) -> dict[str, ArrayPreprocessing]:
        """Those of 'audio' and 'depth' that there are."""
        both = {"audio": self.audio, "depth": self.depth}
        return {name: form for name, form in both.items() if form is not None}

    def eval_transforms(self) -> list[Callable]:
        """{'image', 'text'} -> uint8 [height, width, channels], and what texts become."""
        return [*self.image.eval_transforms(), *self.text.eval_transforms()]

    @property
    def input_size(self) -> tuple[tuple[int, int], int]:
        """(height, width) and the length of texts, what FLOPs are counted for."""
        return self.image.input_size, self.text.input_size

    @property
    def for_objectives(self) -> dict[str, Any]:
        """What objectives may ask for by a parameter of that name."""
        more = {"arrays": self.arrays} if self.arrays else {}
        return {**self.image.for_objectives, **self.text.for_objectives, **more}

    @property
    def for_transforms(self) -> dict[str, Any]:
        """What transforms may ask for by a parameter of that name."""
        more = {"arrays": self.arrays} if self.arrays else {}
        return {**self.image.for_transforms, **self.text.for_transforms, **more}

    @property
    def for_sources(self) -> dict[str, Any]:
        """What sources may ask for by a parameter of that name."""
        return {**self.image.for_sources, **self.text.for_sources}

    def example_batch(self, rows: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the shapes and types that training will see."""
        batch = {**self.image.example_batch(rows), **self.text.example_batch(rows)}
        del batch["label"]
        for name, form in self.arrays.items():
            batch[name] = np.zeros((rows, *form.shape), np.float32)
        for name in ("text", *self.arrays) if self.arrays else ():
            batch[f"has_{name}"] = np.ones(rows, bool)
        return batch

    def encoder_inputs(self, batch: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """The arguments (positional, by name) that an encoder is called with for a batch."""
        return (batch["image"], batch["ids"]), {"segments": batch["segments"]}

    def normalize(self, images: Any) -> Any:
        """As `Preprocessing.normalize`; ids are taken as they are."""
        return self.image.normalize(images)

    def denormalize(self, images: Any) -> Any:
        """As `Preprocessing.denormalize`."""
        return self.image.denormalize(images)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, the tokenizer with its content."""
        parts = {"image": self.image.to_json(), "text": self.text.to_json()}
        for part in parts.values():
            del part["name"]
        arrays = {name: form.to_json() for name, form in self.arrays.items()}
        return {"name": "image_text", **parts, **arrays}
