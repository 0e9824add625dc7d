"""Parts of learning from a slow copy of oneself (DINO, arXiv 2104.14294; iBOT, 2111.07832).

The student and its momentum teacher (`Objective.taught`) see the same image differently; the
student should make of what it sees what the teacher makes of it: the same distribution over
prototypes that mean nothing by themselves. Two things keep all from becoming one: the running mean
of the teacher's scores is taken off them (`Centre`), and its distribution is the sharper one.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.layers.initializers import trunc_normal
from encoders.layers.linear import Linear
from encoders.layers.mlp import ACTIVATIONS
from encoders.layers.pooling import unit
from encoders.objectives.heads import products

_INIT = trunc_normal(0.02)


class PrototypeHead(nn.Module):
    """Scores of prototypes: the cosine of each with an MLP of three layers (DINO, appendix C).

    Attributes:
      num_prototypes: P.
      hidden_dim: of the MLP's two hidden layers.
      bottleneck_dim: E, of the space of the prototypes.
    """

    num_prototypes: int
    hidden_dim: int = 2048
    bottleneck_dim: int = 256

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x [..., D] -> float32 vectors [..., E] of length 1, and float32 scores [..., P]."""
        for number in (1, 2):
            linear = Linear(self.hidden_dim, kernel_init=_INIT, name=f"fc{number}")
            x = ACTIVATIONS["gelu"](linear(x))
        x = Linear(self.bottleneck_dim, kernel_init=_INIT, name="fc3")(x)
        vectors = unit(x)
        table = self.param("prototypes", _INIT, (self.num_prototypes, self.bottleneck_dim))
        return vectors, products(vectors.astype(x.dtype), unit(table).astype(x.dtype))

    def flops(self, width: int) -> float:
        """Forward FLOPs per vector of that width."""
        hidden, out = self.hidden_dim, self.bottleneck_dim
        return 2.0 * (width * hidden + hidden * hidden + hidden * out + out * self.num_prototypes)


class Centre(nn.Module):
    """The running mean of a teacher's scores, in the collection 'stats'.

    A step sees one mean, in however many parts it goes through its batch: the parts add up what
    they have, and `settled` moves the mean by the whole.

    Attributes:
      num_prototypes: P.
    """

    num_prototypes: int

    @nn.compact
    def __call__(self, scores: jax.Array, counts: jax.Array) -> jax.Array:
        """The mean before the step, float32 [P].

        Args:
          scores: float32 [B, ..., P], of the teacher.
          counts: [B], which examples count.
        """
        size = (self.num_prototypes,)
        mean = self.variable("stats", "mean", jnp.zeros, size)
        total = self.variable("stats", "total", jnp.zeros, size)
        count = self.variable("stats", "count", jnp.zeros, ())
        if self.is_mutable_collection("stats") and not self.is_initializing():
            each = scores.reshape(len(scores), -1, self.num_prototypes).mean(1)
            total.value += counts @ each
            count.value += counts.sum()
        return mean.value

    @staticmethod
    def settled(stats: Mapping[str, jax.Array], momentum: float) -> dict[str, jax.Array]:
        """Its statistics after a step: momentum * mean + (1 - momentum) * the batch's mean."""
        batch_mean = stats["total"] / jnp.maximum(stats["count"], 1)
        moved = momentum * stats["mean"] + (1 - momentum) * batch_mean
        empty = {name: jnp.zeros_like(stats[name]) for name in ("total", "count")}
        return {"mean": jnp.where(stats["count"] > 0, moved, stats["mean"]), **empty}


def teacher_distribution(scores: jax.Array, centre: jax.Array, temperature: float) -> jax.Array:
    """softmax((scores - centre) / temperature), of [..., P] (DINO, section 3.1)."""
    return jax.nn.softmax((scores - centre) / temperature)


def distillation_loss(scores: jax.Array, goals: jax.Array, temperature: float) -> jax.Array:
    """Cross-entropy [...] of softmax(scores / temperature) with distributions `goals` [..., P]."""
    scores = scores / temperature
    return jax.nn.logsumexp(scores, -1) - (goals * scores).sum(-1)


def entropy(distribution: jax.Array) -> jax.Array:
    """[...] in nats, of distributions [..., P]."""
    return jax.scipy.special.entr(distribution).sum(-1)


def random_crops(
    keys: jax.Array,
    images: jax.Array,
    size: tuple[int, int],
    number: int,
    scale: tuple[float, float],
) -> jax.Array:
    """Crops of random area, aspect ratio (3/4 to 4/3) and place, resized; half of them mirrored.

    Bilinear and antialiased. A side longer than the image is cut to it.

    Args:
      keys: [B], one for each example.
      images: float [B, H, W, C].
      size: (height, width) of the crops.
      number: N, crops of each image.
      scale: least and greatest share of the image's area.

    Returns:
      [B, N, height, width, C].
    """
    whole = jnp.asarray(images.shape[1:3], jnp.float32)

    def crop(key: jax.Array, image: jax.Array) -> jax.Array:
        area, ratio, place, mirror = jax.random.split(key, 4)
        area = jax.random.uniform(area, (), minval=scale[0], maxval=scale[1])
        spread = jnp.log(4 / 3)
        aspect = jnp.exp(jax.random.uniform(ratio, (), minval=-spread, maxval=spread) / 2)
        sides = jnp.sqrt(area * whole.prod()) * jnp.stack([1 / aspect, aspect])
        sides = jnp.minimum(sides, whole)
        corner = jax.random.uniform(place, (2,)) * (whole - sides)
        zoom = jnp.asarray(size, jnp.float32) / sides
        shape = (*size, image.shape[-1])
        cut = jax.image.scale_and_translate(
            image, shape, (0, 1), zoom, -corner * zoom, "linear", antialias=True
        )
        return jnp.where(jax.random.bernoulli(mirror), cut[:, ::-1], cut)

    def crops(key: jax.Array, image: jax.Array) -> jax.Array:
        return jax.vmap(crop, (0, None))(jax.random.split(key, number), image)

    return jax.vmap(crops)(keys, images)
