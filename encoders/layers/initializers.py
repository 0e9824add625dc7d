"""Initial weights, by the name of the paper or code base whose convention they follow."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.errors import ConfigError, nearest
from encoders.layers.position import sincos2d

Initializer = Callable[..., jax.Array]


def trunc_normal(std: float) -> Initializer:
    """A normal distribution of standard deviation `std` cut at ±2, as PyTorch code uses it.

    The cut is in absolute units, as in `torch.nn.init.trunc_normal_`: at std 0.02 it never bites.
    """

    def initialize(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        if not std:
            return jnp.zeros(shape, dtype)
        return std * jax.random.truncated_normal(key, -2 / std, 2 / std, shape, dtype)

    return initialize


def xavier_uniform(fused: int = 1) -> Initializer:
    """Glorot's uniform initialiser, for a kernel that is one of `fused` stored side by side.

    MAE initialises query, key and value as one [D, 3D] matrix, whose limit is sqrt(6 / 4D) and not
    the sqrt(6 / 2D) of three separate ones.
    """

    def initialize(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        fan_in, fan_out = shape
        limit = math.sqrt(6 / (fan_in + fused * fan_out))
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return initialize


@dataclasses.dataclass(frozen=True)
class WeightInit:
    """Initialisers of one convention; kernels are [in, out] and biases start at zero unless said.

    Attributes:
      patch: the patch embedding's kernel.
      qkv: query, key and value kernels.
      kernel: every other kernel.
      mlp_bias: biases of the MLP.
      cls_token: class token, registers and mask tokens, [D] or [R, D].
      positions: learned position embeddings [gh, gw, D].
      probe: the query of attention pooling [1, D].
    """

    patch: Initializer
    qkv: Initializer
    kernel: Initializer
    mlp_bias: Initializer
    cls_token: Initializer
    positions: Initializer
    probe: Initializer


def _inverse_sqrt_width(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    return jax.random.normal(key, shape, dtype) / math.sqrt(shape[-1])


def _sincos(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    return jnp.asarray(sincos2d(shape[:2], shape[2]), dtype)


WEIGHT_INITS = {
    # ViT and DeiT in timm, DINOv2: everything normal with standard deviation .02.
    "trunc_normal": WeightInit(
        patch=nn.initializers.lecun_normal(),
        qkv=trunc_normal(0.02),
        kernel=trunc_normal(0.02),
        mlp_bias=nn.initializers.zeros,
        cls_token=nn.initializers.normal(1e-6),
        positions=trunc_normal(0.02),
        probe=_inverse_sqrt_width,
    ),
    # MAE (arXiv 2111.06377, appendix A.1: "we use xavier_uniform to initialize all Transformer
    # blocks"), on the fused qkv as its code does; tokens normal with standard deviation .02.
    # Learned positions start as the fixed ones of pre-training: its fine-tuning trains them.
    "mae": WeightInit(
        patch=xavier_uniform(),
        qkv=xavier_uniform(fused=3),
        kernel=xavier_uniform(),
        mlp_bias=nn.initializers.zeros,
        cls_token=nn.initializers.normal(0.02),
        positions=_sincos,
        probe=nn.initializers.normal(0.02),
    ),
    # The original ViT's JAX code and "Better plain ViT baselines" (arXiv 2205.01580).
    "big_vision": WeightInit(
        patch=nn.initializers.lecun_normal(),
        qkv=xavier_uniform(),
        kernel=xavier_uniform(),
        mlp_bias=nn.initializers.normal(1e-6),
        cls_token=nn.initializers.zeros,
        positions=_inverse_sqrt_width,
        probe=xavier_uniform(),
    ),
}


def weight_init(name: str) -> WeightInit:
    """Looks up a convention in WEIGHT_INITS.

    Raises:
      ConfigError: there is none of that name.
    """
    if name not in WEIGHT_INITS:
        raise ConfigError(f"weight_init: unknown '{name}'.{nearest(name, WEIGHT_INITS)}")
    return WEIGHT_INITS[name]
