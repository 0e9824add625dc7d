"""Layer normalisation, and batch normalisation with its statistics in a collection of their own."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float) -> jax.Array:
    """Normalises the last axis of x [..., D] in float32; returns x's dtype.

    (x - mean) / sqrt(var + eps) * scale + bias, with the biased variance (arXiv 1607.06450).
    """
    y = _scaled(x, scale.astype(jnp.float32), eps)
    if bias is not None:
        y = y + bias.astype(jnp.float32)
    return y.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _scaled(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """(x - mean) / sqrt(var + eps) * scale in float32; keeps x, mean and 1 / sqrt(var + eps)."""
    return _scaled_forward(x, scale, eps)[0]


def _scaled_forward(x: jax.Array, scale: jax.Array, eps: float) -> tuple[jax.Array, tuple]:
    y = x.astype(jnp.float32)
    mean = y.mean(-1, keepdims=True)
    centred = y - mean
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    return centred * inverse * scale, (x, scale, mean, inverse)


def _scaled_backward(eps: float, kept: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, scale, mean, inverse = kept
    y = (x.astype(jnp.float32) - mean) * inverse
    inner = gradient * scale
    # What the mean and the variance absorb: the parts of the gradient along 1 and along y.
    along_ones = inner.mean(-1, keepdims=True)
    along_y = (inner * y).mean(-1, keepdims=True)
    dx = (inner - along_ones - y * along_y) * inverse
    return dx.astype(x.dtype), (gradient * y).sum(tuple(range(y.ndim - 1)))


_scaled.defvjp(_scaled_forward, _scaled_backward)


class LayerNorm(nn.Module):
    """Layer norm over the last axis.

    Attributes:
      eps: added to the variance: 1e-6 in ViT, MAE and DINOv2, 1e-5 in CLIP, 1e-12 in BERT.
      use_bias: False drops the offset, as ViT-22B does.
    """

    eps: float = 1e-6
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns x [..., D] normalised, in x's dtype."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],)) if self.use_bias else None
        return layer_norm(x, scale, bias, self.eps)


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last, running statistics in the collection 'stats'.

    In training it normalises by the batch's own statistics and, where 'stats' is mutable, moves the
    running ones towards them; otherwise it uses the running ones. Under jit the batch is the global
    one, so no synchronisation across devices is needed.

    Attributes:
      momentum: how much of the running statistics a step keeps.
      eps: added to the variance.
      affine: whether there is a learned scale and bias; MAE's linear probe has none.
      scale_init: of the scale.
    """

    momentum: float = 0.9
    eps: float = 1e-5
    affine: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Returns x [..., D] normalised, in x's dtype; of a batch only `mask` [...] counts.

        A batch of which nothing counts has mean and variance 0, and moves no running statistics.
        """
        dim = x.shape[-1]
        mean = self.variable("stats", "mean", jnp.zeros, (dim,))
        var = self.variable("stats", "var", jnp.ones, (dim,))
        y = x.astype(jnp.float32)
        if train:
            axes = tuple(range(x.ndim - 1))
            real = None if mask is None else mask[..., None]
            count = y.size // dim if mask is None else mask.sum()
            some = jnp.maximum(count, 1)
            batch_mean = y.sum(axes, where=real) / some
            batch_var = jnp.square(y - batch_mean).sum(axes, where=real) / some
            if self.is_mutable_collection("stats") and not self.is_initializing():
                # PyTorch's convention: the running variance is the unbiased one.
                unbiased = batch_var * (count / jnp.maximum(count - 1, 1))
                moved = (1 - self.momentum) * (count > 0)
                mean.value = (1 - moved) * mean.value + moved * batch_mean
                var.value = (1 - moved) * var.value + moved * unbiased
        else:
            batch_mean, batch_var = mean.value, var.value
        y = (y - batch_mean) * jax.lax.rsqrt(batch_var + self.eps)
        if self.affine:
            y = y * self.param("scale", self.scale_init, (dim,))
            y = y + self.param("bias", nn.initializers.zeros, (dim,))
        return y.astype(x.dtype)


def normalized_over_time(x: jax.Array, real: jax.Array, eps: float = 1e-5) -> jax.Array:
    """float32 x [B, T, D] with mean 0 and variance 1 over the real frames [B, T] of each clip.

    What is not real is zero.
    """
    x, real = x.astype(jnp.float32), real[..., None]
    count = jnp.maximum(real.sum(1, keepdims=True), 1)
    mean = x.sum(1, keepdims=True, where=real) / count
    centred = jnp.where(real, x - mean, 0)
    variance = jnp.square(centred).sum(1, keepdims=True) / count
    return centred * jax.lax.rsqrt(variance + eps)
