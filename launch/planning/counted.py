"""A plan from counts alone, for machines whose compiler is not at hand.

Parameters, gradients and optimizer state are exact: the state's shapes and shardings. Activations
are what automatic differentiation keeps, before a compiler drops or fuses any of it. Collectives
are the textbook's: with FSDP parameters are gathered for the forward and the backward pass and
gradients reduce-scattered; over axes that replicate parameters gradients are all-reduced; a tensor
axis all-reduces [B, T, D] four times a block. All of it in the compute dtype.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from encoders import rules
from encoders.errors import ConfigError, nearest
from encoders.layers.block import Block
from encoders.parallel.chips import CHIPS, KINDS, Chip
from encoders.parallel.mesh import batch_shards
from encoders.training.experiment import Experiment
from encoders.training.step import cast_params, normalized
from launch.planning import roofline
from launch.planning.compiled import micro_gradients, remat_of, shard_bytes
from launch.planning.memory import Memory
from launch.planning.report import Plan
from launch.planning.roofline import Flow

# Share of the matrix products that a policy computes again, at most.
AGAIN = {"none": 0.0, "dots": 0.0, "projections": 0.05, "full": 1 / 3}
_ROWS = 8  # per trace; even, as mixing needs it


@dataclasses.dataclass(frozen=True)
class Described:
    """A device that is only described."""

    id: int
    process_index: int
    device_kind: str
    platform: str = "gpu"


def parse_devices(text: str) -> tuple[Chip, list[Described]]:
    """The devices that '8xH200' names, eight to a node.

    Raises:
      ConfigError: no such device.
    """
    found = re.fullmatch(r"(\d+)\s*x\s*(\w+)", text.strip())
    if found is None or int(found[1]) < 1:
        raise ConfigError(f"--devices: expected a number and a kind, such as 8xH200, got '{text}'.")
    gpus = {name: kind for name, kind in KINDS.items() if CHIPS[kind].node}
    if found[2] not in gpus:
        raise ConfigError(f"--devices: unknown kind '{found[2]}'.{nearest(found[2], gpus)}")
    kind = gpus[found[2]]
    chip = CHIPS[kind]
    return chip, [Described(i, i // chip.node, kind) for i in range(int(found[1]))]


@dataclasses.dataclass(frozen=True)
class Kept:
    """What one example keeps for the backward pass.

    Attributes:
      bytes: of all that autodiff keeps.
      blocks: (tokens, width) of every transformer block, in bytes of the compute dtype as the
        product of both.
    """

    bytes: float
    blocks: float


def kept(experiment: Experiment) -> Kept:
    """Traces the loss and its derivative at two batch sizes; their difference is one example's."""
    sizes = [_residuals(experiment, rows) for rows in (_ROWS, 2 * _ROWS)]
    (small, _), (large, blocks) = sizes
    return Kept((large - small) / _ROWS, blocks / (2 * _ROWS))


def _residuals(experiment: Experiment, rows: int) -> tuple[float, float]:
    dtype = experiment.compute_dtype
    blocks: list[float] = []
    depths = _stacked_depths(experiment.param_shapes)

    def count(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        out = call(*args, **kwargs)
        if isinstance(context.module, Block) and context.method_name == "__call__":
            depth = depths.get("/".join(context.module.path), 1)
            blocks.append(float(out.size * dtype.itemsize * depth))
        return out

    def loss(params: Any, stats: Any, batch: Any) -> jax.Array:
        keys = {name: jax.random.key(0) for name in ("corrupt", "dropout")}
        with nn.intercept_methods(count):
            outcome, _ = experiment.objective.apply(
                {"params": cast_params(params, dtype), **stats},
                normalized(experiment.preprocessing.normalize, batch),
                train=True,
                rngs=keys,
                mutable=list(stats),
            )
        return outcome.loss

    batch = {
        name: jax.ShapeDtypeStruct((rows, *value.shape[1:]), value.dtype)
        for name, value in experiment.example_batch(1).items()
    }
    state = experiment.abstract_state
    backward = jax.eval_shape(
        lambda params, stats, batch: jax.vjp(lambda p: loss(p, stats, batch), params)[1],
        state.params,
        state.stats,
        batch,
    )
    leaves = [
        leaf
        for leaf in jax.tree.leaves(backward)
        if jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool
    ]
    return float(sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)), sum(blocks)


def _stacked_depths(shapes: Any) -> dict[str, int]:
    """Path of scanned blocks -> how many there are."""
    found = {}
    for path, leaf in zip(rules.leaf_paths(shapes), jax.tree.leaves(shapes), strict=True):
        head, middle, _ = path.partition("blocks/")
        if middle:
            found[head + "blocks"] = leaf.shape[0]
    return found


def plan(experiment: Experiment, where: str, chip: Chip, one: Kept | None = None) -> Plan:
    """What a step costs, from counts; `one` is `kept(experiment)` where that is known already."""
    sections, mesh = experiment.sections, experiment.mesh
    state, width = experiment.abstract_state, experiment.compute_dtype.itemsize
    micro = sections.hardware.micro_batches
    rows = experiment.batch_rows / batch_shards(mesh)
    one = kept(experiment) if one is None else one
    parameters = shard_bytes(jax.tree.leaves(state.params))
    optimizer = shard_bytes(jax.tree.leaves(state.opt_state))
    average = shard_bytes(jax.tree.leaves(state.ema))
    batch = sum(v.nbytes for v in experiment.example_batch(1).values()) * rows
    inner = mesh.shape["sequence"]
    memory = Memory(
        parameters=parameters,
        optimizer=optimizer,
        average=average,
        teacher=shard_bytes(jax.tree.leaves(state.teacher)),
        other=shard_bytes(jax.tree.leaves((state.step, state.stats))),
        batch=round(batch),
        gradients=round(parameters / 4 * width) + micro_gradients(experiment),
        activations=round(one.bytes * rows / micro / inner),
        workspace=2 * _largest_layer(state.params) * width,
        program=0,
    )
    flows = collectives(experiment, one.blocks * rows / inner, chip)
    model = experiment.flops_per_example()
    remat = remat_of(experiment)
    again = max(AGAIN.get(policy, 0.0) for policy in remat.split(", "))
    flops = model * (1 + again) * sections.batch_size / mesh.size
    traffic = 3 * micro * sum(leaf.size for leaf in jax.tree.leaves(state.params)) * width
    traffic = traffic / mesh.shape["tensor"] + 2 * (parameters + optimizer + average)
    traffic += 2 * one.bytes * rows / inner
    return Plan(
        where=where,
        chip=chip,
        chips=mesh.size,
        mesh=dict(mesh.shape),
        micro_batches=micro,
        remat=remat,
        source="counted",
        memory=memory,
        capacity=chip.memory,
        flops=flops,
        model_flops=model,
        flows=flows,
        bound=roofline.bound(flops, traffic, flows, chip),
        batch_size=sections.batch_size,
        total_steps=experiment.total_steps,
    )


def collectives(experiment: Experiment, blocks: float, chip: Chip) -> list[Flow]:
    """The textbook's collectives of a step; `blocks` is bytes of all blocks' outputs on a chip."""
    mesh, width = experiment.mesh, experiment.compute_dtype.itemsize
    micro = experiment.sections.hardware.micro_batches
    leaves = jax.tree.leaves(experiment.abstract_state.params)
    sharded = [leaf for leaf in leaves if "fsdp" in leaf.sharding.spec]
    gathered = width * sum(_size_without(leaf, "fsdp") for leaf in sharded)
    replicas = tuple(axis for axis in ("dcn", "data") if mesh.shape[axis] > 1)
    everyone = tuple(axis for axis in ("dcn", "data", "fsdp") if mesh.shape[axis] > 1)
    whole = [leaf for leaf in leaves if "fsdp" not in leaf.sharding.spec]
    wanted = [
        ("all-gather", ("fsdp",), 2 * micro * gathered),
        ("reduce-scatter", ("fsdp",), micro * gathered),
        ("all-reduce", replicas, micro * width * shard_bytes(sharded) / 4),
        ("all-reduce", everyone, micro * width * shard_bytes(whole) / 4),
        ("all-reduce", ("tensor",), 4 * blocks),
        ("all-gather", ("sequence",), 4 * blocks * mesh.shape["sequence"]),
        ("reduce-scatter", ("sequence",), 2 * blocks * mesh.shape["sequence"]),
    ]
    flows = []
    for kind, axes, payload in wanted:
        axes = tuple(axis for axis in axes if mesh.shape[axis] > 1)
        if not axes or not payload:
            continue
        size = math.prod(mesh.shape[axis] for axis in axes)
        sent = payload * (size - 1) / size * (2 if kind == "all-reduce" else 1)
        seconds, network = roofline.duration(kind, payload, axes, mesh, chip)
        flows.append(Flow(kind, "+".join(axes), payload, sent, seconds, network))
    return sorted(flows, key=lambda flow: -flow.sent)


def _size_without(leaf: jax.ShapeDtypeStruct, axis: str) -> int:
    """Elements of a parameter on one device after it was gathered over an axis."""
    mesh = leaf.sharding.mesh
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * mesh.shape[axis]


def _largest_layer(params: Any) -> int:
    """Elements of the largest layer when gathered."""
    layers: dict[str, int] = {}
    for path, leaf in zip(rules.leaf_paths(params), jax.tree.leaves(params), strict=True):
        found = re.match(r"(.*/)?blocks(_\d+)?/", path)
        name = found[0] if found else path
        stacked = found is not None and found[2] is None
        size = leaf.size // leaf.shape[0] if stacked else leaf.size
        layers[name] = layers.get(name, 0) + size
    return max(layers.values())
