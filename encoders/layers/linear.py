"""The affine map that everything else is made of."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders.layers.initializers import Initializer


class Linear(nn.Module):
    """x @ kernel + bias, with kernel [in, out], in the dtype of the parameters.

    So the training step sets the compute dtype by casting the parameters, and nothing else has to.

    Attributes:
      features: size of the output.
      use_bias: whether there is a bias.
      kernel_init, bias_init: initialisers.
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [..., in] to [..., features]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,)) if self.use_bias else None
        return self.affine(x.astype(kernel.dtype), kernel, bias)

    def affine(self, x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        """x @ kernel + bias, from [..., in] to [..., features]."""
        # As one matrix product of rows: the kernel's gradient is then a product that needs no
        # transposed copies, which XLA on CPU makes for [B, T, in] (a fifth of a ViT-S/16 step).
        y = jnp.dot(x.reshape(-1, x.shape[-1]), kernel)
        if bias is not None:
            y = y + bias
        return y.reshape(*x.shape[:-1], kernel.shape[-1])
