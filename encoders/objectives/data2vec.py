"""data2vec (Baevski et al., arXiv 2202.03555): hidden frames are to be what a teacher makes of all.

What differs from other objectives: a target is an average of what the upper layers of a slow copy
of the encoder, which sees everything, add to a frame, so it tells of the whole clip.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from encoders.errors import ConfigError
from encoders.layers.linear import Linear
from encoders.layers.norm import normalized_over_time
from encoders.objectives.base import Batch, Momentum
from encoders.objectives.guard import Guard
from encoders.objectives.speech import (
    Hidden,
    MaskedSpeechObjective,
    at_frames,
    feature_flops,
)
from encoders.types import Outcome

_MLPS = ("mlp", "second_mlp")  # the last of a block


class Data2Vec(MaskedSpeechObjective):
    """Predicts the targets of hidden frames: squared errors, summed over D and divided by sqrt(D).

    A target is the mean over the `top_layers` of the outputs of their MLPs, before they are added
    to what went in, each normalised over the real frames of its clip (section 3.3 and 4.2). They
    are those of a teacher that has the student's front end and positions, and its own blocks, which
    follow the student's. Of a Conformer's two MLPs in a block it is the second, as in the authors'
    code, from memory. The loss is summed over hidden frames, whose number is the weight.

    Metrics: 'target_std' and 'prediction_std', standard deviations over the hidden frames, averaged
    over the channels: those that the authors' code calls variances, and stops a run by.

    Attributes:
      encoder, masking: see `MaskedSpeechObjective`.
      top_layers: whose outputs are averaged; 8 of 12 for speech.
      momentum: of the teacher.
      guard: stops a run whose targets or predictions have become constant.
    """

    top_layers: int = 8
    momentum: Momentum = dataclasses.field(
        default_factory=lambda: Momentum(0.999, 0.9999, {"steps": 30_000})
    )
    # Of the authors' code, which does not look at the first 5000 steps.
    guard: Guard = dataclasses.field(
        default_factory=lambda: Guard({"target_std": 0.1, "prediction_std": 0.01}, after=5000)
    )

    advice = (
        "the teacher makes the same of every frame: raise objective.momentum or lower optimizer.lr"
    )
    followed = (r"encoder/(blocks.*|norm|norm_pre)/.*",)

    def setup(self) -> None:
        self.project = Linear(self.encoder.size.width)

    def __call__(self, batch: Batch, *, train: bool = False) -> Outcome:
        """Hides frames and returns the loss of predicting the teacher's targets of them."""
        features, real, _ = self.features(batch, train=train)
        hidden = self.hide(self.rng_per_example(batch), real, batch)
        found = self.predictions(batch, (features, real), hidden, train=train)
        goal = at_frames(self.targets(batch, (features, real)), hidden.frames)
        weights, count = hidden.weights, hidden.weights.sum()
        errors = jnp.square(found - goal).sum(-1) / math.sqrt(goal.shape[-1])
        metrics = {
            "target_std": (count * deviation(goal, weights), count),
            "prediction_std": (count * deviation(found, weights), count),
        }
        return Outcome((errors * weights).sum(), count, metrics)

    def predictions(
        self,
        batch: Batch,
        features: tuple[jax.Array, jax.Array],
        hidden: Hidden,
        *,
        train: bool = False,
    ) -> jax.Array:
        """float32 [B, K, D], of the hidden frames."""
        encoded = self.encode(batch, features=features, masked=hidden.mask, train=train)
        return self.project(at_frames(encoded.tokens, hidden.frames)).astype(jnp.float32)

    def targets(self, batch: Batch, features: tuple[jax.Array, jax.Array]) -> jax.Array:
        """float32 [B, T, D], of all frames, without gradient.

        Raises:
          ConfigError: the encoder has fewer layers.
        """
        depth = self.encoder.size.depth
        if not 0 < self.top_layers <= depth:
            raise ConfigError(
                f"objective.top_layers: expected 1 to {depth}, the layers of the model, got "
                f"{self.top_layers}."
            )
        _, kept = self.taught(
            "encode",
            batch,
            features=features,
            capture_intermediates=lambda module, method: (
                module.name in _MLPS and method == "__call__"
            ),
            mutable=["intermediates"],
        )
        outputs = mlp_outputs(kept["intermediates"]["encoder"], depth)[-self.top_layers :]
        return sum(normalized_over_time(x, features[1]) for x in outputs) / self.top_layers

    def flops(self, samples: int) -> float:
        """Forward FLOPs per example; the teacher's count a third, as it has no backward pass.

        It hears by the student's front end, which runs once.
        """
        width, frames = self.encoder.size.width, self.encoder.frames(samples)
        encoder = self.encoder.flops(samples)
        teacher = encoder - feature_flops(self.encoder, samples)
        return encoder + teacher / 3 + 2.0 * self.masking.slots(frames) * width * width


def mlp_outputs(kept: dict, depth: int) -> list[jax.Array]:
    """[B, T, D] for every block, of what was captured of an encoder, scanned or not."""

    def output(block: dict) -> jax.Array:
        [mlp] = block.values()
        return mlp["__call__"][0]

    if "blocks" in kept:
        return list(output(kept["blocks"]))
    return [output(kept[f"blocks_{layer}"]) for layer in range(depth)]


def deviation(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean over the channels of the standard deviation of x [B, K, D] over frames of weight 1."""
    x, weights = jax.lax.stop_gradient(x), weights[..., None]
    count = weights.sum()
    centred = x - (x * weights).sum((0, 1)) / jnp.maximum(count, 1)
    variance = (jnp.square(centred) * weights).sum((0, 1)) / jnp.maximum(count - 1, 1)
    return jnp.sqrt(variance + 1e-6).mean()
