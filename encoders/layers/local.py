"""Attention within a window: only tokens that are near attend to each other."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from encoders.layers.attention import Attention


class LocalAttention(Attention):
    """Self-attention to the tokens that are at most `reach` away, on either side.

    In a row that several texts were packed into the segments bound it as well. The window is a
    mask: no product is saved.
    """

    def __call__(
        self,
        x: jax.Array,
        *,
        reach: int | jax.Array,
        mask: jax.Array | None = None,
        **context: Any,
    ) -> jax.Array:
        """Attends.

        Args:
          x: [B, T, D].
          reach: how many tokens away another may be; a scalar that layers under scan may differ in.
          mask: [B, T] or [B, T, T] bool, as of `Attention`.
          **context: what `Attention` is given besides.

        Returns:
          [B, T, D].
        """
        place = jnp.arange(x.shape[1])
        near = (jnp.abs(place[None, :] - place[:, None]) <= reach)[None]
        if mask is not None:
            near = near & (mask[:, None, :] if mask.ndim == 2 else mask)
        return super().__call__(x, mask=near, **context)
