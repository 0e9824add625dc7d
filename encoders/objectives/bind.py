"""Contrast of images with whatever else examples have (ImageBind, arXiv 2305.05665, section 3.2).

What differs from `image_text`: the encoder is `ImageBind`, and an example may lack anything but its
image, as batch['has_text'], ['has_audio'], ['has_depth'] [B] bool say. Each kind is contrasted with
the images that it belongs to; the loss is the sum over all such pairs, which all weigh the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from encoders.errors import ConfigError
from encoders.models.imagebind import ImageBind
from encoders.objectives.base import Batch, valid_weights
from encoders.objectives.image_text import ImageTextObjective
from encoders.parallel.contrast import contrast, fingerprints
from encoders.parallel.sharding import current_mesh
from encoders.types import Outcome


class BindContrast(ImageTextObjective):
    """Softmax contrast of images with texts, with spectrograms, and with depths.

    Metrics, per kind: 'image_to_audio' and 'audio_to_image', shares of those that have one, and
    'loss_audio', its part of the loss.

    Attributes:
      arrays: forms of spectrograms and depths (supplied by the preprocessing).
    """

    arrays: Mapping[str, Any] | None = None

    def embed(self, batch: Batch, *, train: bool = False) -> dict[str, jax.Array]:
        """Embeddings [B, E] of a (micro-)batch, by kind.

        Raises:
          ConfigError: the encoder is no ImageBind, or the batch lacks what it has a tower of.
        """
        if not isinstance(self.encoder, ImageBind):
            raise ConfigError(
                f"objective: 'bind' needs an encoder of several kinds, and model is "
                f"{type(self.encoder).__name__}; name 'imagebind'."
            )
        (_, image), (_, text) = self.encode(batch, train=train)
        found = {"image": image, "text": text}
        for name in self.encoder.names[2:]:
            if name not in batch:
                raise ConfigError(
                    f"objective: model.{name} needs '{name}' in the batch; set "
                    f"preprocessing.{name} and the transform 'arrays'."
                )
            found[name] = self.encoder.embed(name, batch[name], train=train)
        return found

    def compare(self, embedded: Mapping[str, jax.Array], batch: Batch) -> Outcome:
        """The loss of a whole batch from its embeddings."""
        image, valid = embedded["image"], valid_weights(batch)
        loss = weight = jnp.float32(0)
        metrics: dict[str, tuple[jax.Array, jax.Array]] = {}
        for name in self.encoder.names[1:]:
            has = valid
            if f"has_{name}" in batch:
                has = valid * batch[f"has_{name}"]
            scale, bias = self.encoder.scale_of(name)
            caption = None
            if self.duplicates and name == "text":
                caption = fingerprints(batch["ids"])
            found = contrast(
                "softmax", image, embedded[name], scale, bias, has, caption, current_mesh()
            )
            count = has.sum()
            loss, weight = loss + found.loss, weight + count
            metrics |= {
                f"image_to_{name}": (found.image_to_text, count),
                f"{name}_to_image": (found.text_to_image, count),
                f"loss_{name}": (found.loss, count),
            }
        metrics["logit_scale"] = (self.encoder.scale_and_bias()[0], jnp.float32(1))
        return Outcome(loss, weight, jax.lax.stop_gradient(metrics))

    def flops(self, input_size: tuple[tuple[int, int], int]) -> float:
        """Forward FLOPs per training example that has everything."""
        total = super().flops(input_size)
        for name, form in (self.arrays or {}).items():
            total += self.encoder.flops_of(name, form.shape)
        return total
