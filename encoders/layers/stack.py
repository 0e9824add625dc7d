"""A stack of equal blocks: scanned or unrolled, rematerialised or not, with its hidden states."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from encoders.errors import ConfigError, nearest

# What a block keeps for the backward pass; the rest it computes again.
REMAT: dict[str, Callable[..., Any] | None] = {
    # Everything is kept.
    "none": None,
    # Only the block's input: about a third more FLOPs, the least memory.
    "full": jax.checkpoint_policies.nothing_saveable,
    # Outputs of the projections, but not the [T, T] attention products: few FLOPs, less memory.
    "projections": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # Outputs of all matrix products; only norms, activations and softmax are computed again.
    "dots": jax.checkpoint_policies.dots_saveable,
}


class Stack(nn.Module):
    """`depth` blocks, one after the other.

    Unrolled, the blocks' parameters are in blocks_0, blocks_1, ...; scanned, in one `blocks` whose
    leaves have the layer as their first axis, which keeps compile time independent of depth. The
    two compute the same: `stack_layers` and `unstack_layers` convert the parameters. Shared, all
    layers have the parameters of blocks_0, scanned or not.

    Attributes:
      depth: number of blocks.
      block: makes a block from its `name`, for example functools.partial(Block, num_heads=4, ...).
      drop_path: rate at which whole branches are dropped per example (stochastic depth, arXiv
        1603.09382) in the last block; it rises linearly from zero in the first. Stream 'dropout'.
      scan: whether to scan over the blocks rather than unroll them.
      remat: a policy of REMAT.
      shared: one block is applied `depth` times, as in ALBERT (arXiv 1909.11942, section 3.1).
    """

    depth: int
    block: Callable[..., nn.Module]
    drop_path: float = 0.0
    scan: bool = False
    remat: str = "none"
    shared: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool = False,
        layers: Sequence[int] | Literal["all"] = (),
        **context: Any,
    ) -> tuple[jax.Array, dict[int, jax.Array]]:
        """Applies the blocks.

        Args:
          x: [B, T, D].
          train: whether dropout and drop path are on.
          layers: blocks whose outputs to return, negative ones counted from the end, or 'all'.
          **context: what every block is given besides: mask, rotary, bias, ...

        Returns:
          The last block's output [B, T, D], and {layer: output [B, T, D]}.

        Raises:
          ConfigError: no such remat policy, or no such layer.
        """
        if self.remat not in REMAT:
            raise ConfigError(f"remat: unknown policy '{self.remat}'.{nearest(self.remat, REMAT)}")
        wanted = resolve_layers(layers, self.depth)
        scales = self._branch_scales(x.shape[0]) if train and self.drop_path else None

        def apply(block: nn.Module, x: jax.Array, scale: jax.Array | None):
            y = block(x, branch_scale=scale, train=train, **context)
            return y, (y if wanted and self.scan else None)

        if REMAT[self.remat] is not None:
            # Inside a scan XLA cannot merge the two computations anyway, so its guard is left off.
            apply = nn.remat(apply, policy=REMAT[self.remat], prevent_cse=not self.scan)
        if not self.scan:
            hidden = {}
            block = self.block(name="blocks_0")
            for layer in range(self.depth):
                if layer and not self.shared:
                    block = self.block(name=f"blocks_{layer}")
                scale = None if scales is None else scales[layer]
                x, _ = apply(block, x, scale)
                if layer in wanted:
                    hidden[layer] = x
            return x, {layer: hidden[layer] for layer in wanted}
        scanned = nn.scan(
            apply,
            variable_axes={} if self.shared else {"params": 0},
            variable_broadcast="params" if self.shared else False,
            split_rngs={"params": not self.shared, "dropout": True},
            in_axes=0,
            length=self.depth,
        )
        block = self.block(name="blocks_0" if self.shared else "blocks")
        x, outputs = scanned(block, x, scales)
        return x, {layer: outputs[layer] for layer in wanted}

    def _branch_scales(self, batch: int) -> jax.Array:
        """[depth, 2, B]: 0 where a branch is dropped, 1 / (1 - rate) where it is kept."""
        rates = np.linspace(0, self.drop_path, self.depth)[:, None, None]
        noise = jax.random.uniform(self.make_rng("dropout"), (self.depth, 2, batch))
        return (noise >= rates) / (1 - rates)


def resolve_layers(layers: Sequence[int] | Literal["all"], depth: int) -> tuple[int, ...]:
    """Layer numbers from 0 to depth-1 for a request that may say 'all' or count from the end.

    Raises:
      ConfigError: a layer does not exist.
    """
    if layers == "all":
        return tuple(range(depth))
    for layer in layers:
        if not -depth <= layer < depth:
            raise ConfigError(f"layers: there is no layer {layer}; the encoder has {depth}.")
    return tuple(layer % depth for layer in layers)


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Turns blocks_0, blocks_1, ... into one `blocks` with a leading layer axis, all over a tree.

    Works on nested dicts of jax or numpy arrays; a tree without such blocks comes back equal.
    """
    if not isinstance(params, Mapping):
        return params
    result, layers = {}, {}
    for name, value in params.items():
        numbered = re.fullmatch(r"blocks_(\d+)", name)
        if numbered:
            layers[int(numbered[1])] = value
        else:
            result[name] = stack_layers(value)
    if layers:
        ordered = [layers[index] for index in range(len(layers))]
        result["blocks"] = jax.tree.map(lambda *leaves: _module_of(leaves).stack(leaves), *ordered)
    return result


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `stack_layers`."""
    if not isinstance(params, Mapping):
        return params
    result = {}
    for name, value in params.items():
        if name == "blocks":
            depth = jax.tree.leaves(value)[0].shape[0]
            for layer in range(depth):
                result[f"blocks_{layer}"] = jax.tree.map(lambda leaf, i=layer: leaf[i], value)
        else:
            result[name] = unstack_layers(value)
    return result


def _module_of(leaves: Sequence[Any]) -> Any:
    return np if all(isinstance(leaf, np.ndarray) for leaf in leaves) else jnp
