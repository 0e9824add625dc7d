"""Images as records: each checked to decode, and none larger than asked for."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import simplejpeg

from encoders.data import images, records
from encoders.data.sources import CorruptExample
from tools.preparing.shards import Recipe


@dataclasses.dataclass
class ImageRecipe(Recipe):
    """Images as they are, or shrunk and encoded again.

    Attributes:
      image_size: longer side of shrunk images, or None.
      quality: of their JPEGs.
    """

    image_size: int | None = None
    quality: int = 95

    def make(self, index: int) -> tuple[list[bytes], None]:
        """The one record of an image."""
        return [records.pack(self._checked(self.source[index]))], None

    def _checked(self, example: dict[str, Any]) -> dict[str, Any]:
        """The example with its image as a file that is known to decode."""
        if "image" not in example:
            raise CorruptExample(f"no field 'image', only {sorted(example)}")
        image = example["image"]
        if not isinstance(image, bytes):
            return {**example, "image": _png(image)}
        height, width = images.size_of(image)
        shrink = max(height, width) / (self.image_size or max(height, width))
        if shrink <= 1:
            images.decode(image, 3)
            return example
        reduction = next((r for r in images.REDUCTIONS if shrink >= 2 * r), 1)
        size = (max(1, round(height / shrink)), max(1, round(width / shrink)))
        pixels = images.decode(image, 3, reduction)
        box = None
        if pixels.shape[:2] != (height, width):
            box = (0, 0, height / reduction, width / reduction)
        pixels = images.resize(pixels, size, "bicubic", box)
        encoded = simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels), quality=self.quality, colorsubsampling="420"
        )
        return {**example, "image": encoded}


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    images.to_pillow(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
