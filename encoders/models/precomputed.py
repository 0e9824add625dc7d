"""An image tower that was run before: its vectors are the images (LiT, arXiv 2111.07991).

A locked tower gives the same vector for an image at every epoch, so it need not be in training at
all: no pixels, no FLOPs and no memory. `tools.embed` writes the vectors, the source 'embedded'
reads them, and preprocessing.image.vector_size says how long they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError
from encoders.layers.convolution import ConvSize
from encoders.types import Encoded


class Precomputed(nn.Module):
    """Returns what it is given.

    Attributes:
      width: D, size of the vectors.
    """

    width: int

    modality = "image"
    pool = "mean"

    @property
    def size(self) -> ConvSize:
        """Width of the vectors; there are no layers."""
        return ConvSize(self.width, 0)

    def __call__(
        self, vectors: jax.Array, *, train: bool = False, layers: Sequence[int] = ()
    ) -> Encoded:
        """[B, D] float -> Encoded, with one token and `pooled` [B, D].

        Raises:
          ConfigError: the vectors are of another size, or a layer is asked for.
        """
        del train
        if vectors.ndim != 2 or vectors.shape[1] != self.width or layers:
            raise ConfigError(
                f"model: 'precomputed' takes vectors [B, {self.width}] and has no layers; got "
                f"{vectors.shape} and layers={layers!r}."
            )
        mask = jnp.ones((vectors.shape[0], 1), bool)
        return Encoded(vectors[:, None], mask, vectors)

    def flops(self, image_size: tuple[int, int]) -> float:
        """None: they were spent before."""
        del image_size
        return 0.0
