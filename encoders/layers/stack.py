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


def _products(primitive: Any, *arguments: Any, **options: Any) -> Any:
    """Whether to keep what a matrix product gives, or the kernel that has attention's two in it."""
    fused = primitive.name.startswith("dot_product_attention_fwd")
    return fused or jax.checkpoint_policies.dots_saveable(primitive, *arguments, **options)


# What a block keeps for the backward pass; the rest it computes again.
REMAT: dict[str, Callable[..., Any] | None] = {
    # Everything is kept.
    "none": None,
    # Only the block's input: about a third more FLOPs, the least memory.
    "full": jax.checkpoint_policies.nothing_saveable,
    # Outputs of the projections, but not the [T, T] attention products: few FLOPs, less memory.
    "projections": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # Outputs of all matrix products; only norms, activations and softmax are computed again.
    "dots": _products,
}


class Stack(nn.Module):
    """`depth` blocks, one after the other.

    Unrolled, the blocks' parameters are in blocks_0, blocks_1, ...; scanned, in one `blocks` whose
    leaves have the layer as their first axis, which keeps compile time independent of depth. The
    two compute the same: `stack_layers` and `unstack_layers` convert the parameters. Shared, all
    layers have the parameters of blocks_0, scanned or not. A first block of its own is blocks_0 and
    is not scanned; the others, scanned, are `blocks_rest`.

    Attributes:
      depth: number of blocks.
      block: makes a block from its `name`, for example functools.partial(Block, num_heads=4, ...).
      drop_path: rate at which whole branches are dropped per example (stochastic depth, arXiv
        1603.09382) in the last block; it rises linearly from zero in the first. Stream 'dropout'.
      scan: whether to scan over the blocks rather than unroll them.
      remat: a policy of REMAT.
      shared: one block is applied `depth` times, as in ALBERT (arXiv 1909.11942, section 3.1).
      first: makes the first block, where it has other parameters than the rest.
      kinds: for each layer, which of the `kind_context` it is given (attention that is local in
        some layers); None where all are given the same.
      layer_drop: rate at which an example skips a block (LayerDrop, arXiv 1909.11556), the same for
        all of them. Stream 'dropout'.
    """

    depth: int
    block: Callable[..., nn.Module]
    drop_path: float = 0.0
    scan: bool = False
    remat: str = "none"
    shared: bool = False
    first: Callable[..., nn.Module] | None = None
    kinds: tuple[int, ...] | None = None
    layer_drop: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool = False,
        layers: Sequence[int] | Literal["all"] = (),
        kind_context: Sequence[Mapping[str, Any]] = (),
        **context: Any,
    ) -> tuple[jax.Array, dict[int, jax.Array]]:
        """Applies the blocks.

        Args:
          x: [B, T, D].
          train: whether dropout, drop path and layer drop are on.
          layers: blocks whose outputs to return, negative ones counted from the end, or 'all'.
          kind_context: by kind, what the blocks of that kind are given besides; of equal shapes.
          **context: what every block is given besides: mask, rotary, bias, ...

        Returns:
          The last block's output [B, T, D], and {layer: output [B, T, D]}.

        Raises:
          ConfigError: no such remat policy, no such layer, or less than no blocks.
        """
        if self.depth < 0:
            raise ConfigError(f"depth: expected 0 blocks or more, got {self.depth}.")
        if self.remat not in REMAT:
            raise ConfigError(f"remat: unknown policy '{self.remat}'.{nearest(self.remat, REMAT)}")
        wanted = resolve_layers(layers, self.depth)
        scales = self._branch_scales(x.shape[0]) if train and self.drop_path else None
        kept = None
        if train and self.layer_drop:
            noise = jax.random.uniform(self.make_rng("dropout"), (self.depth, x.shape[0]))
            kept = noise >= self.layer_drop

        def given(own: Mapping[str, Any]) -> Callable:
            """A function that applies a block whose layer is given `own` besides."""

            def apply(block: nn.Module, x: jax.Array, drop: tuple) -> jax.Array:
                scale, kept = drop
                y = block(x, branch_scale=scale, train=train, **context, **own)
                return y if kept is None else jnp.where(kept[:, None, None], y, x)

            if REMAT[self.remat] is None:
                return apply
            # Inside a scan XLA cannot merge the two computations anyway: its guard is left off.
            return nn.remat(apply, policy=REMAT[self.remat], prevent_cse=not self.scan)

        kinds = None if self.kinds is None else np.asarray(self.kinds, np.int32)
        hidden = {}
        block, unrolled = None, self.depth
        if self.scan:
            unrolled = 0 if self.first is None else 1
        for layer in range(unrolled):
            if block is None or not self.shared:
                make = self.first if layer == 0 and self.first is not None else self.block
                block = make(name=f"blocks_{layer}")
            own = {} if kinds is None else kind_context[kinds[layer]]
            x = given(own)(block, x, jax.tree.map(lambda drop, i=layer: drop[i], (scales, kept)))
            hidden[layer] = x
        if unrolled < self.depth:
            rest = jax.tree.map(lambda leaf: leaf[unrolled:], ((scales, kept), kinds))
            x, outputs = self._scan(x, rest, given, kind_context, bool(wanted))
            hidden |= {layer: outputs[layer - unrolled] for layer in wanted if layer >= unrolled}
        return x, {layer: hidden[layer] for layer in wanted}

    def _scan(
        self,
        x: jax.Array,
        per_layer: tuple[tuple, np.ndarray | None],
        given: Callable,
        kind_context: Sequence[Mapping[str, Any]],
        keep: bool,
    ) -> tuple[jax.Array, jax.Array | None]:
        """The scanned blocks' last output and, to keep, that of each [layers, B, T, D]."""
        length = self.depth if self.first is None else self.depth - 1

        def step(block: nn.Module, x: jax.Array, own: tuple) -> tuple[jax.Array, Any]:
            drop, kind = own
            # Layers that differ are one program: each picks its own of what all kinds are given.
            picked = {}
            if kind is not None:
                picked = jax.tree.map(lambda *every: jnp.stack(every)[kind], *kind_context)
            y = given(picked)(block, x, drop)
            return y, (y if keep else None)

        scanned = nn.scan(
            step,
            # What is captured of a block (`flax.linen.Module.apply`), too.
            variable_axes={"intermediates": 0} | ({} if self.shared else {"params": 0}),
            variable_broadcast="params" if self.shared else False,
            split_rngs={"params": not self.shared, "dropout": True},
            in_axes=0,
            length=length,
        )
        name = "blocks_0" if self.shared else "blocks" if self.first is None else "blocks_rest"
        return scanned(self.block(name=name), x, per_layer)

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

    Where blocks_0 has other parameters than the rest, it is left and the rest is `blocks_rest`.
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
        name, ordered = "blocks", [layers[index] for index in range(len(layers))]
        if jax.tree.structure(ordered[0]) != jax.tree.structure(ordered[-1]):
            name, result["blocks_0"] = "blocks_rest", ordered.pop(0)
        result[name] = jax.tree.map(lambda *leaves: _module_of(leaves).stack(leaves), *ordered)
    return result


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `stack_layers`."""
    if not isinstance(params, Mapping):
        return params
    result = {}
    for name, value in params.items():
        if name in ("blocks", "blocks_rest"):
            before = int(name == "blocks_rest")
            for layer in range(jax.tree.leaves(value)[0].shape[0]):
                one = jax.tree.map(lambda leaf, i=layer: leaf[i], value)
                result[f"blocks_{before + layer}"] = one
        else:
            result[name] = unstack_layers(value)
    return result


def _module_of(leaves: Sequence[Any]) -> Any:
    return np if all(isinstance(leaf, np.ndarray) for leaf in leaves) else jnp
