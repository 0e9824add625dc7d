"""Images that need no disk: for tests, dry runs and input-free benchmarks."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from encoders.data.sources.base import Source
from encoders.errors import ConfigError


@dataclasses.dataclass(kw_only=True, eq=False)
class Synthetic(Source):
    """Noisy gratings whose angle is their class: learnable, deterministic, any shape.

    Attributes:
      image_size: (height, width) in pixels.
      channels: channels of the images.
      num_classes: number of angles.
      num_examples: length of an epoch.
      seed: picks the images; two splits take two seeds.
    """

    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    num_classes: int = 10
    num_examples: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if min(*self.image_size, self.channels, self.num_classes, self.num_examples) < 1:
            raise ConfigError(f"data source: every size must be at least 1 in {self!r}.")
        super().__post_init__()

    def _count(self) -> int:
        return self.num_examples

    def _read(self, index: int) -> dict[str, Any]:
        rng = np.random.Generator(np.random.Philox(key=[self.seed, index]))
        label = index % self.num_classes
        height, width = self.image_size
        angle = np.pi * label / self.num_classes
        y, x = np.ogrid[:height, :width]
        phase = 2 * np.pi * rng.random()
        along = (x * np.cos(angle) + y * np.sin(angle)) * (8 * np.pi / max(height, width))
        grating = 128 + 64 * np.sin(along + phase)[:, :, None]
        noise = rng.integers(-48, 48, (height, width, self.channels))
        return {"image": np.clip(grating + noise, 0, 255).astype(np.uint8), "label": label}
