"""Connectionist temporal classification (Graves et al., 2006): transcripts without alignment.

The head is one linear layer on the encoder's tokens, as wav2vec 2.0 is fine-tuned (arXiv
2006.11477, section 3.3 and appendix B), with spans of frames and of channels hidden in training
(after SpecAugment, arXiv 1904.08779).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from encoders.data.characters import Characters
from encoders.errors import ConfigError
from encoders.layers.dropout import Dropout
from encoders.layers.initializers import trunc_normal
from encoders.layers.linear import Linear
from encoders.objectives.base import Batch, valid_weights
from encoders.objectives.span_masking import SpanMasking, span_mask
from encoders.objectives.speech import SpeechObjective, feature_flops, split_keys
from encoders.types import Outcome


class CTC(SpeechObjective):
    """Transcribes: batch['targets'] int32 [B, U], of which target_length [B] are real.

    The loss is summed over examples, as the authors' code has it; their number is the weight. A
    transcript that has no room, one frame for each token and one more between equal neighbours,
    has no probability: it counts with a loss of zero, and 'infeasible' is the share of those. The
    other metric is 'token_loss', per token.

    Attributes:
      encoder: an encoder of speech.
      characters: the tokens, of which one is the blank (supplied by the preprocessing).
      dropout: rate on the tokens before the head.
      time_masking: spans of frames that the mask embedding stands for in training.
      channel_masking: spans of channels that are zero in training, of all frames.
      freeze_features: the convolutions of raw samples get no gradient. Encoders that hear by a
        spectrogram have none, and all that they learn is trained.
      head_only_steps: at the beginning, when the head alone gets a gradient.
    """

    characters: Characters | None = None
    dropout: float = 0.1
    time_masking: SpanMasking = dataclasses.field(default_factory=SpanMasking)
    channel_masking: SpanMasking = dataclasses.field(
        default_factory=lambda: SpanMasking(rate=0.5, length=64, min_spans=0)
    )
    freeze_features: bool = True
    head_only_steps: int = 0

    def setup(self) -> None:
        if self.characters is None:
            raise ConfigError(
                "preprocessing.characters: 'ctc' needs the vocabulary of its transcripts, such as "
                "'letters'."
            )
        self.head = Linear(self.characters.size, kernel_init=trunc_normal(0.02))
        self.drop = Dropout(self.dropout)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Those of the front end's convolutions."""
        return (r"encoder/convolutions/.*",) if self.freeze_features else ()

    def __call__(self, batch: Batch, *, train: bool = False) -> Outcome:
        """Returns the loss of a batch."""
        logits, real = self.logits(batch, train=train)
        lengths = batch["target_length"]
        blank = self.characters.blank
        losses, feasible = ctc_losses(logits, real, batch["targets"], lengths, blank)
        valid = valid_weights(batch)
        metrics = {
            "token_loss": ((losses * valid).sum(), (lengths * feasible * valid).sum()),
            "infeasible": ((~feasible * valid).sum(), valid.sum()),
        }
        return Outcome((losses * valid).sum(), valid.sum(), metrics)

    def logits(self, batch: Batch, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """float32 scores of the tokens [B, T, V], and [B, T] bool, which frames are real."""
        features, real, _ = self.features(batch, train=train)
        masks = self.masks(batch, real) if train else {}
        encoded = self.encode(batch, features=(features, real), train=train, **masks)
        tokens = encoded.tokens
        if train and self.head_only_steps:
            trained = batch.get("step", 0) >= self.head_only_steps
            tokens = jnp.where(trained, tokens, jax.lax.stop_gradient(tokens))
        tokens = self.drop(tokens, train=train)
        return self.head(tokens).astype(jnp.float32), encoded.mask

    def masks(self, batch: Batch, real: jax.Array) -> dict[str, jax.Array]:
        """What is hidden of frames, of which `real` [B, T] are no padding, and of channels."""
        time, channels = split_keys(self.rng_per_example(batch), 2)
        found = {}
        if self.time_masking.rate:
            draw = jax.vmap(lambda key, row: span_mask(key, row, self.time_masking))
            found["masked"] = draw(time, real)
        if self.channel_masking.rate:
            every = jnp.ones(self.encoder.size.width, bool)
            draw = jax.vmap(lambda key: span_mask(key, every, self.channel_masking))
            found["masked_channels"] = draw(channels)
        return found

    def flops(self, samples: int) -> float:
        """Forward FLOPs per example of so many samples; those of a frozen front end a third."""
        head = 2.0 * self.encoder.size.width * self.characters.size
        total = self.encoder.flops(samples) + self.encoder.frames(samples) * head
        if self.freeze_features:
            total -= feature_flops(self.encoder, samples) * 2 / 3
        return total


def ctc_losses(
    logits: jax.Array, real: jax.Array, targets: jax.Array, lengths: jax.Array, blank: int = 0
) -> tuple[jax.Array, jax.Array]:
    """-log of the probability of transcripts, and for which there is one.

    Args:
      logits: float32 [B, T, V].
      real: [B, T] bool, which frames are no padding.
      targets: int32 [B, U].
      lengths: int32 [B], of the targets.
      blank: the id of no token.

    Returns:
      float32 [B], zero where there is none; and [B] bool.
    """
    padding = jnp.arange(targets.shape[1]) >= lengths[:, None]
    losses = optax.ctc_loss(
        logits,
        1.0 - real,
        targets,
        padding.astype(jnp.float32),
        blank_id=blank,
    )
    equal = (targets[:, 1:] == targets[:, :-1]) & ~padding[:, 1:]
    feasible = lengths + equal.sum(-1) <= real.sum(-1)
    return jnp.where(feasible, losses, 0.0), feasible
