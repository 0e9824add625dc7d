"""The two values that every encoder and every objective return."""

from __future__ import annotations

from collections.abc import Mapping

import flax.struct
import jax


@flax.struct.dataclass
class Encoded:
    """What an encoder returns, whatever its modality.

    Attributes:
      tokens: [B, T, D] features after the final norm, prefix tokens (cls, registers) first.
      mask: [B, T] bool, True where a token is real.
      pooled: [B, D] one vector per example, or None where the encoder does not pool.
      hidden: asked-for layer -> [B, T, D] output of that block, before the final norm.
      num_prefix: how many of the first tokens are not patches, words or frames.
    """

    tokens: jax.Array
    mask: jax.Array
    pooled: jax.Array | None = None
    hidden: Mapping[int, jax.Array] = flax.struct.field(default_factory=dict)
    num_prefix: int = flax.struct.field(pytree_node=False, default=0)


@flax.struct.dataclass
class Outcome:
    """What an objective returns: sums and weights, never means.

    k micro-batches or n devices add up to exactly one big batch, because the division by the
    weight happens once, after everything has been summed.

    Attributes:
      loss: float32 scalar, the sum of the per-unit losses.
      weight: float32 scalar, how many units were summed (examples, patches, tokens).
      metrics: name -> (sum, weight), each a float32 scalar.
    """

    loss: jax.Array
    weight: jax.Array
    metrics: Mapping[str, tuple[jax.Array, jax.Array]] = flax.struct.field(default_factory=dict)
