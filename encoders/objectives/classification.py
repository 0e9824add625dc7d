"""Classification from labels, with mixing, a distilling teacher, or as a linear probe."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.data.audio import AudioPreprocessing
from encoders.data.preprocessing import labels_of
from encoders.errors import ConfigError, nearest
from encoders.layers.initializers import trunc_normal
from encoders.layers.linear import Linear
from encoders.layers.norm import BatchNorm
from encoders.objectives.base import Batch, Objective, valid_weights
from encoders.objectives.mix import mix_images, mix_weights
from encoders.types import Outcome


@dataclasses.dataclass(frozen=True)
class Distillation:
    """How a teacher's opinion enters the loss: (1 - weight) * labels' + weight * teacher's.

    Attributes:
      kind: 'soft', temperature^2 * KL(teacher || student) of tempered softmaxes (Hinton et al.,
        arXiv 1503.02531); or 'hard', cross-entropy with the teacher's best class (DeiT, arXiv
        2012.12877, equation 3).
      temperature: of both softmaxes; 'hard' ignores it.
      weight: share of the teacher's loss.
      token: whether the student's answer to the teacher is read from its first register by a head
        of its own, as DeiT's distillation token; predictions then average the two heads.
    """

    kind: Literal["soft", "hard"] = "soft"
    temperature: float = 1.0
    weight: float = 0.5
    token: bool = False


class Classification(Objective):
    """Predicts batch['label'] int32 [B] from batch['image'] float [B, H, W, C], or from sound:
    batch['waveform'] float [B, S], of which length [B] samples are real.

    The loss is summed over examples; in evaluation it is the plain one, without smoothing, mixing
    and teacher. The metric 'accuracy' counts an example mixed from two by their shares.

    A teacher is another Classification module, `teacher`, whose variables arrive in the collection
    'teacher' as {'params': ...}: in a config `objective.teacher` is the run directory or checkpoint
    that the trainer makes both from. It is run in evaluation mode on the same (mixed) inputs, with
    the student's normalisation, and gets no gradient.

    Attributes:
      encoder: an encoder that pools.
      num_classes: classes.
      loss: 'softmax' cross-entropy, or 'sigmoid': binary cross-entropy summed over the classes.
      label_smoothing: share of a label spread evenly over all classes.
      mixup: alpha of the Beta distribution of mixup (arXiv 1710.09412); 0 is off.
      cutmix: the same of cutmix (arXiv 1905.04899); where both are on, each step tosses a coin.
        Both are of images.
      distillation: what to learn from the teacher.
      teacher: the teacher's module.
      head_init: standard deviation of the head's kernel, truncated normal; 0 starts at zero.
      head_bias: initial bias of the head; -log(num_classes) suits 'sigmoid'.
      linear_probe: the encoder is in evaluation mode and gets no gradient, and its features pass an
        affine-free batch norm (eps 1e-6) before the head (MAE, appendix A.1). Running statistics
        are in the collection 'stats', which training must pass as mutable; the optimizer should
        freeze 'encoder/.*', so that weight decay leaves it alone too.
    """

    num_classes: int = dataclasses.field(kw_only=True)
    loss: Literal["softmax", "sigmoid"] = "softmax"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    distillation: Distillation | None = None
    teacher: nn.Module | None = None
    head_init: float = 0.0
    head_bias: float = 0.0
    linear_probe: bool = False

    def setup(self) -> None:
        if self.loss not in ("softmax", "sigmoid"):
            known = ("softmax", "sigmoid")
            raise ConfigError(f"objective.loss: unknown '{self.loss}'.{nearest(self.loss, known)}")
        if (self.distillation is None) != (self.teacher is None):
            raise ConfigError(
                "objective: distillation and teacher belong together; set both or neither."
            )
        if self.num_classes < 1 or not 0 <= self.label_smoothing <= 1:
            raise ConfigError(
                "objective: expected num_classes from 1 and label_smoothing from 0 to 1, got "
                f"{self.num_classes} and {self.label_smoothing}."
            )
        if min(self.mixup, self.cutmix) < 0:
            raise ConfigError(
                f"objective: mixup and cutmix count from 0, got {self.mixup} and {self.cutmix}."
            )
        kernel, bias = trunc_normal(self.head_init), nn.initializers.constant(self.head_bias)
        self.head = Linear(self.num_classes, kernel_init=kernel, bias_init=bias)
        if self._has_token:
            self.distillation_head = Linear(self.num_classes, kernel_init=kernel, bias_init=bias)
        if self.linear_probe:
            self.head_norm = BatchNorm(eps=1e-6, affine=False)

    def check_source(self, source: Any) -> None:
        """Raises a ConfigError where the data has more classes than the head: they would have no
        loss."""
        names = getattr(source, "class_names", None) or ()
        if len(names) > self.num_classes:
            raise ConfigError(
                f"objective.num_classes: expected {len(names)}, as the data has classes, got "
                f"{self.num_classes}."
            )

    @property
    def _has_token(self) -> bool:
        return self.distillation is not None and self.distillation.token

    def logits(self, *inputs: jax.Array, train: bool = False, **named: jax.Array) -> jax.Array:
        """Scores [B, num_classes] of what the encoder takes; of two heads, their mean."""
        heads = self._heads(inputs, named, train)
        return heads[0] if len(heads) == 1 else (heads[0] + heads[1]) / 2

    def _heads(self, inputs: tuple, named: dict, train: bool) -> tuple[jax.Array, ...]:
        """float32 scores of the head and, where there is one, of the distillation head."""
        encoded = self.encoder(*inputs, **named, train=train and not self.linear_probe)
        features = encoded.pooled
        if features is None:
            raise ConfigError("model.pool: classification needs a pooled vector; 'none' has none.")
        if self.linear_probe:
            features = self.head_norm(jax.lax.stop_gradient(features), train=train)
        heads = (self.head(features).astype(jnp.float32),)
        if self._has_token:
            if getattr(self.encoder, "num_registers", 0) < 1 or not self.encoder.class_token:
                raise ConfigError(
                    "objective.distillation.token: the encoder needs a class token and a register."
                )
            heads += (self.distillation_head(encoded.tokens[:, 1]).astype(jnp.float32),)
        return heads

    def __call__(self, batch: Batch, *, train: bool = False) -> Outcome:
        """Returns the loss and accuracy of a batch.

        Raises:
          ConfigError: mixing needs an even batch and this one is odd; or it is of sound.
          DataError: the batch has no labels.
        """
        label = labels_of(batch)
        inputs, named = _inputs(batch)
        labels = jax.nn.one_hot(label, self.num_classes)
        if (self.mixup or self.cutmix) and "image" not in batch:
            raise ConfigError("objective: mixup and cutmix are of images; set both to 0 for sound.")
        if train and (self.mixup or self.cutmix) and not self.is_initializing():
            [images] = inputs
            weights = mix_weights(self.corrupt_key(), images.shape[1:3], self.mixup, self.cutmix)
            inputs = (mix_images(images, weights),)
            share = weights.mean()
            labels = share * labels + (1 - share) * jnp.roll(labels, len(label) // 2, axis=0)
        heads = self._heads(inputs, named, train)
        smoothing = self.label_smoothing if train else 0.0
        targets = (1 - smoothing) * labels + smoothing / self.num_classes
        losses = self._label_loss(heads[0], targets)
        valid = valid_weights(batch)
        metrics = {}
        if train and self.distillation is not None and not self.is_initializing():
            teacher = self._teacher_logits(inputs, named)
            taught = self._teacher_loss(heads[-1], teacher)
            losses = (1 - self.distillation.weight) * losses + self.distillation.weight * taught
            agree = heads[-1].argmax(-1) == teacher.argmax(-1)
            metrics["agreement"] = ((agree * valid).sum(), valid.sum())
        best = sum(heads).argmax(-1)
        correct = jnp.take_along_axis(labels, best[:, None], axis=1)[:, 0]
        metrics["accuracy"] = ((correct * valid).sum(), valid.sum())
        return Outcome((losses * valid).sum(), valid.sum(), metrics)

    def _label_loss(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """[B] loss of logits against soft targets, each [B, C]."""
        if self.loss == "softmax":
            return -(targets * jax.nn.log_softmax(logits)).sum(-1)
        positive, negative = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        return -(targets * positive + (1 - targets) * negative).sum(-1)

    def _teacher_logits(self, inputs: tuple, named: dict) -> jax.Array:
        variables = self.variables.get("teacher")
        if not variables:
            raise ConfigError("objective.teacher: the teacher's variables were not given.")
        teacher = self.teacher.clone(parent=None)
        scores = teacher.apply(variables, *inputs, **named, method="logits")
        return jax.lax.stop_gradient(scores)

    def _teacher_loss(self, logits: jax.Array, teacher: jax.Array) -> jax.Array:
        """[B] loss against the teacher's scores, each [B, C]."""
        if self.distillation.kind == "hard":
            return self._label_loss(logits, jax.nn.one_hot(teacher.argmax(-1), self.num_classes))
        temperature = self.distillation.temperature
        student = jax.nn.log_softmax(logits / temperature)
        goal = jax.nn.log_softmax(teacher / temperature)
        return temperature**2 * (jnp.exp(goal) * (goal - student)).sum(-1)

    def flops(self, input_size: tuple[int, int] | int) -> float:
        """Forward FLOPs per training example; frozen parts count a third.

        Training costs three forwards, but only one in a frozen encoder or a teacher.
        """
        head = 2.0 * self.encoder.size.width * self.num_classes * (1 + self._has_token)
        frozen = self.teacher.flops(input_size) if self.teacher is not None else 0.0
        kept = ()
        if hasattr(self.encoder, "num_kept"):
            size = self.encoder.image_size if isinstance(input_size, int) else input_size
            kept = (self.encoder.num_kept(size),)
        trained = self.encoder.flops(input_size, *kept)
        if self.linear_probe:
            trained, frozen = 0.0, frozen + self.encoder.flops(input_size)
        return trained + head + frozen / 3


def _inputs(batch: Batch) -> tuple[tuple, dict[str, jax.Array]]:
    """What an encoder is called with, positional and by name: of a batch of images or of sound."""
    if "waveform" in batch:
        return AudioPreprocessing.encoder_inputs(batch)
    return (batch["image"],), {}
