"""Attention in one kernel: the [T, T] weights never reach the GPU's memory.

cuDNN's flash attention, through jax.nn. It computes in 16 bits (products and softmax accumulate in
32) and takes any mask, with the same result as `attention.dot_product_attention` up to rounding.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from encoders.errors import ConfigError

_MAX_HEAD = 128  # of all GPUs that have the kernel; Hopper's takes 256


def fits(query: jax.Array) -> bool:
    """Whether the kernel is there for queries [B, Q, H, d]: a GPU, and a 16-bit dtype.

    Elsewhere the plain formula is the only one there is. On a GPU in float32, as evaluations
    compute by default, it is the more exact one.

    Raises:
      ConfigError: the kernel is there and has not this size of heads.
    """
    if jax.default_backend() != "gpu" or query.dtype not in (jnp.bfloat16, jnp.float16):
        return False
    head = query.shape[-1]
    if head % 8 or head > _MAX_HEAD:
        raise ConfigError(
            f"model.attention_kernel: 'fused' needs heads of a multiple of 8 and at most "
            f"{_MAX_HEAD}, not {head}; use 'plain'."
        )
    return True


def fused_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    """softmax(query key^T / sqrt(d) + bias) value.

    Args:
      query: [B, Q, H, d].
      key: [B, T, H, d].
      value: [B, T, H, d].
      mask: bool, True where a key may be attended to, of a shape that broadcasts to [B, H, Q, T].
      bias: [1 or B, H, Q, T] or None.

    Returns:
      [B, Q, H, d] in value's dtype.
    """
    queries, keys = query.shape[1], key.shape[1]
    lengths: dict[str, jax.Array] = {}
    if mask is not None:
        mask = jnp.broadcast_to(mask, (query.shape[0], 1, queries, keys))
    if queries % 2 or keys % 2:  # the kernel's gradient takes even lengths only
        query, key, value = (_even(x, 1) for x in (query, key, value))
        if mask is None and bias is None:  # what is added is attended to by nothing
            for name, length in (("query", queries), ("key_value", keys)):
                lengths[f"{name}_seq_lengths"] = jnp.full(query.shape[:1], length, jnp.int32)
        else:
            mask = jnp.ones((query.shape[0], 1, queries, keys), bool) if mask is None else mask
            mask = _even(_even(mask, 2), 3)
            bias = None if bias is None else _even(_even(bias, 2), 3)
    out = jax.nn.dot_product_attention(
        query,
        key,
        value,
        bias=None if bias is None else bias.astype(query.dtype),
        mask=mask,
        implementation="cudnn",
        **lengths,
    )
    return out[:, :queries]


def _even(x: jax.Array, axis: int) -> jax.Array:
    """x with zeros (False) added at the end of an axis of odd length."""
    widths = [(0, x.shape[axis] % 2 if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths)
