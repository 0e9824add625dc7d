"""Contrast of images and texts: each is told its counterpart from those of the whole batch.

What differs from other objectives: the encoder is two towers (`Towers`), and an example is a pair,
batch['image'] [B, H, W, C], or patches and their batch['shapes'] (see `ViT`), with batch['ids'] and
batch['segments'] int32 [B, T]. Where S images share a row of patches, these are [B, S, T].

  softmax_contrast   CLIP (arXiv 2103.00020), ALIGN (2102.05918), LiT (2111.07991)
  sigmoid_contrast   SigLIP (2303.15343)
  contrast_caption   CoCa (2205.01917), in `objectives.captioning`

LiT is `locked` of the towers, FLIP (2212.00794) is `token_drop` of the image tower.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from encoders.errors import ConfigError
from encoders.models.towers import Towers
from encoders.objectives.base import Batch, Objective, valid_weights
from encoders.parallel.contrast import contrast, fingerprints
from encoders.parallel.sharding import current_mesh
from encoders.types import Encoded, Outcome


def per_pair(batch: Batch) -> Batch:
    """The batch with each text by itself, [B * S, ...], where S images share a row of patches.

    A place of a row that holds no image is then not valid.
    """
    if not _packed(batch):
        return batch
    real = batch["shapes"].prod(-1) > 0
    texts = {name: batch[name] for name in ("ids", "segments")}
    texts["valid"] = real & batch["valid"] if "valid" in batch else real
    flat = {name: x.reshape(real.size, *x.shape[2:]) for name, x in texts.items()}
    return {"image": batch["image"], "shapes": batch["shapes"], **flat}


def _packed(batch: Batch) -> bool:
    return "shapes" in batch and batch["shapes"].ndim == 3


class ImageTextObjective(Objective):
    """Base of losses over all pairs of an image and a text of the global batch.

    The loss is a sum over examples. Its metrics are the shares of images and of texts that fit
    their counterpart better than all others, the scale of the cosines, and the share of padding of
    images that are patches.

    Attributes:
      encoder: the two towers.
      duplicates: whether other examples may have the same caption, ids for ids, and are then no
        counterexamples.
    """

    duplicates: bool = False

    whole_batch = True
    # Not fields here: the first belongs to the class, the second is the softmax's alone.
    kind = "softmax"  # of `parallel.contrast`
    label_smoothing = 0.0

    def embed(self, batch: Batch, *, train: bool = False) -> dict[str, jax.Array]:
        """Embeddings of a (micro-)batch, {'image': [B, E], 'text': [B, E]}, of length 1.

        They are [B, S, E] where S images share a row: parts of a batch are parts of its rows.

        Raises:
          ConfigError: the encoder is not two towers, or a text is longer than its tower.
        """
        (_, image), (_, text) = self._towers(per_pair(batch), train)
        return {"image": image, "text": text.reshape(image.shape)}

    def encode(self, batch: Batch, *, train: bool) -> tuple[tuple[Encoded, jax.Array], ...]:
        """What each tower makes of a batch, and the embeddings [B, E]: of images, and of texts.

        Raises:
          ConfigError: as `embed`, or images share a row, whose tokens are then no image's own.
        """
        if _packed(batch):
            raise ConfigError(
                f"objective: {type(self).__name__} reads the tokens of images that have a row of "
                "their own; name 'to_patches' in data.transforms, not 'pack_patches'."
            )
        return self._towers(batch, train)

    def _towers(self, batch: Batch, train: bool) -> tuple[tuple[Encoded, jax.Array], ...]:
        if not isinstance(self.encoder, Towers):
            raise ConfigError(
                f"objective: {type(self).__name__} compares images with texts, and model is "
                f"{type(self.encoder).__name__}; name 'towers'."
            )
        segments = batch["segments"]
        shapes = {"shapes": batch["shapes"]} if "shapes" in batch else {}
        return (
            self.encoder.encode("image", batch["image"], train=train, **shapes),
            self.encoder.encode("text", batch["ids"], segments=segments, train=train),
        )

    def compare(self, embedded: Mapping[str, jax.Array], batch: Batch) -> Outcome:
        """The loss of a whole batch from its embeddings."""
        scale, bias = self.encoder.scale_and_bias()
        batch = per_pair(batch)
        valid = valid_weights(batch)
        caption = fingerprints(batch["ids"]) if self.duplicates else None
        image, text = (embedded[x].reshape(len(valid), -1) for x in ("image", "text"))
        mesh, smoothing = current_mesh(), self.label_smoothing
        found = contrast(self.kind, image, text, scale, bias, valid, caption, mesh, smoothing)
        count, one = valid.sum(), jnp.float32(1)
        metrics = {
            "image_to_text": (found.image_to_text, count),
            "text_to_image": (found.text_to_image, count),
            "logit_scale": (jax.lax.stop_gradient(scale), one),
        }
        if self.encoder.logit_bias is not None:
            metrics["logit_bias"] = (jax.lax.stop_gradient(bias), one)
        if "shapes" in batch:
            places = jnp.float32(math.prod(batch["image"].shape[:2]))
            metrics["padding"] = (places - batch["shapes"].prod(-1).sum(), places)
        return Outcome(found.loss, count, metrics)

    def __call__(self, batch: Batch, *, train: bool = False) -> Outcome:
        """Returns the loss of a batch, and how many examples find their counterpart."""
        return self.compare(self.embed(batch, train=train), batch)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Those of the locked towers."""
        return tuple(f"encoder/{regex}" for regex in self.encoder.frozen)

    def constrained(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """With the scale at most the encoder's largest, as after CLIP's steps (section 2.5)."""
        limit = self.encoder.max_logit_scale
        if limit is None:
            return params
        towers = dict(params["encoder"])
        towers["logit_scale"] = jnp.minimum(towers["logit_scale"], limit)
        return {**params, "encoder": towers}

    def flops(self, input_size: tuple[tuple[int, int], int]) -> float:
        """Forward FLOPs per training example; comparing vectors is next to nothing."""
        return self.encoder.flops(input_size, train=True)


class SoftmaxContrast(ImageTextObjective):
    """Cross-entropy of each image's text among all texts, and of each text's image, halved.

    Attributes:
      label_smoothing: share of the target that all texts, or images, have alike; .1 in ALIGN.
    """

    label_smoothing: float = 0.0

    kind = "softmax"


class SigmoidContrast(ImageTextObjective):
    """Tells pair by pair whether image and text belong together: no sum over the others.

    All pairs of an image count, so the loss of an example is a sum of B terms.
    """

    kind = "sigmoid"
