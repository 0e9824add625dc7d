"""Attention within a window: only tokens that are near attend to each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from encoders.layers.attention import Attention, attention_flops


class LocalAttention(Attention):
    """Self-attention to all tokens or, where it is local, to those that are near.

    In a row that several texts were packed into the segments bound it as well. Long rows are cut
    into blocks, whose keys are the block and what is within reach of it; in short ones the window
    is a mask.

    Attributes:
      reach: how many tokens away, on either side, another may be.
    """

    reach: int = 64

    def _attend(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        drop: Callable[[jax.Array], jax.Array] | None,
        *,
        local: bool | jax.Array,
        **seen: Any,
    ) -> jax.Array:
        """As of `Attention`; `local` may be traced, for layers that differ under scan."""

        def everywhere(*arrays: jax.Array) -> jax.Array:
            return Attention._attend(self, *arrays, drop, **seen)

        def nearby(*arrays: jax.Array) -> jax.Array:
            return self._nearby(*arrays, drop, **seen)

        if isinstance(local, bool):
            return nearby(query, key, value) if local else everywhere(query, key, value)
        if drop is not None:  # which a branch cannot draw
            return self._masked(query, key, value, drop, local, **seen)
        return jax.lax.cond(local, nearby, everywhere, query, key, value)

    def _masked(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        drop: Callable[[jax.Array], jax.Array] | None,
        local: bool | jax.Array,
        *,
        mask: jax.Array | None,
        **seen: Any,
    ) -> jax.Array:
        """With the window as a mask."""
        length = query.shape[1]
        near = (jnp.asarray(_within(length, length, 0, self.reach)) | jnp.logical_not(local))[None]
        if mask is not None:
            near = near & (mask[:, None, :] if mask.ndim == 2 else mask)
        return Attention._attend(self, query, key, value, drop, mask=near, **seen)

    def _nearby(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        drop: Callable[[jax.Array], jax.Array] | None,
        *,
        mask: jax.Array | None,
        segments: jax.Array | None,
        bias: jax.Array | None,
    ) -> jax.Array:
        batch, length = query.shape[:2]
        blocks = num_blocks(length, self.reach)
        if blocks is None or bias is not None or (mask is not None and mask.ndim == 3):
            seen = {"mask": mask, "segments": segments, "bias": bias}
            return self._masked(query, key, value, drop, True, **seen)
        size, reach = 2 * self.reach, self.reach

        def cut(x: jax.Array) -> jax.Array:
            """[B, T, ...] -> [B * blocks, size, ...], the queries' side."""
            x = _padded(x, 0, blocks * size - length)
            return x.reshape(batch * blocks, size, *x.shape[2:])

        def around(x: jax.Array) -> jax.Array:
            """[B, T, ...] -> [B * blocks, 2 size, ...], the keys' side: the block and its reach."""
            x = _padded(x, reach, blocks * size - length + reach)
            halves = x.reshape(batch, 2 * blocks + 2, reach, *x.shape[2:])
            parts = [halves[:, i : i + 2 * blocks : 2] for i in range(4)]
            return jnp.concatenate(parts, axis=2).reshape(batch * blocks, 2 * size, *x.shape[2:])

        near = jnp.asarray(_within(size, 2 * size, -reach, reach))[None]
        if mask is None:
            mask = jnp.ones((batch, length), bool)
        near = near & around(mask)[:, None, :]
        if segments is not None:
            theirs = around(segments)[:, None, :]
            near = near & (cut(segments)[:, :, None] == theirs) & (theirs > 0)
        y = Attention._attend(self, cut(query), around(key), around(value), drop, mask=near)
        return y.reshape(batch, blocks * size, *y.shape[2:])[:, :length]


def num_blocks(length: int, reach: int) -> int | None:
    """Blocks of 2 reach tokens that local attention cuts a row into; None if it does not pay."""
    blocks = -(-length // (2 * reach))
    return blocks if 8 * blocks * reach * reach < length * length else None


def local_attention_flops(length: int, width: int, reach: int) -> float:
    """`attention_flops` of a local LocalAttention."""
    blocks = num_blocks(length, reach)
    if blocks is None:
        return attention_flops(length, length, width)
    return 8.0 * length * width * width + 4.0 * blocks * 2 * reach * 4 * reach * width


def _within(queries: int, keys: int, first: int, reach: int) -> np.ndarray:
    """bool [Q, T]: queries from place 0 on and keys from `first` on that are near each other."""
    distance = np.arange(queries)[:, None] - (np.arange(keys) + first)
    return np.abs(distance) <= reach


def _padded(x: jax.Array, before: int, after: int) -> jax.Array:
    """x [B, T, ...] with zeros, or False, added to its second axis."""
    return jnp.pad(x, ((0, 0), (before, after), *((0, 0) for _ in x.shape[2:])))
