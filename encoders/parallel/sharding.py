"""Which part of which array lives where: all rules in one place; networks know nothing of them.

  array             dcn    data   fsdp                 tensor           sequence
  parameter         whole  whole  largest axis left    TENSOR_RULES     whole
  optimizer state   as its parameter (`like_parameters`)
  activation        rows   rows   rows                 follows weights  tokens (ACTIVATION_RULES)

So `fsdp` inside `dcn` and `data` is hybrid sharding (HSDP): parameters are gathered over the fast
network only, and gradients are summed over the slow one. Activations are pinned from outside, by
intercepting the modules' calls while the step is traced; the partitioner adds the collectives:
keys and values are gathered over `sequence`, and gradients of parameters are summed over it.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import re
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from encoders import rules
from encoders.parallel.mesh import BATCH_AXES

# Megatron's split (arXiv 1909.08053, section 3): the first product of a pair by columns, the second
# by rows. A spec is aligned to the right, so that a scanned layer's stacked axis stays whole, and
# that one rule is for kernels and for the biases that a network may be without.
TENSOR_RULES: rules.Rules = (
    (r".*(attention/(query|key|value)|mlp/(fc1|gate))/(kernel|bias)", ("tensor",)),
    (r".*(attention/out|mlp/fc2)/kernel", ("tensor", None)),
)

# What a module returns, by the module's path, aligned to the left: the first axis of anything that
# has the batch's rows, and the tokens between blocks and inside them. Tokens that `sequence` does
# not divide (197 of them) are padded by the partitioner, which changes no result.
ACTIVATION_RULES: rules.Rules = (
    (r"(.*/)?blocks(_\d+|_rest)?(/.*)?", (BATCH_AXES, "sequence")),
    (r".*", (BATCH_AXES,)),
)

_MESH: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


def current_mesh() -> Mesh | None:
    """The mesh of the step that is being traced (`batch_major_activations`), or None outside one.

    For what a partitioner cannot find by itself, such as a ring (`parallel.contrast`).
    """
    return _MESH.get()


def parameter_specs(
    shapes: Any, mesh: Mesh, tensor_rules: rules.Rules = TENSOR_RULES, min_size: int = 2**14
) -> Any:
    """A PartitionSpec for every leaf of a parameter tree.

    Args:
      shapes: tree of arrays or ShapeDtypeStructs.
      mesh: the device mesh.
      tensor_rules: (path regex, axis names of the trailing dimensions), used when `tensor` > 1.
      min_size: arrays with fewer elements (of one layer, where layers are stacked) stay whole under
        FSDP; gathering them costs more.
    """
    paths = rules.leaf_paths(shapes)
    leaves, structure = jax.tree.flatten(shapes)
    tensor: list[Any] = [()] * len(leaves)
    if mesh.shape["tensor"] > 1:
        tensor = rules.match(tensor_rules, paths, where="hardware.tensor_rules", default=())
    specs = [
        _spec(path, leaf.shape, mesh, axes, min_size)
        for path, leaf, axes in zip(paths, leaves, tensor, strict=True)
    ]
    return jax.tree.unflatten(structure, specs)


def _spec(path: str, shape: tuple[int, ...], mesh: Mesh, axes: tuple, min_size: int) -> P:
    dims: list[str | None] = [None] * (len(shape) - len(axes)) + list(axes)
    dims = [
        axis if axis is None or size % mesh.shape[axis] == 0 else None
        for axis, size in zip(dims, shape, strict=True)
    ]
    fsdp = mesh.shape["fsdp"]
    first = 1 if is_stacked(path) else 0  # slicing whole layers off would serialise the gathers
    if fsdp > 1 and math.prod(shape[first:]) >= min_size:
        free = [i for i in range(first, len(shape)) if dims[i] is None and shape[i] % fsdp == 0]
        if free:
            dims[max(free, key=lambda i: shape[i])] = "fsdp"
    while dims and dims[-1] is None:
        dims.pop()
    return P(*dims)


def is_stacked(path: str) -> bool:
    """True for a leaf of scanned layers, whose axis 0 counts layers."""
    return not rules.STACKED.keys().isdisjoint(path.split("/"))


def like_parameters(tree: Any, params: Any, specs: Any) -> Any:
    """Specs for a tree that holds copies of the parameters' structure (optimizer state, EMA).

    A leaf whose path ends in a parameter's path and whose shape is that parameter's gets its spec;
    everything else (counts, factored statistics) is replicated.
    """
    known = {
        path: (leaf.shape, spec)
        for path, leaf, spec in zip(
            rules.leaf_paths(params),
            jax.tree.leaves(params),
            jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P)),
            strict=True,
        )
    }

    def spec_of(path: str, leaf: Any) -> P:
        parts = path.split("/")
        for start in range(len(parts)):
            shape, spec = known.get("/".join(parts[start:]), (None, None))
            if shape == leaf.shape:
                return spec
        return P()

    return rules.map_with_path(spec_of, tree)


def named(mesh: Mesh, specs: Any) -> Any:
    """PartitionSpecs to NamedShardings on a mesh."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P)
    )


@contextlib.contextmanager
def batch_major_activations(mesh: Mesh, rows: int) -> Iterator[None]:
    """While tracing: pins every module output that has `rows` rows as ACTIVATION_RULES say, and
    makes the mesh the current one.

    Or a multiple of them: an example may be several texts, one after the other. Without it the
    partitioner may decide to shard activations like the FSDP weights they meet.
    """

    # The other axes are left to the partitioner, which knows what the tensor rules imply.
    def pin(x: Any, path: str) -> Any:
        if not isinstance(x, jax.Array) or x.ndim < 2 or x.shape[0] % rows:
            return x
        axes = next(axes for regex, axes in ACTIVATION_RULES if re.fullmatch(regex, path))
        dims: list[Any] = [P.UNCONSTRAINED] * x.ndim
        for number, axis in enumerate(axes[: x.ndim - 1]):  # never the features
            if number == 0 or mesh.shape[axis] > 1:
                dims[number] = axis
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*dims)))

    def interceptor(
        call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        if context.method_name == "affine" and mesh.shape["sequence"] > 1:
            # Linear joins rows and tokens to one axis, which cannot be split by tokens: each row
            # on its own, so that they stay two.
            x, *weights = args
            return jax.vmap(lambda row: call(row, *weights))(x)
        out = call(*args, **kwargs)
        if context.method_name != "__call__":
            return out
        return pin(out, "/".join(context.module.path))

    token = _MESH.set(mesh)
    try:
        with nn.intercept_methods(interceptor) if mesh.size > 1 else contextlib.nullcontext():
            yield
    finally:
        _MESH.reset(token)
