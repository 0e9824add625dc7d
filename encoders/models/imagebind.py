"""ImageBind (arXiv 2305.05665): several kinds of input in the space of images.

What differs from `Towers`: there may be towers of spectrograms and of depths, each paired with
images only; what they have in common follows. The scale of their cosines is fixed (by the authors'
code, from memory), that of texts is learnt.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError, nearest
from encoders.models.towers import TOWERS, Projection, Towers


class ImageBind(Towers):
    """Towers of images, texts, sounds and depths.

    Attributes:
      audio: an encoder of spectrograms [B, mels, frames, 1] that pools, or None.
      depth: an encoder of maps of depths [B, H, W, 1] that pools, or None.
      audio_projection, depth_projection: as of the other towers.
      audio_scale, depth_scale: what cosines with images are multiplied by.
    """

    audio: nn.Module | None = None
    depth: nn.Module | None = None
    audio_projection: Projection = "linear"
    depth_projection: Projection = "linear"
    audio_scale: float = 20.0
    depth_scale: float = 5.0

    @property
    def names(self) -> tuple[str, ...]:
        """What there are towers of."""
        more = [name for name in ("audio", "depth") if getattr(self, name) is not None]
        return (*TOWERS, *more)

    def __call__(
        self,
        images: jax.Array,
        ids: jax.Array,
        *,
        segments: jax.Array | None = None,
        train: bool = False,
        **arrays: jax.Array,
    ) -> tuple[jax.Array, ...]:
        """The embeddings of images, of texts, and of `audio` and `depth`, each [B, E]."""
        pair = super().__call__(images, ids, segments=segments, train=train)
        return (*pair, *(self.embed(name, x, train=train) for name, x in arrays.items()))

    def embed(self, name: str, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """Vectors of length 1 [B, E] of 'audio' or 'depth', [B, H, W, 1].

        Raises:
          ConfigError: there is no such tower.
        """
        if name not in self.names:
            hint = nearest(name, self.names)
            raise ConfigError(f"model: there is no tower '{name}'.{hint}")
        return self.encode(name, inputs, train=train)[1]

    def scale_of(self, name: str) -> tuple[jax.Array, jax.Array]:
        """What the cosines of images with something are multiplied by, and then added to them."""
        if name == "text":
            return self.scale_and_bias()
        return jnp.float32(getattr(self, f"{name}_scale")), jnp.float32(0.0)

    def flops_of(self, name: str, shape: tuple[int, ...]) -> float:
        """Forward FLOPs of one spectrogram or map of that shape, a locked tower's as a third."""
        tower = getattr(self, name).flops(shape[:2]) / (3 if name in self.locked else 1)
        return tower + self._projection_flops(name)
