"""The real training step, compiled for chips that are not here."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from encoders import rules
from encoders.errors import ConfigError
from encoders.parallel.chips import chip
from encoders.parallel.mesh import batch_sharding
from encoders.parallel.sharding import is_stacked
from encoders.training.experiment import Experiment
from launch.planning import hlo, memory, products, roofline, traffic
from launch.planning.memory import Memory
from launch.planning.report import Plan


def lower(experiment: Experiment) -> Any:
    """The step of an experiment, traced for its devices with nothing allocated."""
    if experiment.config["objective"].get("teacher") is not None:
        raise ConfigError("objective.teacher: a step with a teacher's weights cannot be planned.")
    place = batch_sharding(experiment.mesh)
    batch = {
        name: jax.ShapeDtypeStruct(
            (experiment.batch_rows, *value.shape[1:]), value.dtype, sharding=place
        )
        for name, value in experiment.example_batch(1).items()
    }
    return experiment.step().lower(experiment.abstract_state, batch)


def plan(experiment: Experiment, where: str) -> Plan:
    """Compiles the step and says what it costs.

    Raises:
      ConfigError: the compiler refuses it for another reason than memory.
    """
    began = time.perf_counter()
    device = chip(experiment.mesh.devices.flat[0].device_kind)
    if device is None:
        raise ConfigError(f"no data sheet for {experiment.mesh.devices.flat[0].device_kind}.")
    shape = dict(experiment.mesh.shape)
    fields: dict[str, Any] = dict(
        where=where,
        chip=device,
        chips=experiment.mesh.size,
        mesh=shape,
        micro_batches=experiment.sections.hardware.micro_batches,
        remat=remat_of(experiment),
        source="compiled",
        capacity=device.memory,
        model_flops=experiment.flops_per_example(),
        batch_size=experiment.sections.batch_size,
        total_steps=experiment.total_steps,
    )
    try:
        made = lower(experiment).compile()
    except jax.errors.JaxRuntimeError as error:
        words = str(error)
        if "RESOURCE_EXHAUSTED" not in words and "Ran out of memory" not in words:
            raise ConfigError(f"the compiler refuses this step: {words.splitlines()[0]}") from error
        return Plan(
            **fields,
            memory=Memory(*[0] * 10),
            flops=0.0,
            flows=(),
            bound=roofline.Bound(math.inf, 0.0, 0.0, 0.0),
            refusal=refusal(words),
            seconds=time.perf_counter() - began,
        )
    module = hlo.parse(made.as_text())
    used = memory.measure(made, module, micro_gradients(experiment))
    flops = products.product_flops(module)
    found = traffic.collectives(module, experiment.mesh.size)
    moved = roofline.flows(found, experiment.mesh, device)
    bound = roofline.bound(flops, traffic.hbm_bytes(module), moved, device)
    seconds = time.perf_counter() - began
    return Plan(
        **fields,
        memory=used,
        flops=flops,
        flows=moved,
        bound=bound,
        seconds=seconds,
        surprises=surprises(experiment, found),
    )


def networks(model: Any, path: str = "model") -> dict[str, Any]:
    """Path -> section of the networks that have blocks: a model's, or those of its towers."""
    towers = {
        f"{path}.{key}": part
        for key, part in model.items()
        if isinstance(part, Mapping | ConfigDict) and "name" in part
    }
    return towers or {path: model}


def remat_of(experiment: Experiment) -> str:
    """The policy of a config's networks; where they differ, all of them."""
    found = networks(experiment.config["model"]).values()
    return ", ".join(dict.fromkeys(section.get("remat", "none") for section in found))


def surprises(experiment: Experiment, found: Sequence[traffic.Collective]) -> tuple[str, ...]:
    """What is gathered and should not be: more than a layer's largest parameter, or float32.

    A batch's activations are larger than that, and optimizer state and the parameters' own copies
    are float32. Small float32 arrays (vectors, factored statistics) may be gathered.
    """
    leaves = jax.tree.leaves(experiment.param_shapes)
    paths = rules.leaf_paths(experiment.param_shapes)
    sizes = [
        leaf.size // leaf.shape[0] if is_stacked(path) else leaf.size
        for path, leaf in zip(paths, leaves, strict=True)
    ]
    wide = 4 * max(sizes) / 100 if experiment.compute_dtype.itemsize < 4 else math.inf
    return tuple(
        f"{array.dtype}{list(array.sizes)} ({each.label or 'without a name'})"
        for each in found
        if each.kind == "all-gather"
        for array in each.arrays
        if math.prod(array.sizes) > max(sizes) or (array.dtype == "f32" and array.bytes > wide)
    )


def refusal(words: str) -> str:
    """The compiler's sentence about memory: what is used, what there is."""
    return words.partition("\n")[0].removeprefix("RESOURCE_EXHAUSTED: ")


def micro_gradients(experiment: Experiment) -> int:
    """Bytes on one chip of the gradients' sums, where there are several micro-batches."""
    if experiment.sections.hardware.micro_batches == 1:
        return 0
    trained = rules.without(experiment.objective.frozen, experiment.abstract_state.params)
    return shard_bytes(jax.tree.leaves(trained))


def shard_bytes(leaves: Sequence[jax.ShapeDtypeStruct]) -> int:
    """Bytes of arrays on one device, without padding."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves
    )
