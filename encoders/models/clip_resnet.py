"""CLIP's residual networks (arXiv 2103.00020, section 2.4).

What differs from `ResNet`: three convolutions in place of the stem's one; pixels are averaged, not
skipped, where a map gets smaller (arXiv 1904.11486, section 3.3); and a map is pooled by attention,
whose query is the mean of its pixels.
"""

from __future__ import annotations

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError, nearest
from encoders.layers.attention import dot_product_attention
from encoders.layers.convolution import Conv, average_pool, convolution_flops, mean_of
from encoders.layers.linear import Linear
from encoders.layers.position import resize_positions
from encoders.models.resnet import Bottleneck, ResNet

# Blocks, width, side of the images: RN50x4 and so on are scaled as EfficientNets are.
CLIP_SIZES = {
    "RN50": ((3, 4, 6, 3), 64, 224),
    "RN101": ((3, 4, 23, 3), 64, 224),
    "RN50x4": ((4, 6, 10, 6), 80, 288),
    "RN50x16": ((6, 8, 18, 8), 96, 384),
    "RN50x64": ((3, 15, 36, 10), 128, 448),
}


class CLIPResNet(ResNet):
    """CLIP's ResNet; the attention's output projection is that of `Towers`, with a bias.

    Attributes:
      variant: a name of CLIP_SIZES.
      width: channels of the first stage, inside its blocks; None for the variant's.
      pool: 'attention', 'mean' or 'none'.
      head_dim: size of the attention's heads.
      position_grid: (rows, columns) of the attention's positions; None for those of the first
        images, and then they are resized to other images'.
    """

    variant: str = "RN50"
    width: int | None = None
    pool: Literal["attention", "mean", "none"] = "attention"
    head_dim: int = 64
    position_grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.width is None:
            self.width = self._sizes()[1]
        super().__post_init__()

    def _sizes(self) -> tuple[tuple[int, ...], int, int]:
        if self.variant not in CLIP_SIZES:
            raise ConfigError(
                f"model.variant: unknown '{self.variant}'.{nearest(self.variant, CLIP_SIZES)}"
            )
        return CLIP_SIZES[self.variant]

    def _size(self) -> tuple[tuple[int, ...], bool]:
        return self._sizes()[0], True

    def _block(self) -> type[nn.Module]:
        return _Averaged

    def _stem(self, x: jax.Array, norm: functools.partial, train: bool) -> jax.Array:
        for number, width in enumerate((self.width // 2, self.width // 2, self.width), start=1):
            x = Conv(width, 3, 2 if number == 1 else 1, name=f"stem{number}")(x)
            x = nn.relu(norm(name=f"stem{number}_norm")(x, train=train))
        return average_pool(x, 2)

    def _stem_flops(self, image_size: tuple[int, int]) -> tuple[float, tuple[int, int]]:
        at = tuple(-(-side // 2) for side in image_size)
        half = self.width // 2
        total = sum(convolution_flops(at, 3, c, f) for c, f in ((3, half), (half, half)))
        total += convolution_flops(at, 3, half, self.width)
        return total, tuple(side // 2 for side in at)

    def _pool(self, x: jax.Array) -> jax.Array | None:
        if self.pool != "attention":
            return super()._pool(x)
        return AttentionPool(self.head_dim, self.position_grid, name="pool_attention")(x)

    def _pool_flops(self, at: tuple[int, int]) -> float:
        if self.pool != "attention":
            return super()._pool_flops(at)
        # One query, as many keys and values as pixels and their mean, and no last projection.
        tokens, width = at[0] * at[1] + 1, self.size.width
        return 2.0 * (1 + 2 * tokens) * width**2 + 4.0 * tokens * width


class _Averaged(Bottleneck):
    """A bottleneck whose convolutions have stride 1, with a mean of pixels where it had more."""

    def _branch(self, x: jax.Array, train: bool) -> jax.Array:
        y = nn.relu(self._convolved(x, train, 1, self.features, 1))
        y = nn.relu(self._convolved(y, train, 2, self.features, 3))
        y = average_pool(y, self.stride) if self.stride > 1 else y
        return self._last(y, train, 3, 1)

    def _shortcut(self, x: jax.Array, train: bool) -> jax.Array:
        x = average_pool(x, self.stride) if self.stride > 1 else x
        x = Conv(self.features * self.growth, 1, name="shortcut")(x)
        return self.norm(name="shortcut_norm")(x, train=train)

    @staticmethod
    def flops(
        before: tuple[int, int], after: tuple[int, int], channels: int, features: int, growth: int
    ) -> float:
        """As that of `BasicBlock`; the 3 x 3 convolution reads the map before it gets smaller."""
        total = Bottleneck.flops(before, after, channels, features, growth)
        total += convolution_flops(before, 3, features, features)
        return total - convolution_flops(after, 3, features, features)


class AttentionPool(nn.Module):
    """What the mean of a map's pixels finds in them and in itself, without the last projection.

    Attributes:
      head_dim: size of a head.
      grid: (rows, columns) of the positions, or None for those of the map.
    """

    head_dim: int
    grid: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, C].

        Raises:
          ConfigError: the heads do not divide C.
        """
        batch, height, width, channels = x.shape
        if channels % self.head_dim:
            raise ConfigError(f"model.head_dim: {self.head_dim} does not divide {channels}.")
        init = nn.initializers.normal(channels**-0.5)
        shape = (*(self.grid or (height, width)), channels)
        positions = self.param("positions", init, shape)
        if shape[:2] != (height, width):
            positions = resize_positions(positions, (height, width))
        mean_position = self.param("mean_position", init, (channels,))
        mean = mean_of(x) + mean_position.astype(x.dtype)
        pixels = x + positions.astype(x.dtype)
        tokens = jnp.concatenate([mean[:, None], pixels.reshape(batch, -1, channels)], axis=1)

        def project(source: jax.Array, name: str) -> jax.Array:
            y = Linear(channels, kernel_init=init, name=name)(source)
            return y.reshape(batch, -1, channels // self.head_dim, self.head_dim)

        query, key = project(tokens[:, :1], "query"), project(tokens, "key")
        return dot_product_attention(query, key, project(tokens, "value")).reshape(batch, channels)
