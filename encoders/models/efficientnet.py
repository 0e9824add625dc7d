"""EfficientNet (arXiv 1905.11946): inverted bottlenecks, scaled in width, depth and image size.

Every convolution has a batch norm after it; their running statistics are in the collection 'stats'.
ALIGN's image tower is one without the last convolution. A map is what a stage ends with; the last
one is the tokens, row by row.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax

from encoders.errors import ConfigError, nearest
from encoders.layers.convolution import (
    Conv,
    ConvNet,
    ConvSize,
    convolution_flops,
    output_size,
)
from encoders.layers.inverted_bottleneck import (
    HEAD,
    SIZES,
    STAGES,
    STEM,
    InvertedBottleneck,
    plan,
    scaled,
    squeezed,
)
from encoders.layers.norm import BatchNorm


class EfficientNet(ConvNet):
    """A stem, seven stages of inverted bottlenecks, and the mean of what is left.

    Attributes:
      variant: a name of SIZES.
      width_factor, depth_factor: override the variant's.
      head: whether a last convolution widens the map (to 1,280 channels in B0); ALIGN has none.
      pool: 'mean', or 'none'.
      padding: 'same' as published; 'alike' as networks that were trained in PyTorch; 'late' as
        transformers, which pads sizes that are odd as if they were even, but for `odd_blocks`.
      odd_blocks: of padding 'late', the blocks that are padded alike on both sides.
      drop_path: rate of the last block, rising linearly from 0; stream 'dropout'.
      norm_momentum: how much of the running statistics a step keeps.
      norm_eps: of the batch norms.
    """

    variant: str = "B0"
    width_factor: float | None = None
    depth_factor: float | None = None
    head: bool = True
    pool: Literal["mean", "none"] = "mean"
    padding: Literal["same", "alike", "late"] = "same"
    odd_blocks: tuple[int, ...] = ()
    drop_path: float = 0.0
    norm_momentum: float = 0.99
    norm_eps: float = 1e-3

    @property
    def factors(self) -> tuple[float, float]:
        """Of width and depth.

        Raises:
          ConfigError: the variant is unknown.
        """
        if self.variant not in SIZES:
            raise ConfigError(
                f"model.variant: unknown size '{self.variant}'.{nearest(self.variant, SIZES)}"
            )
        given = (self.width_factor, self.depth_factor)
        ours = SIZES[self.variant][:2]
        return tuple(b if a is None else a for a, b in zip(given, ours, strict=True))

    @property
    def size(self) -> ConvSize:
        """Width of the vectors, number of stages."""
        width = scaled(HEAD if self.head else STAGES[-1][3], self.factors[0])
        return ConvSize(width, len(STAGES))

    def _maps(self, images: jax.Array, train: bool) -> list[jax.Array]:
        plans = list(plan(*self.factors))

        def norm(x: jax.Array, name: str) -> jax.Array:
            return BatchNorm(self.norm_momentum, self.norm_eps, name=name)(x, train=train)

        x = Conv(scaled(STEM, self.factors[0]), 3, 2, self.padding, name="stem")(images)
        x = nn.silu(norm(x, "stem_norm"))
        maps = [x] * len(STAGES)
        for number, block in enumerate(plans):
            late = self.padding == "late" and number in self.odd_blocks
            x = InvertedBottleneck(
                block,
                padding="alike" if late else self.padding,
                drop_path=self.drop_path * number / len(plans),
                norm_momentum=self.norm_momentum,
                norm_eps=self.norm_eps,
                name=f"blocks_{number}",
            )(x, train=train)
            maps[block.stage] = x
        if self.head:
            x = nn.silu(norm(Conv(self.size.width, 1, name="head")(x), "head_norm"))
        return [*maps, x]

    def flops(self, image_size: tuple[int, int]) -> float:
        """Forward FLOPs per RGB image; a multiply-add counts as two, elementwise work as none."""
        at = output_size(image_size, 2)
        total = convolution_flops(at, 3, 3, scaled(STEM, self.factors[0]))
        for block in plan(*self.factors):
            inside = block.channels * block.expansion
            if block.expansion > 1:
                total += convolution_flops(at, 1, block.channels, inside)
            at = output_size(at, block.stride)
            total += convolution_flops(at, block.kernel, inside, inside, depthwise=True)
            total += 4.0 * inside * squeezed(block.channels)
            total += convolution_flops(at, 1, inside, block.features)
        if self.head:
            total += convolution_flops(at, 1, block.features, self.size.width)
        return total
