"""One training step of an objective on any mesh, as the tests of objectives compare it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from encoders.parallel.mesh import to_device
from encoders.parallel.sharding import named, parameter_specs
from encoders.training.state import TrainState
from encoders.training.step import make_step


def one_step(module, params, batch, mesh, micro_batches=1, stats=None):
    """Metrics and gradients of step 3, with everything sharded that can be."""
    state, metrics = stepped(module, params, batch, mesh, micro_batches, stats)
    return metrics, jax.tree.map(lambda old, new: old - np.asarray(new), params, state.params)


def stepped(module, params, batch, mesh, micro_batches=1, stats=None, teacher=None):
    """The state after that step, and its metrics; a teacher stays as it is."""
    optimizer = optax.sgd(1.0)  # so that the change of the parameters is the gradient
    placed = jax.device_put(params, named(mesh, parameter_specs(params, mesh, min_size=1)))
    state = TrainState(jnp.int32(3), placed, stats or {}, optimizer.init(placed), teacher=teacher)
    step = make_step(
        module,
        optimizer,
        optax.constant_schedule(1.0),
        seed=7,
        normalize=lambda x: x,
        mesh=mesh,
        micro_batches=micro_batches,
        momentum=optax.constant_schedule(1.0),
    )
    return jax.jit(step)(state, to_device(batch, mesh))
