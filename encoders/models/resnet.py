"""Residual networks (arXiv 1512.03385), in the form that all use today.

Of the paper's, it differs in the stride of a bottleneck, which is on the 3 x 3 convolution (v1.5).
Every convolution has a batch norm after it; their running statistics are in the collection 'stats'.
A map is what a stage ends with; the last one is the tokens, row by row.
"""

from __future__ import annotations

import functools
from typing import Literal

import flax.linen as nn
import jax

from encoders.errors import ConfigError, nearest
from encoders.layers.convolution import (
    Conv,
    ConvNet,
    ConvSize,
    convolution_flops,
    drop_branch,
    max_pool,
    output_size,
)
from encoders.layers.norm import BatchNorm

# Blocks of every stage, and whether they are bottlenecks.
SIZES = {
    "18": ((2, 2, 2, 2), False),
    "34": ((3, 4, 6, 3), False),
    "50": ((3, 4, 6, 3), True),
    "101": ((3, 4, 23, 3), True),
    "152": ((3, 8, 36, 3), True),
}
_GROWTH = 4  # channels of a bottleneck's output, by those inside


class ResNet(ConvNet):
    """A stem, four stages of residual blocks, and the mean of what is left.

    Attributes:
      variant: a depth of SIZES.
      width: channels of the first stage, inside its blocks.
      blocks: of every stage; None for the variant's.
      pool: 'mean', or 'none'.
      drop_path: rate of the last block, rising linearly from 0; stream 'dropout'.
      norm_momentum: how much of the running statistics a step keeps.
    """

    variant: str = "50"
    width: int = 64
    blocks: tuple[int, ...] | None = None
    pool: Literal["mean", "none"] = "mean"
    drop_path: float = 0.0
    norm_momentum: float = 0.9

    @property
    def stages(self) -> tuple[int, ...]:
        """Blocks of every stage.

        Raises:
          ConfigError: the variant is unknown.
        """
        return self._size()[0] if self.blocks is None else tuple(self.blocks)

    @property
    def growth(self) -> int:
        """Channels of a block's output, by those inside."""
        return _GROWTH if self._size()[1] else 1

    def _size(self) -> tuple[tuple[int, ...], bool]:
        if self.variant not in SIZES:
            raise ConfigError(
                f"model.variant: unknown depth '{self.variant}'.{nearest(self.variant, SIZES)}"
            )
        return SIZES[self.variant]

    @property
    def size(self) -> ConvSize:
        """Width of the vectors, number of stages."""
        stages = len(self.stages)
        return ConvSize(self.width * 2 ** (stages - 1) * self.growth, stages)

    def _maps(self, images: jax.Array, train: bool) -> list[jax.Array]:
        norm = functools.partial(BatchNorm, self.norm_momentum)
        make = functools.partial(self._block(), norm=norm, growth=self.growth)
        x = self._stem(images, norm, train)
        maps, count, total = [], 0, sum(self.stages)
        for stage, blocks in enumerate(self.stages):
            for index in range(blocks):
                rate = self.drop_path * count / max(total - 1, 1)
                stride = 2 if stage and not index else 1
                block = make(self.width * 2**stage, stride, drop_path=rate, name=f"blocks_{count}")
                x = block(x, train=train)
                count += 1
            maps.append(x)
        return maps

    def _block(self) -> type[nn.Module]:
        return Bottleneck if self.growth > 1 else BasicBlock

    def _stem(self, x: jax.Array, norm: functools.partial, train: bool) -> jax.Array:
        x = Conv(self.width, 7, 2, name="stem")(x)
        return max_pool(nn.relu(norm(name="stem_norm")(x, train=train)))

    def flops(self, image_size: tuple[int, int]) -> float:
        """Forward FLOPs per RGB image; a multiply-add counts as two, elementwise work as none."""
        total, at = self._stem_flops(image_size)
        channels = self.width
        for stage, blocks in enumerate(self.stages):
            inside = self.width * 2**stage
            for index in range(blocks):
                before = at
                at = output_size(at, 2 if stage and not index else 1)
                total += self._block().flops(before, at, channels, inside, self.growth)
                channels = inside * self.growth
        return total + self._pool_flops(at)

    def _pool_flops(self, at: tuple[int, int]) -> float:
        """FLOPs of pooling a map of that size; of a mean nothing."""
        del at
        return 0.0

    def _stem_flops(self, image_size: tuple[int, int]) -> tuple[float, tuple[int, int]]:
        """FLOPs, and the size of what the first stage gets."""
        at = output_size(image_size, 2)
        return convolution_flops(at, 7, 3, self.width), output_size(at, 2)


class BasicBlock(nn.Module):
    """relu(x + norm2(conv2(relu(norm1(conv1(x)))))), both 3 x 3; x is projected where sizes differ.

    Attributes:
      features: channels inside.
      stride: of the block.
      norm: makes a batch norm.
      growth: channels of the output, by those inside.
      drop_path: rate at which the branch is dropped.
    """

    features: int
    stride: int
    norm: functools.partial
    growth: int = 1
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', features * growth]."""
        y = drop_branch(self, self._branch(x, train), self.drop_path, train)
        if x.shape != y.shape:
            x = self._shortcut(x, train)
        return nn.relu(x + y)

    def _convolved(
        self, x: jax.Array, train: bool, number: int, features: int, kernel: int, stride: int = 1
    ) -> jax.Array:
        x = Conv(features, kernel, stride, name=f"conv{number}")(x)
        return self.norm(name=f"norm{number}")(x, train=train)

    def _last(self, x: jax.Array, train: bool, number: int, kernel: int) -> jax.Array:
        # Blocks begin as the identity (arXiv 1706.02677, section 5.1).
        x = Conv(self.features * self.growth, kernel, name=f"conv{number}")(x)
        norm = self.norm(name=f"norm{number}", scale_init=nn.initializers.zeros)
        return norm(x, train=train)

    def _branch(self, x: jax.Array, train: bool) -> jax.Array:
        y = nn.relu(self._convolved(x, train, 1, self.features, 3, self.stride))
        return self._last(y, train, 2, 3)

    def _shortcut(self, x: jax.Array, train: bool) -> jax.Array:
        x = Conv(self.features * self.growth, 1, self.stride, name="shortcut")(x)
        return self.norm(name="shortcut_norm")(x, train=train)

    @staticmethod
    def flops(
        before: tuple[int, int], after: tuple[int, int], channels: int, features: int, growth: int
    ) -> float:
        """Forward FLOPs, from maps of one size with so many channels to maps of another."""
        total = convolution_flops(after, 3, channels, features)
        total += convolution_flops(after, 3, features, features)
        projected = before != after or channels != features
        return total + projected * convolution_flops(after, 1, channels, features)


class Bottleneck(BasicBlock):
    """1 x 1 to fewer channels, 3 x 3, and 1 x 1 to four times as many."""

    def _branch(self, x: jax.Array, train: bool) -> jax.Array:
        y = nn.relu(self._convolved(x, train, 1, self.features, 1))
        y = nn.relu(self._convolved(y, train, 2, self.features, 3, self.stride))
        return self._last(y, train, 3, 1)

    @staticmethod
    def flops(
        before: tuple[int, int], after: tuple[int, int], channels: int, features: int, growth: int
    ) -> float:
        """As that of `BasicBlock`."""
        out = features * growth
        total = convolution_flops(before, 1, channels, features)
        total += convolution_flops(after, 3, features, features)
        total += convolution_flops(after, 1, features, out)
        projected = before != after or channels != out
        return total + projected * convolution_flops(after, 1, channels, out)
