"""One training step of an objective on any mesh, as the tests of objectives compare it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from encoders.parallel.mesh import to_device
from encoders.parallel.sharding import named, parameter_specs
from encoders.training.state import TrainState
from encoders.training.step import make_step


def one_step(module, params, batch, mesh, micro_batches=1):
    """Metrics and gradients of step 3, with everything sharded that can be."""
    optimizer = optax.sgd(1.0)  # so that the change of the parameters is the gradient
    placed = jax.device_put(params, named(mesh, parameter_specs(params, mesh, min_size=1)))
    state = TrainState(jnp.int32(3), placed, {}, optimizer.init(placed))
    step = make_step(
        module,
        optimizer,
        optax.constant_schedule(1.0),
        seed=7,
        normalize=lambda x: x,
        mesh=mesh,
        micro_batches=micro_batches,
    )
    state, metrics = jax.jit(step)(state, to_device(batch, mesh))
    return metrics, jax.tree.map(lambda old, new: old - np.asarray(new), params, state.params)
