"""BEST-RQ (Chiu et al., arXiv 2202.01855): hidden frames are told by a random code of theirs.

What differs from other objectives: a random projection and a random codebook make the targets, and
stay as they are; nothing that makes targets is learned, so they cannot collapse. Several codebooks
are USM's (arXiv 2303.01037, section 3.1).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from encoders.errors import ConfigError
from encoders.layers.initializers import trunc_normal
from encoders.layers.linear import Linear
from encoders.layers.norm import normalized_over_time
from encoders.layers.quantizer import RandomQuantizer, perplexity
from encoders.objectives.base import Batch
from encoders.objectives.heads import cross_entropy
from encoders.objectives.span_masking import SpanMasking
from encoders.objectives.speech import (
    Hidden,
    MaskedSpeechObjective,
    at_frames,
    learns_features,
    split_keys,
)
from encoders.types import Outcome


class BestRQ(MaskedSpeechObjective):
    """Tells the codes of hidden frames: cross-entropy, a sum over them, a mean over codebooks.

    A code is the entry of the codebook that is nearest to the frame's projection, both of length 1
    (section 3.1). Frames are given mean 0 and variance 1 before, each channel over the real frames
    of its clip; without that few codes would be in use. The encoder gets the frames as they are,
    with normal noise in place of hidden ones.

    Metrics: 'accuracy', and 'perplexity' of the codes of hidden frames in each micro-batch by
    itself, averaged over these and over codebooks.

    Attributes:
      encoder: an encoder whose features are fixed, a spectrogram; those that it learns could be
        made easy to tell.
      masking: which of its tokens are hidden. A frame of 10 ms begins 400 ms of them with
        probability .01 in the paper (section 4.1.1), from memory: with a token for 40 ms, rate .4
        and length 10.
      num_codebooks: 1, or 16 in USM.
      num_codes: entries of a codebook.
      code_dim: size of an entry.
      noise: standard deviation of what stands for hidden frames.
    """

    masking: SpanMasking = dataclasses.field(default_factory=lambda: SpanMasking(rate=0.4))
    num_codebooks: int = 1
    num_codes: int = 8192
    code_dim: int = 16
    noise: float = 0.1

    def setup(self) -> None:
        self.quantizer = RandomQuantizer(self.num_codebooks, self.num_codes, self.code_dim)
        self.head = Linear(self.num_codebooks * self.num_codes, kernel_init=trunc_normal(0.02))

    def __call__(self, batch: Batch, *, train: bool = False) -> Outcome:
        """Hides frames and returns the loss of telling their codes.

        Raises:
          ConfigError: the encoder's features are learned.
        """
        if learns_features(self.encoder):
            name = type(self.encoder).__name__
            raise ConfigError(
                f"objective: 'best_rq' tells frames of a spectrogram, and {name} learns what it "
                "hears by; name a model that has a spectrogram."
            )
        features, real, _ = self.features(batch, train=train)
        mask_keys, noise_keys = split_keys(self.rng_per_example(batch), 2)
        hidden = self.hide(mask_keys, real, batch)
        codes = self.quantizer(at_frames(normalized_over_time(features, real), hidden.frames))
        scores = self.scores(batch, (features, real), hidden, noise_keys, train=train)
        weights, count = hidden.weights, hidden.weights.sum()
        losses = (cross_entropy(scores, codes).mean(-1) * weights).sum()
        correct = ((scores.argmax(-1) == codes).mean(-1) * weights).sum()
        used = jnp.zeros((self.num_codebooks, self.num_codes))
        used = used.at[jnp.arange(self.num_codebooks), codes].add(weights[..., None])
        used = perplexity(used / jnp.maximum(count, 1)) / self.num_codebooks
        metrics = {"accuracy": (correct, count), "perplexity": (used * count, count)}
        return Outcome(losses, count, metrics)

    def scores(
        self,
        batch: Batch,
        features: tuple[jax.Array, jax.Array],
        hidden: Hidden,
        keys: jax.Array,
        *,
        train: bool = False,
    ) -> jax.Array:
        """float32 [B, K, N, V], how well hidden frames fit each code; noise by keys [B]."""
        x, real = features
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
        x = jnp.where(hidden.mask[..., None], self.noise * noise, x)
        encoded = self.encode(batch, features=(x, real), train=train)
        scores = self.head(at_frames(encoded.tokens, hidden.frames)).astype(jnp.float32)
        return scores.reshape(*scores.shape[:2], self.num_codebooks, self.num_codes)

    def flops(self, samples: int) -> float:
        """Forward FLOPs per example of so many samples; the codes, which have no gradient, a third.

        Their projections are next to nothing.
        """
        codes = self.num_codebooks * self.num_codes
        told = self.masking.slots(self.encoder.frames(samples))
        head = 2.0 * codes * (self.encoder.size.width + self.code_dim / 3)
        return self.encoder.flops(samples) + told * head
