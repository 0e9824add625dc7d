"""What a model expects of its input; it travels with the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from encoders.data.images import Interpolation
from encoders.data.transforms.geometry import CenterCrop, Decode, Resize
from encoders.data.transforms.patches import ToPatches
from encoders.errors import ConfigError, DataError

NORMALIZED = frozenset({"image", "waveform"})  # fields of batches that `normalize` is for


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Size, channels and normalisation of images.

    Attributes:
      image_size: (height, width) in pixels.
      channels: 1 (grey), 3 (RGB) or 4 (RGBA).
      mean: per channel, subtracted after scaling pixels to [0, 1].
      std: per channel, divided by; None for mean or std is ImageNet's for 3 channels and 0.5
        otherwise.
      interpolation: filter of the evaluation resize.
      crop_fraction: part of the resized image that the central crop keeps, per side.
      keep_aspect: False distorts images to the resized shape (transformers' ViT processor, timm's
        'squash') rather than covering it.
      max_patches, patch_size: of images at their own aspect ratio, which become patches, see
        `ToPatches`, rather than images of `image_size`; None for none.
      vector_size: of images that are vectors, which another encoder has made of them; None for
        images that are images.
    """

    modality = "image"  # of the encoders that it is for

    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: Interpolation = "bicubic"
    crop_fraction: float = 0.875
    keep_aspect: bool = True
    max_patches: int | None = None
    patch_size: int | None = None
    vector_size: int | None = None

    def __post_init__(self) -> None:
        if (self.max_patches is None) != (self.patch_size is None):
            raise ConfigError(
                "preprocessing: max_patches and patch_size are of images at their own aspect "
                "ratio; set both or none."
            )
        if min(self.image_size) < 1 or self.channels not in (1, 3, 4):
            raise ConfigError(
                f"preprocessing: expected image_size from (1, 1) and 1, 3 or 4 channels, got "
                f"{self.image_size} and {self.channels}."
            )
        if not 0 < self.crop_fraction <= 1:
            raise ConfigError(
                f"preprocessing.crop_fraction: expected a number in (0, 1], got "
                f"{self.crop_fraction}."
            )
        for field, of_imagenet in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            value = getattr(self, field)
            if value is None:
                value = of_imagenet if self.channels == 3 else (0.5,) * self.channels
                object.__setattr__(self, field, value)
            if len(value) != self.channels:
                raise ConfigError(
                    f"preprocessing.{field}: expected {self.channels} numbers, one per channel, "
                    f"got {value}."
                )
        if min(self.std) <= 0:
            raise ConfigError(f"preprocessing.std: expected positive numbers, got {self.std}.")

    def eval_transforms(self) -> list[Callable]:
        """Decode, resize, central crop: file or array -> uint8 [height, width, channels].

        Or patches, see `ToPatches`. With vectors there is nothing to do.
        """
        if self.vector_size is not None:
            return []
        if self.max_patches is not None:
            cut = ToPatches(self.patch_size, self.max_patches, self.interpolation)
            return [Decode(channels=self.channels), cut]
        resized = tuple(int(side / self.crop_fraction) for side in self.image_size)
        return [
            Decode(channels=self.channels),
            Resize(
                image_size=resized,
                interpolation=self.interpolation,
                keep_aspect=self.keep_aspect,
            ),
            CenterCrop(image_size=self.image_size),
        ]

    def picture_transforms(self) -> list[Callable]:
        """What an image goes through to be looked at: it stays one where encoders get patches."""
        if self.max_patches is None and self.vector_size is None:
            return self.eval_transforms()
        return [Decode(self.channels)]

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width), what FLOPs are counted for."""
        if self.max_patches is not None:  # whatever its shape, as many patches
            return self.patch_size, self.patch_size * self.max_patches
        return self.image_size

    @property
    def for_objectives(self) -> dict[str, Any]:
        """What objectives may ask for by a parameter of that name."""
        return {}

    @property
    def for_transforms(self) -> dict[str, Any]:
        """What transforms may ask for by a parameter of that name: a config says it once."""
        names = ["image_size", "channels", "mean", "std"]
        names += [] if self.max_patches is None else ["max_patches", "patch_size"]
        return {name: getattr(self, name) for name in names}

    @property
    def for_sources(self) -> dict[str, Any]:
        """What sources may ask for by a parameter of that name."""
        return {}

    def example_batch(self, rows: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the shapes and types that training will see."""
        images = {"image": np.zeros((rows, *self.image_size, self.channels), np.uint8)}
        if self.max_patches is not None:
            pixels = self.patch_size**2 * self.channels
            images = {
                "image": np.zeros((rows, self.max_patches, pixels), np.uint8),
                "shapes": np.ones((rows, 2), np.int32),
            }
        if self.vector_size is not None:
            images = {"image": np.zeros((rows, self.vector_size), np.float32)}
        return {
            **images,
            "label": np.zeros(rows, np.int32),
            "row": np.arange(rows, dtype=np.int32),
        }

    def encoder_inputs(self, batch: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """The arguments (positional, by name) that an encoder is called with for a batch."""
        return (batch["image"],), {name: batch[name] for name in ("shapes",) if name in batch}

    def normalize(self, images: Any) -> Any:
        """uint8 [..., H, W, C] -> float32 (x / 255 - mean) / std, numpy or jax; floats pass.

        So are patches [..., N, ph*pw*C], whose channels come last.
        """
        if not np.issubdtype(images.dtype, np.integer):
            return images
        scale, shift = (np.tile(x, images.shape[-1] // self.channels) for x in self._affine())
        return images.astype(np.float32) * scale + shift

    def denormalize(self, images: Any) -> Any:
        """Inverse of `normalize`, as floats in [0, 1] for pictures (not clipped)."""
        return images * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32)

    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        std, mean = np.asarray(self.std), np.asarray(self.mean)
        return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, with the name of the class in encoders.data.PREPROCESSING."""
        fields = dataclasses.asdict(self)
        return {
            "name": "image",
            **{k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()},
        }


def labels_of(batch: Mapping[str, Any]) -> Any:
    """batch['label'] int32 [B], of whatever inputs.

    Raises:
      DataError: there are none.
    """
    if "label" not in batch:
        raise DataError("classification needs labels; the examples of this source have none.")
    return batch["label"]
