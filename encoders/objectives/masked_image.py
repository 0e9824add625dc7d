"""Masked autoencoders (He et al., arXiv 2111.06377), of images and of spectrograms.

What differs from other objectives: the encoder sees the visible patches only, and a light decoder,
thrown away afterwards, predicts the pixels of the masked ones. Section numbers are the paper's.
Of spectrograms it is Audio-MAE (arXiv 2207.06405), but for the decoder: the paper's attends within
shifted windows, this one to all patches, which table 1 there has 0.5 mAP below (from memory).
"""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.data.audio import sample_mask
from encoders.errors import ConfigError
from encoders.layers.block import Block, block_flops
from encoders.layers.initializers import weight_init
from encoders.layers.linear import Linear
from encoders.layers.norm import LayerNorm
from encoders.layers.patch import patchify, unpatchify
from encoders.layers.position import sincos2d
from encoders.layers.stack import Stack
from encoders.objectives.base import Batch, Objective, valid_weights
from encoders.types import Outcome


class MaskedImageDecoder(nn.Module):
    """A small transformer from encoded patches to the pixels of the masked ones (section 3).

    Tokens stay in the order the mask was drawn in, visible ones first: positions are added to each
    by its index, so nothing needs to be put back in place.

    Attributes:
      width, depth, num_heads: sizes; the MLP is `mlp_ratio` times as wide.
      weight_init, norm_eps: as in the encoder.
      scan, remat: see `Stack`.
    """

    width: int = 512
    depth: int = 8
    num_heads: int = 16
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    weight_init: str = "mae"
    scan: bool = False
    remat: str = "none"

    @property
    def mlp_dim(self) -> int:
        return round(self.width * self.mlp_ratio)

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        order: jax.Array,
        grid: tuple[int, int],
        num_encoded: int,
        num_masked: int,
        pixels: int,
        *,
        train: bool = False,
    ) -> jax.Array:
        """Predicts masked patches.

        Args:
          tokens: [B, P + V, D] encoded prefix and patches, the latter those of order[:, :V].
          order: [B, N] int32, all patches, visible ones first.
          grid: (rows, columns) of patches.
          num_encoded: V.
          num_masked: M, how many at the end of `order` are predicted.
          pixels: numbers per patch.

        Returns:
          [B, M, pixels], of the patches order[:, -M:].
        """
        init = weight_init(self.weight_init)
        batch, patches = order.shape
        x = Linear(self.width, kernel_init=init.kernel, name="embed")(tokens)
        mask_token = self.param("mask_token", init.cls_token, (self.width,)).astype(x.dtype)
        positions = jnp.asarray(sincos2d(grid, self.width), x.dtype)
        positions = positions.reshape(patches, self.width)[order]

        # The prefix has no place on the grid and so no position.
        num_prefix = tokens.shape[1] - num_encoded
        missing = jnp.broadcast_to(mask_token, (batch, patches - num_encoded, self.width))
        placed = jnp.concatenate([x[:, num_prefix:], missing], axis=1) + positions
        x = jnp.concatenate([x[:, :num_prefix], placed], axis=1)

        stack = Stack(
            self.depth,
            functools.partial(
                Block,
                num_heads=self.num_heads,
                mlp_dim=self.mlp_dim,
                norm_eps=self.norm_eps,
                weight_init=self.weight_init,
            ),
            scan=self.scan,
            remat=self.remat,
        )
        nn.share_scope(self, stack)
        x, _ = stack(x, train=train)
        x = LayerNorm(self.norm_eps, name="norm")(x[:, -num_masked:])
        return Linear(pixels, kernel_init=init.kernel, name="predict")(x)

    def flops(
        self, tokens: int, masked: int, encoder_width: int, encoded: int, pixels: int
    ) -> float:
        """Forward FLOPs per example; a multiply-add counts as two.

        Args:
          tokens: prefix and all patches.
          masked: patches that are predicted.
          encoder_width: D of the encoder.
          encoded: tokens that come from the encoder.
          pixels: numbers per patch.
        """
        total = 2.0 * encoded * encoder_width * self.width + 2.0 * masked * self.width * pixels
        return total + self.depth * block_flops(tokens, self.width, self.mlp_dim, "gelu")


class MaskedImage(Objective):
    """Predicts the pixels of masked patches from the visible ones.

    The loss is the squared error of masked patches: a patch's loss is its mean over pixels, the sum
    is over masked patches, and the weight is their number.

    Attributes:
      encoder: a ViT, also of spectrograms; without pooling it computes nothing in vain.
      mask_ratio: share of the patches that is masked; N * (1 - ratio), rounded down, stay visible.
      decoder: sizes of the decoder.
      norm_pix: whether a patch's pixels are normalised by their own mean and *unbiased* variance
        before they are compared (section 4.1; the variance as in the authors' code).
      encode_mask_tokens: feeds mask tokens to the encoder as well, as the paper's ablation (table
        1c) and BEiT do: about three times the work; here to measure against.
    """

    mask_ratio: float = 0.75
    decoder: MaskedImageDecoder = dataclasses.field(
        default_factory=lambda: MaskedImageDecoder(parent=None)
    )
    norm_pix: bool = True
    encode_mask_tokens: bool = False

    def setup(self) -> None:
        if self.encode_mask_tokens:
            init = weight_init(self.encoder.weight_init).cls_token
            self.encoder_mask_token = self.param(
                "encoder_mask_token", init, (self.encoder.size.width,)
            )

    def num_visible(self, patches: int) -> int:
        """How many of an image's patches stay visible.

        Raises:
          ConfigError: none or all of them would.
        """
        # The guard keeps 10 * (1 - .9) = .9999... from being rounded down to zero.
        visible = int(patches * (1 - self.mask_ratio) + 1e-6)
        if not 0 < visible < patches:
            raise ConfigError(
                f"objective.mask_ratio: {self.mask_ratio} leaves {visible} of {patches} patches "
                "visible; some must be visible and some masked."
            )
        return visible

    def __call__(self, batch: Batch, *, train: bool = False) -> Outcome:
        """Draws masks and returns the reconstruction loss of the batch's `images`."""
        return self.loss(batch, self.noise(batch), train=train)

    def images(self, batch: Batch) -> jax.Array:
        """[B, H, W, C]: batch['image'], or the spectrograms that the encoder makes of waveforms."""
        if "waveform" in batch:
            return self.encoder.spectrogram(batch["waveform"], sample_mask(batch))
        return batch["image"]

    def noise(self, batch: Batch) -> jax.Array:
        """[B, N] uniform noise whose smallest entries say which patches stay visible."""
        grid = self.encoder.grid(self.images(batch).shape[1:3])
        shape = (grid[0] * grid[1],)
        keys = self.rng_per_example(batch)
        return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)

    def loss(self, batch: Batch, noise: jax.Array, *, train: bool = False) -> Outcome:
        """The loss for given noise [B, N]."""
        images = self.images(batch)
        prediction, masked = self.predict(images, noise, train=train)
        target, _, _ = self.targets(images, masked)
        error = jnp.square(prediction.astype(jnp.float32) - target).mean(-1).sum(-1)
        valid = valid_weights(batch)
        weight = masked.shape[1] * valid.sum()
        return Outcome((error * valid).sum(), weight)

    def predict(
        self, images: jax.Array, noise: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes what is visible and predicts the rest.

        Returns:
          [B, M, ph*pw*C] predictions, and [B, M] int32 which patches they are of.
        """
        grid, channels = self.encoder.grid(images.shape[1:3]), images.shape[-1]
        order = jnp.argsort(noise, axis=1)
        patches = order.shape[1]
        visible = self.num_visible(patches)
        masked = order[:, visible:]
        if self.encode_mask_tokens:
            hidden = jnp.argsort(order, axis=1) >= visible
            replace = (hidden, self.encoder_mask_token)
            encoded = self.encoder(images, keep=order, replace=replace, train=train)
        else:
            encoded = self.encoder(images, keep=order[:, :visible], train=train)
        prediction = self.decoder(
            encoded.tokens,
            order,
            grid,
            patches if self.encode_mask_tokens else visible,
            patches - visible,
            self.encoder.patch[0] * self.encoder.patch[1] * channels,
            train=train,
        )
        return prediction, masked

    def targets(
        self, images: jax.Array, masked: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What masked patches [B, M] should be predicted as.

        Returns:
          float32 target [B, M, ph*pw*C], and the mean and standard deviation [B, M, 1] that undo
          the normalisation (0 and 1 without norm_pix).
        """
        pixels = patchify(images.astype(jnp.float32), self.encoder.patch)
        pixels = jnp.take_along_axis(pixels, masked[..., None], axis=1)
        if not self.norm_pix:
            shape = (*masked.shape, 1)
            return pixels, jnp.zeros(shape), jnp.ones(shape)
        mean = pixels.mean(-1, keepdims=True)
        std = jnp.sqrt(pixels.var(-1, keepdims=True, ddof=1) + 1e-6)
        return (pixels - mean) / std, mean, std

    def reconstruct(self, batch: Batch) -> dict[str, jax.Array]:
        """Pictures of what the model does, each [B, H, W, C] and normalised like the input.

        Returns:
          'target', the image; 'masked', the same with masked patches at zero (the mean colour); and
          'prediction', the same with masked patches predicted, in the true patch's mean and scale.
        """
        images = self.images(batch).astype(jnp.float32)
        prediction, masked = self.predict(images, self.noise(batch))
        _, mean, std = self.targets(images, masked)
        patch, grid = self.encoder.patch, self.encoder.grid(images.shape[1:3])
        pixels = patchify(images, patch)
        row = jnp.arange(images.shape[0])[:, None]
        filled = pixels.at[row, masked].set(prediction.astype(jnp.float32) * std + mean)
        return {
            "target": images,
            "masked": unpatchify(pixels.at[row, masked].set(0.0), patch, grid),
            "prediction": unpatchify(filled, patch, grid),
        }

    def flops(self, image_size: tuple[int, int] | int) -> float:
        """Forward FLOPs per example: the encoder on what it is given, and the decoder on all.

        Args:
          image_size: (height, width) in pixels; or samples, of a waveform.
        """
        if isinstance(image_size, int):
            image_size = self.encoder.image_size
        grid, prefix = self.encoder.grid(image_size), self.encoder.num_prefix
        patches = grid[0] * grid[1]
        visible = self.num_visible(patches)
        encoded = patches if self.encode_mask_tokens else visible
        return self.encoder.flops(image_size, kept=encoded) + self.decoder.flops(
            tokens=patches + prefix,
            masked=patches - visible,
            encoder_width=self.encoder.size.width,
            encoded=encoded + prefix,
            pixels=self.encoder.patch[0] * self.encoder.patch[1] * self.encoder.channels,
        )
