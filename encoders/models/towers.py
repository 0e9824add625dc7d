"""Two towers, one for images and one for texts, that share a space (CLIP, arXiv 2103.00020).

Each is any encoder of the table. Its pooled vector, projected or not, has length 1, and the cosine
of an image and a text, times a learnt scale and plus a learnt bias, says how well they fit. SigLIP
(2303.15343), LiT (2111.07991), ALIGN (2102.05918) and FLIP (2212.00794) differ in the towers, the
loss, and what is locked.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError, nearest
from encoders.layers.linear import Linear
from encoders.layers.pooling import unit
from encoders.types import Encoded

Projection = Literal["none", "linear", "linear_bias"]
TOWERS = ("image", "text")


class Towers(nn.Module):
    """An image tower and a text tower.

    Attributes:
      image: an encoder of images that pools.
      text: an encoder of token ids that pools.
      embedding_dim: E, size of the shared space; None is the towers' own width, where they agree.
      image_projection, text_projection: what stands between a tower and the space, 'none', 'linear'
        or 'linear_bias'. CLIP's are linear; SigLIP has none on images.
      logit_scale: initial logarithm of the cosines' scale: log(1 / .07) in CLIP, log 10 in SigLIP.
      logit_bias: initial bias of the logits, -10 in SigLIP; None for no bias.
      max_logit_scale: what training keeps `logit_scale` below, log 100 in CLIP; None for no limit.
      locked: towers that stay as they are: without dropout, gradient, or optimizer state (LiT). The
        projections, which are no part of a tower, are trained.
    """

    image: nn.Module
    text: nn.Module
    embedding_dim: int | None = None
    image_projection: Projection = "none"
    text_projection: Projection = "none"
    logit_scale: float = math.log(1 / 0.07)
    logit_bias: float | None = None
    max_logit_scale: float | None = None
    locked: tuple[str, ...] = ()

    modality = "image_text"

    @property
    def names(self) -> tuple[str, ...]:
        """What there are towers of."""
        return TOWERS

    @property
    def dim(self) -> int:
        """E, the size of the shared space.

        Raises:
          ConfigError: the towers give vectors of different size.
        """
        sizes = {}
        for name in self.names:
            projection = getattr(self, f"{name}_projection")
            if projection != "none" and self.embedding_dim is None:
                raise ConfigError(
                    f"model.{name}_projection: '{projection}' needs model.embedding_dim, the size "
                    "to project to."
                )
            width = getattr(self, name).size.width
            sizes[name] = width if projection == "none" else self.embedding_dim
        if len({*sizes.values()}) > 1 or self.embedding_dim not in (None, sizes["image"]):
            found = " and ".join(f"{size} for {name}" for name, size in sizes.items())
            raise ConfigError(
                f"model.embedding_dim: the towers give vectors of {found}, where "
                f"{self.embedding_dim or 'one size'} is expected; project them with "
                "image_projection and the like."
            )
        return sizes["image"]

    @property
    def vocab_size(self) -> int:
        """Ids that the text tower knows."""
        return self.text.vocab_size

    @property
    def frozen(self) -> tuple[str, ...]:
        """Regexes of the parameters that locking leaves without gradient.

        Raises:
          ConfigError: a locked tower is none.
        """
        for name in self.locked:
            if name not in self.names:
                hint = nearest(name, self.names)
                raise ConfigError(f"model.locked: unknown tower '{name}'.{hint}")
        return tuple(f"{name}/.*" for name in self.locked)

    def setup(self) -> None:
        _ = self.frozen  # both properties check fields
        limit = math.log(jnp.finfo(jnp.float32).max)
        if self.max_logit_scale is not None:
            limit = min(limit, self.max_logit_scale)
        if not self.logit_scale <= limit:
            raise ConfigError(
                f"model.logit_scale: {self.logit_scale} is a logarithm, and more than {limit:.4g}, "
                "the most that logits may be scaled by."
            )
        heads = {}
        for name in self.names:
            projection = getattr(self, f"{name}_projection")
            if projection != "none":
                use_bias = projection == "linear_bias"
                heads[name] = Linear(self.dim, use_bias, name=f"{name}_projection")
        self.heads = heads
        scale = nn.initializers.constant(self.logit_scale)
        self.log_scale = self.param("logit_scale", scale, ())
        self.bias = None
        if self.logit_bias is not None:
            self.bias = self.param("logit_bias", nn.initializers.constant(self.logit_bias), ())

    def __call__(
        self,
        images: jax.Array,
        ids: jax.Array,
        *,
        segments: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """The embeddings of B images and B texts, each [B, E]."""
        return (
            self.embed_image(images, train=train),
            self.embed_text(ids, segments=segments, train=train),
        )

    def embed_image(self, images: jax.Array, *, train: bool = False, **given: Any) -> jax.Array:
        """Vectors of length 1 for images.

        Args:
          images: [B, H, W, C] float, already normalised.
          train: whether dropout, drop path and token dropping are on, unless the tower is locked.
          **given: what the tower is called with besides.

        Returns:
          [B, E] float32.

        Raises:
          ConfigError: the tower does not pool, or the towers' vectors differ in size.
        """
        return self.encode("image", images, train=train, **given)[1]

    def embed_text(
        self,
        ids: jax.Array,
        *,
        segments: jax.Array | None = None,
        mask: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Vectors of length 1 for texts.

        Args:
          ids: [B, T] int32.
          segments: [B, T] int32, 1 for real tokens and 0 for padding; or `mask`, [B, T] bool.
          train: whether dropout is on, unless the tower is locked.

        Returns:
          [B, E] float32.

        Raises:
          ConfigError: as `embed_image`, or there are more tokens than the tower has positions.
        """
        given = {"segments": segments, "mask": mask}
        given = {key: value for key, value in given.items() if value is not None}
        return self.encode("text", ids, train=train, **given)[1]

    def encode(
        self, name: str, inputs: jax.Array, *, train: bool = False, **given: Any
    ) -> tuple[Encoded, jax.Array]:
        """What a tower, 'image' or 'text', makes of its inputs, and their embeddings [B, E].

        Raises:
          ConfigError: the tower does not pool, or the towers' vectors differ in size.
        """
        _ = self.dim
        locked = name in self.locked
        encoded = getattr(self, name)(inputs, train=train and not locked, **given)
        if encoded.pooled is None:
            raise ConfigError(f"model.{name}.pool: a tower gives one vector; 'none' gives none.")
        if locked:
            encoded = jax.lax.stop_gradient(encoded)
        pooled = encoded.pooled
        return encoded, unit(self.heads[name](pooled) if name in self.heads else pooled)

    def scale_and_bias(self) -> tuple[jax.Array, jax.Array]:
        """What cosines are multiplied by and what is then added to them, float32 scalars."""
        scale = jnp.exp(self.log_scale.astype(jnp.float32))
        return scale, jnp.float32(0.0) if self.bias is None else self.bias.astype(jnp.float32)

    def logits(self, image_embeddings: jax.Array, text_embeddings: jax.Array) -> jax.Array:
        """How well each image fits each text, float32 [N, M], from embeddings [N, E], [M, E]."""
        scale, bias = self.scale_and_bias()
        cosine = jnp.einsum("ne,me->nm", image_embeddings, text_embeddings, precision="highest")
        return scale * cosine + bias

    def flops(self, input_size: tuple[tuple[int, int], int], train: bool = False) -> float:
        """Forward FLOPs of one pair.

        Args:
          input_size: ((height, width) of the image, tokens of the text).
          train: counts the tokens that are encoded in training, and a locked tower as a third:
            training costs three forwards, but only one of what gets no gradient.
        """
        image_size, length = input_size
        kept = ()
        if train and hasattr(self.image, "num_kept"):
            kept = (self.image.num_kept(image_size),)
        towers = {"image": self.image.flops(image_size, *kept), "text": self.text.flops(length)}
        total = 0.0
        for name, flops in towers.items():
            total += flops / 3 if train and name in self.locked else flops
            total += self._projection_flops(name)
        return total

    def _projection_flops(self, name: str) -> float:
        if getattr(self, f"{name}_projection") == "none":
            return 0.0
        return 2.0 * getattr(self, name).size.width * self.dim
