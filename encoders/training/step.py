"""The one training step, for every encoder, objective and mesh."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from encoders import rules
from encoders.objectives.base import Objective
from encoders.parallel.sharding import batch_major_activations
from encoders.training.state import TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, Any]

# Normalisation is computed in float32 anyway, and a temperature would be rounded by a percent.
_KEEP_FP32 = re.compile(r".*norm(\d|_pre)?/(scale|bias)|(.*/)?logit_(scale|bias)")


def cast_params(params: Any, dtype: jnp.dtype) -> Any:
    """Parameters in the compute dtype; those of norms stay float32."""
    return rules.map_with_path(
        lambda path, leaf: leaf if _KEEP_FP32.fullmatch(path) else leaf.astype(dtype), params
    )


def normalized(normalize: Callable[[jax.Array], jax.Array], batch: Batch) -> dict[str, jax.Array]:
    """The batch with its pixels normalised; ids, labels and the like are taken as they are."""
    arrays = {k: jnp.asarray(v) for k, v in batch.items()}
    return {k: normalize(v) if k == "image" else v for k, v in arrays.items()}


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    normalize: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
    micro_batches: int = 1,
    compute_dtype: Any = jnp.float32,
    ema: float | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns `step(state, batch) -> (state, metrics)`, pure and ready for jit.

    The gradient is that of (sum of losses) / (sum of weights) over the whole global batch, for any
    number of devices and micro-batches.

    Metrics are float32 scalars: the objective's own, as (sum, weight); `loss`, likewise; grad_norm,
    update_norm, lr; and `finite`, a bool per parameter leaf in the order of `jax.tree.leaves`.
    """

    def summed_loss(params, stats, teacher, batch, keys):
        variables = {"params": cast_params(params, compute_dtype), **stats}
        if teacher is not None:
            variables["teacher"] = teacher
        with batch_major_activations(mesh, batch["row"].shape[0]):
            outcome, updated = objective.apply(
                variables, batch, train=True, rngs=keys, mutable=list(stats)
            )
        metrics = {"loss": (outcome.loss, outcome.weight), **outcome.metrics}
        return outcome.loss, (metrics, updated)

    gradient = jax.grad(summed_loss, has_aux=True)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        corrupt, dropout = jax.random.split(key)
        batch = normalized(normalize, batch)

        def micro_step(stats, index, rows):
            keys = {"corrupt": corrupt, "dropout": jax.random.fold_in(dropout, index)}
            return gradient(state.params, stats, state.teacher, rows, keys)

        if micro_batches == 1:
            grads, (metrics, stats) = micro_step(state.stats, 0, batch)
        else:

            def accumulate(carry, index_and_rows):
                grads, stats = carry
                new, (metrics, stats) = micro_step(stats, *index_and_rows)
                return (jax.tree.map(jnp.add, grads, new), stats), metrics

            # Strided, so that every device cuts its own rows and nothing moves between devices.
            cut = {
                k: v.reshape(-1, micro_batches, *v.shape[1:]).swapaxes(0, 1)
                for k, v in batch.items()
            }
            zeros = jax.tree.map(jnp.zeros_like, state.params)
            (grads, stats), metrics = jax.lax.scan(
                accumulate, (zeros, state.stats), (jnp.arange(micro_batches), cut)
            )
            metrics = jax.tree.map(lambda x: x.sum(0), metrics)

        weight = jnp.maximum(metrics["loss"][1], 1e-9)
        grads = jax.tree.map(lambda g: g / weight, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.ema
        if average is not None:
            average = optax.incremental_update(params, average, 1.0 - ema)
        metrics |= {
            "grad_norm": optax.global_norm(grads),
            "update_norm": optax.global_norm(updates),
            "lr": jnp.asarray(schedule(state.step), jnp.float32),
            "finite": jnp.stack([jnp.isfinite(g).all() for g in jax.tree.leaves(grads)]),
        }
        return (
            state.replace(
                step=state.step + 1, params=params, stats=stats, opt_state=opt_state, ema=average
            ),
            metrics,
        )

    return step
