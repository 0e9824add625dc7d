"""The one training step, for every encoder, objective and mesh.

Micro-batches add up, because losses are sums. Where a loss compares all examples of a batch with
each other they do not, and the step goes through them twice (GradCache, arXiv 2101.06983): it
embeds part by part without keeping what led there, compares all embeddings at once, and then embeds
each part again to carry the gradient of its embeddings to the parameters. The result is that of one
batch; the price a second forward pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from encoders import rules
from encoders.data.preprocessing import NORMALIZED
from encoders.objectives.base import Objective
from encoders.parallel.sharding import batch_major_activations
from encoders.training.state import TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, Any]

# Normalisation is computed in float32 anyway, and so is a quantizer's choice; a temperature would
# be rounded by a percent.
_KEEP_FP32 = re.compile(
    r".*norm(\d+|_\w+)?/(scale|bias)|(.*/)?quantizer/codebook|(.*/)?logit_(scale|bias)"
)


def cast_params(params: Any, dtype: jnp.dtype) -> Any:
    """Parameters in the compute dtype; those of norms, codebooks and temperatures stay float32."""
    return rules.map_with_path(
        lambda path, leaf: leaf if _KEEP_FP32.fullmatch(path) else leaf.astype(dtype), params
    )


def normalized(normalize: Callable[[jax.Array], jax.Array], batch: Batch) -> dict[str, jax.Array]:
    """The batch with its pixels or sound normalised; ids, labels and the like are as they were."""
    arrays = {k: jnp.asarray(v) for k, v in batch.items()}
    return {k: normalize(v) if k in NORMALIZED else v for k, v in arrays.items()}


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
    momentum: optax.Schedule | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns `step(state, batch) -> (state, metrics)`, pure and ready for jit.

    The gradient is that of (sum of losses) / (sum of weights) over the whole global batch, for any
    number of devices and micro-batches. `momentum` says how slowly a momentum teacher follows.

    Metrics are float32 scalars: the objective's own, as (sum, weight); `loss`, likewise; grad_norm,
    update_norm, lr; and `finite`, a bool per parameter leaf in the order of `jax.tree.leaves`.
    """

    def apply(state, params, stats, rows, *arguments, **options):
        params = filled(params, state.params)
        variables = {"params": cast_params(params, compute_dtype), **stats}
        teacher = state.frozen_teacher
        if state.teacher is not None:
            teacher = {"params": filled(state.teacher, state.params)}
        if teacher is not None:
            cast = cast_params(teacher["params"], compute_dtype)
            variables["teacher"] = {**teacher, "params": cast}
        with batch_major_activations(mesh, rows):
            return objective.apply(variables, *arguments, **options)

    def forward(state, params, stats, batch, keys, **options):
        """What a method of the objective makes of a (micro-)batch, and the statistics after it."""
        options |= {"train": True, "rngs": keys, "mutable": list(stats)}
        # Here rather than once for all: as floats a batch of images takes four times the memory.
        batch = {**normalized(normalize, batch), "step": state.step}
        return apply(state, params, stats, batch["row"].shape[0], batch, **options)

    def losses(outcome):
        return outcome.loss, {"loss": (outcome.loss, outcome.weight), **outcome.metrics}

    def at_once(state, batch, keys, stats):
        """(gradients, metrics, statistics) of a batch, or of a part of one."""

        def loss(params):
            outcome, updated = forward(state, params, stats, batch, keys)
            value, metrics = losses(outcome)
            return value, (metrics, updated)

        grads, (metrics, updated) = jax.grad(loss, has_aux=True)(trained(state.params))
        return grads, metrics, updated

    def added_up(state, parts, keys_of):
        """The same of a batch in parts, whose losses add up."""

        def add(carry, part):
            grads, stats = carry
            index, batch = part
            new, metrics, stats = at_once(state, batch, keys_of(index), stats)
            return (jax.tree.map(jnp.add, grads, new), stats), metrics

        zeros = jax.tree.map(jnp.zeros_like, trained(state.params))
        (grads, stats), metrics = jax.lax.scan(add, (zeros, state.stats), parts)
        return grads, jax.tree.map(lambda x: x.sum(0), metrics), stats

    def compared(state, parts, keys_of, batch):
        """The same of a batch in parts, whose embeddings are compared."""

        def embed(params, stats, part):
            index, rows = part
            return forward(state, params, stats, rows, keys_of(index), method="embed")

        def embed_next(stats, part):
            embedded, stats = embed(state.params, stats, part)
            return stats, embedded

        def loss(params, embedded):
            rows, whole = batch["row"].shape[0], {**batch, "step": state.step}
            return losses(
                apply(state, params, state.stats, rows, embedded, whole, method="compare")
            )

        stats, embedded = jax.lax.scan(embed_next, state.stats, parts)
        slopes = jax.grad(loss, argnums=(0, 1), has_aux=True)
        params = trained(state.params)
        (grads, slopes), metrics = slopes(params, jax.tree.map(joined, embedded))

        def add(grads, part_and_slopes):
            part, slopes = part_and_slopes
            _, pull = jax.vjp(lambda params: embed(params, state.stats, part)[0], params)
            return jax.tree.map(jnp.add, grads, *pull(slopes)), None

        grads, _ = jax.lax.scan(add, grads, (parts, jax.tree.map(cut, slopes)))
        return grads, metrics, stats

    def trained(params):
        """The parameters that have a gradient; None in place of the others."""
        return rules.without(objective.frozen, params)

    def filled(some, everything):
        """Everything, of which some is given and None elsewhere."""
        return jax.tree.map(lambda x, y: x if y is None else y, everything, some)

    # Strided, so that every device cuts its own rows and nothing moves between devices.
    def cut(x):
        return x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1)

    def joined(x):
        return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        corrupt, dropout = jax.random.split(key)

        def keys_of(index):
            return {"corrupt": corrupt, "dropout": jax.random.fold_in(dropout, index)}

        if micro_batches == 1:
            grads, metrics, stats = at_once(state, batch, keys_of(0), state.stats)
        else:
            parts = (jnp.arange(micro_batches), jax.tree.map(cut, batch))
            if objective.whole_batch:
                grads, metrics, stats = compared(state, parts, keys_of, batch)
            else:
                grads, metrics, stats = added_up(state, parts, keys_of)

        stats = objective.settled(stats)
        weight = jnp.maximum(metrics["loss"][1], 1e-9)
        grads = jax.tree.map(lambda g: g / weight, grads)
        grads = filled(grads, jax.tree.map(jnp.zeros_like, state.params))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = objective.constrained(optax.apply_updates(state.params, updates))
        average = state.ema
        if average is not None:
            average = optax.incremental_update(params, average, 1.0 - ema)
        teacher = state.teacher
        if teacher is not None:
            slow = momentum(state.step)
            teacher = jax.tree.map(
                lambda new, old: None if old is None else slow * old + (1 - slow) * new,
                params,
                teacher,
            )
        metrics |= {
            "grad_norm": optax.global_norm(grads),
            "update_norm": optax.global_norm(updates),
            "lr": jnp.asarray(schedule(state.step), jnp.float32),
            "finite": jnp.stack([jnp.isfinite(g).all() for g in jax.tree.leaves(grads)]),
        }
        return (
            state.replace(
                step=state.step + 1,
                params=params,
                stats=stats,
                opt_state=opt_state,
                ema=average,
                teacher=teacher,
            ),
            metrics,
        )

    return step
