"""Inverted bottlenecks, and which of them EfficientNet (arXiv 1905.11946) is made of.

A block widens its input, filters every channel by itself, weighs the channels by what all pixels
have in common (squeeze and excitation, 1709.01507), and narrows again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax

from encoders.layers.convolution import Conv, Padding, drop_branch, mean_of
from encoders.layers.linear import Linear
from encoders.layers.norm import BatchNorm

# Of B0 (table 1): kernel, stride, expansion, channels, blocks.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM, HEAD = 32, 1280
# Factors of width and depth, and the side of the images (section 5; L2: arXiv 1911.04252).
SIZES = {
    "B0": (1.0, 1.0, 224),
    "B1": (1.0, 1.1, 240),
    "B2": (1.1, 1.2, 260),
    "B3": (1.2, 1.4, 300),
    "B4": (1.4, 1.8, 380),
    "B5": (1.6, 2.2, 456),
    "B6": (1.8, 2.6, 528),
    "B7": (2.0, 3.1, 600),
    "L2": (4.3, 5.3, 800),
}


class Plan(NamedTuple):
    """One block: its stage, and what it is made of."""

    stage: int
    kernel: int
    stride: int
    expansion: int
    channels: int
    features: int
    first: bool  # of its stage: all others add what they make to what they get


def scaled(base: int, width_factor: float) -> int:
    """So many channels of B0, scaled, as a multiple of 8 that is not below 90 % of them."""
    wanted = base * width_factor
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def plan(width_factor: float, depth_factor: float) -> Iterator[Plan]:
    """The blocks, one after another."""
    channels = scaled(STEM, width_factor)
    for stage, (kernel, stride, expansion, base, blocks) in enumerate(STAGES):
        features = scaled(base, width_factor)
        for index in range(math.ceil(depth_factor * blocks)):
            strided = 1 if index else stride
            yield Plan(stage, kernel, strided, expansion, channels, features, index == 0)
            channels = features


def squeezed(channels: int) -> int:
    """Numbers that a block's channels are squeezed into: a quarter of those that it gets."""
    return max(1, channels // 4)


class InvertedBottleneck(nn.Module):
    """A block of EfficientNet (MBConv).

    Attributes:
      plan: what it is made of.
      padding: of the filter; see `Conv`.
      drop_path: rate at which the branch is dropped.
      norm_momentum, norm_eps: of the batch norms.
    """

    plan: Plan
    padding: Padding = "same"
    drop_path: float = 0.0
    norm_momentum: float = 0.99
    norm_eps: float = 1e-3

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """[B, H, W, channels] -> [B, H / stride, W / stride, features]."""
        plan = self.plan
        inside = plan.channels * plan.expansion

        def norm(y: jax.Array, name: str) -> jax.Array:
            return BatchNorm(self.norm_momentum, self.norm_eps, name=name)(y, train=train)

        y = x
        if plan.expansion > 1:
            y = nn.silu(norm(Conv(inside, 1, name="expand")(y), "expand_norm"))
        y = Conv(inside, plan.kernel, plan.stride, self.padding, depthwise=True, name="filter")(y)
        y = nn.silu(norm(y, "filter_norm"))
        weights = nn.silu(Linear(squeezed(plan.channels), name="squeeze")(mean_of(y)))
        weights = nn.sigmoid(Linear(inside, name="excite")(weights))
        y = y * weights[:, None, None].astype(y.dtype)
        y = norm(Conv(plan.features, 1, name="project")(y), "project_norm")
        if not plan.first:
            y = x + drop_branch(self, y, self.drop_path, train)
        return y
