"""SigLIP 2 (arXiv 2502.14786): contrast, captions, and learning from a slow copy of oneself.

What differs from SigLIP: a decoder writes the caption from the image's tokens (section 2.2), and in
the last fifth of training two more losses make the image tower's features those of a momentum
teacher (section 2.3). Both are over distributions of prototypes, see `self_distillation`:

  local    the student sees small crops, the teacher one large one (SILC, arXiv 2310.13355)
  masked   the student sees the large one with half of its patches replaced by a mask token, and is
           asked about these (TIPS, 2410.16512; iBOT, 2111.07832)

Contrast and captions see the image as it is; crops are for these two alone, and are cut and
mirrored but keep their colours. The text tower has no teacher. Captions are plain ones: boxes,
which LocCa's decoder predicts as well, would need data that has them.

The weights of the losses, the number of crops and the share of masked patches are the paper's, told
from memory; what it takes from DINO and iBOT without saying (temperatures, momenta, heads) is
theirs, from memory too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from encoders.data.vocabulary import Vocabulary
from encoders.errors import ConfigError
from encoders.layers.initializers import trunc_normal
from encoders.models.vit import ViT, select
from encoders.objectives.base import Batch, Momentum, valid_weights
from encoders.objectives.captioning import TextDecoder, caption_sums, with_captions
from encoders.objectives.guard import Guard
from encoders.objectives.image_text import SigmoidContrast
from encoders.objectives.self_distillation import (
    Centre,
    PrototypeHead,
    distillation_loss,
    entropy,
    random_crops,
    teacher_distribution,
)
from encoders.types import Encoded, Outcome


@dataclasses.dataclass(frozen=True)
class SelfDistillation:
    """The two losses of section 2.3.

    Attributes:
      weight: of both; .25 for B, .5 for L, 1 for So400m and .5 for g.
      local_weight, masked_weight: of each, beside that.
      momentum: how the teacher follows.
      num_crops: small crops that the student sees of an image.
      crop_size: their pixels a side.
      crop_scale, global_scale: least and greatest share of the image that crops show, small and
        large.
      mask_ratio: share of the large crop's patches that the student does not see.
      num_prototypes, num_patch_prototypes: of images, and of patches.
      hidden_dim, bottleneck_dim: of the heads, see `PrototypeHead`.
      student_temperature, teacher_temperature: of the distributions.
      centre_momentum: of the running means of the teacher's scores.
      guard: stops a run to whose teacher all images are one.
    """

    weight: float = 0.25
    local_weight: float = 1.0
    masked_weight: float = 0.25
    momentum: Momentum = dataclasses.field(
        default_factory=lambda: Momentum(0.996, 1.0, shape="cosine")
    )
    num_crops: int = 8
    crop_size: int = 96
    crop_scale: tuple[float, float] = (0.05, 0.4)
    global_scale: tuple[float, float] = (0.4, 1.0)
    mask_ratio: float = 0.5
    num_prototypes: int = 65536
    num_patch_prototypes: int = 8192
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    centre_momentum: float = 0.9
    guard: Guard = dataclasses.field(default_factory=lambda: Guard({"teacher_spread": 1e-3}))

    def num_masked(self, patches: int) -> int:
        """How many of an image's patches the student does not see.

        Raises:
          ConfigError: none or all of them.
        """
        masked = round(patches * self.mask_ratio)
        if not 0 < masked < patches:
            raise ConfigError(
                f"objective.distillation.mask_ratio: {self.mask_ratio} masks {masked} of {patches} "
                "patches; some must be masked and some seen."
            )
        return masked

    def head(self, prototypes: int) -> PrototypeHead:
        """A head with so many prototypes."""
        return PrototypeHead(prototypes, self.hidden_dim, self.bottleneck_dim, parent=None)


class SigLip2(SigmoidContrast):
    """Sigmoid contrast and captions; with `distillation`, what a teacher makes of the image too.

    The loss is the mean over examples of the contrast, plus caption_weight times the mean over the
    tokens of the whole batch, plus the mean over examples of the weighed losses of `distillation`.
    Those are of training alone: evaluation has no teacher.

    Its metrics tell whether the teacher has collapsed: `teacher_spread` is 1 - |mean|^2 of its
    vectors, which have length 1, over the batch, and 0 where all images are one to it;
    `teacher_entropy` is that of its distributions in nats, log P where they say nothing.

    Attributes:
      encoder, duplicates: as in contrast.
      vocabulary: which id ends a text; the caption goes as far.
      decoder: what writes captions.
      parallel: share of captions that are predicted with none of their tokens read.
      caption_weight: of captions beside the contrast.
      distillation: the two losses of the end of training; None for none.
    """

    vocabulary: Vocabulary | None = None
    decoder: TextDecoder = dataclasses.field(default_factory=lambda: TextDecoder(parent=None))
    parallel: float = 0.5
    caption_weight: float = 1.0
    distillation: SelfDistillation | None = None

    followed = (r"encoder/image/.*", r"(image|patch)_head/.*")
    advice = (
        "a learning rate below optimizer.lr, or more centring (a lower "
        "objective.distillation.centre_momentum), may help"
    )

    @property
    def momentum(self) -> Momentum | None:
        """How the teacher follows, where there is one."""
        return None if self.distillation is None else self.distillation.momentum

    @property
    def guard(self) -> Guard | None:
        """What would show that the teacher has collapsed, where there is one."""
        return None if self.distillation is None else self.distillation.guard

    def setup(self) -> None:
        own = self.distillation
        if own is None:
            return
        tower = self.encoder.image
        if not isinstance(tower, ViT) or tower.token_drop:
            raise ConfigError(
                "objective.distillation: patches are masked one by one; model.image must be a "
                "'vit' with token_drop=0."
            )
        self.image_head = own.head(own.num_prototypes)
        self.patch_head = own.head(own.num_patch_prototypes)
        self.image_centre = Centre(own.num_prototypes)
        self.patch_centre = Centre(own.num_patch_prototypes)
        self.mask_token = self.param("mask_token", trunc_normal(0.02), (tower.size.width,))

    def embed(self, batch: Batch, *, train: bool = False) -> dict[str, jax.Array]:
        """Embeddings as in contrast, `caption_sums`, and in training what `distil` gives.

        Raises:
          ConfigError: the images of several examples share a row.
        """
        shapes = batch.get("shapes")
        if shapes is not None and (shapes.ndim == 3 or self.distillation is not None):
            raise ConfigError(
                "objective: captions need one image in a row, and objective.distillation images of "
                "one size; unset preprocessing.image.max_patches."
            )
        (image, image_vectors), (_, text_vectors) = self.encode(batch, train=train)
        found = {"image": image_vectors, "text": text_vectors, **self.captions(image, batch, train)}
        if train and self.distillation is not None:
            found |= self.distil(batch)
        return found

    def captions(self, image: Encoded, batch: Batch, train: bool) -> dict[str, jax.Array]:
        """`caption_sums` of captions that the decoder predicts from images."""
        ids = batch["ids"]
        parallel = jnp.zeros(len(ids), bool)
        if train:
            share = self.parallel
            keys = self.rng_per_example(batch)
            parallel = jax.vmap(lambda key: jax.random.bernoulli(key, share))(keys)
        scores = self.decoder(ids, image, parallel, self.encoder.text, train)
        counts = (batch["segments"] > 0) * valid_weights(batch)[:, None]
        if self.vocabulary is not None:
            # A first token may be what ends texts too: some tokenizers begin with it.
            ends = (ids == self.vocabulary.sep_id).at[:, 0].set(False)
            counts = counts * (jnp.cumsum(ends, axis=1) - ends == 0)
        return caption_sums(scores, ids, counts)

    def distil(self, batch: Batch) -> dict[str, jax.Array]:
        """Both losses of each example.

        Returns:
          float32 [B] 'local_loss' and 'masked_loss', the means over crops and over masked patches;
          'teacher_entropy'; and 'teacher', the teacher's vectors [B, E].
        """
        own, images, tower = self.distillation, batch["image"], self.encoder.image
        keys = jax.vmap(lambda key: jax.random.split(key, 3))(self.rng_per_example(batch))
        view = random_crops(keys[:, 0], images, images.shape[1:3], 1, own.global_scale)[:, 0]
        side = (own.crop_size, own.crop_size)
        crops = random_crops(keys[:, 1], images, side, own.num_crops, own.crop_scale)
        rows, columns = tower.grid(view.shape[1:3])
        masked = masked_places(keys[:, 2], rows * columns, own.num_masked(rows * columns))
        hidden = jnp.zeros((len(images), rows * columns), bool)
        hidden = jax.vmap(lambda row, places: row.at[places].set(True))(hidden, masked)

        def student(images: jax.Array, **given: Any) -> Encoded:
            return self.encoder.encode("image", images, train=True, **given)[0]

        seen = student(crops.reshape(-1, *crops.shape[2:]))
        image_scores = self.image_head(seen.pooled)[1].reshape(*crops.shape[:2], -1)
        seen = student(view, replace=(hidden, self.mask_token))
        patch_scores = self.patch_head(patches_at(seen, masked))[1]

        vectors, image_goals, patch_goals = self.taught("teach", view, masked)
        valid, cold = valid_weights(batch), own.teacher_temperature
        centre = self.image_centre(image_goals, valid)
        image_goals = teacher_distribution(image_goals, centre, cold)
        centre = self.patch_centre(patch_goals, valid)
        patch_goals = teacher_distribution(patch_goals, centre, cold)
        warm = own.student_temperature
        local = distillation_loss(image_scores, image_goals[:, None], warm).mean(1)
        return {
            "local_loss": local * valid,
            "masked_loss": distillation_loss(patch_scores, patch_goals, warm).mean(1) * valid,
            "teacher_entropy": entropy(image_goals) * valid,
            "teacher": vectors * valid[:, None],
        }

    def teach(self, view: jax.Array, masked: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What the teacher makes of large crops [B, H, W, C] and of their patches masked [B, K].

        Returns:
          float32 vectors [B, E] and scores [B, P] of images, and scores [B, K, P'] of patches.
        """
        encoded, _ = self.encoder.encode("image", view)
        vectors, scores = self.image_head(encoded.pooled)
        return vectors, scores, self.patch_head(patches_at(encoded, masked))[1]

    def settled(self, stats: Mapping[str, Any]) -> Mapping[str, Any]:
        """With the means of the teacher's scores moved by those of the batch."""
        if self.distillation is None:
            return stats
        momentum = self.distillation.centre_momentum
        own = dict(stats["stats"])
        for name in ("image_centre", "patch_centre"):
            own[name] = Centre.settled(own[name], momentum)
        return {**stats, "stats": own}

    def compare(self, embedded: Mapping[str, jax.Array], batch: Batch) -> Outcome:
        """The loss of a whole batch from its embeddings and the sums and losses beside them."""
        found = with_captions(super().compare(embedded, batch), embedded, 1.0, self.caption_weight)
        if "teacher" not in embedded:
            return found
        own, count = self.distillation, found.weight
        names = ("local_loss", "masked_loss", "teacher_entropy")
        local, masked, information = (embedded[name].sum() for name in names)
        mean = embedded["teacher"].sum(0) / jnp.maximum(count, 1)
        metrics = {
            **found.metrics,
            "local_loss": (local, count),
            "masked_loss": (masked, count),
            "teacher_entropy": (information, count),
            "teacher_spread": (1 - jnp.square(mean).sum(), jnp.float32(1)),
        }
        more = own.weight * (own.local_weight * local + own.masked_weight * masked)
        return Outcome(found.loss + more, count, metrics)

    def flops(self, input_size: tuple[tuple[int, int], int]) -> float:
        """Forward FLOPs per training example; the teacher's count a third, as it learns nothing."""
        (image_size, length), tower = input_size, self.encoder.image
        memory = tower.num_kept(image_size) + tower.num_prefix
        total = super().flops(input_size) + self.decoder.flops(self.encoder.text, length, memory)
        own = self.distillation
        if own is None:
            return total
        width, (rows, columns) = tower.size.width, tower.grid(image_size)
        image = own.head(own.num_prototypes).flops(width)
        patches = own.head(own.num_patch_prototypes).flops(width) * own.num_masked(rows * columns)
        crop = tower.flops((own.crop_size, own.crop_size)) + image
        large = tower.flops(image_size) + patches
        return total + own.num_crops * crop + large + (large + image) / 3


def masked_places(keys: jax.Array, patches: int, number: int) -> jax.Array:
    """int32 [B, number], different patches of each example; from keys [B]."""
    noise = jax.vmap(lambda key: jax.random.uniform(key, (patches,)))(keys)
    return jnp.argsort(noise, axis=1)[:, :number]


def patches_at(encoded: Encoded, places: jax.Array) -> jax.Array:
    """[B, K, D], the tokens of the patches at places [B, K]."""
    return select(encoded.tokens[:, encoded.num_prefix :], places)
