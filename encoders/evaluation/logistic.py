"""Multinomial logistic regression by full-batch L-BFGS, on the mesh.

Minimises   sum_n w_n CE(x_n W + b, y_n) / sum_n w_n  +  l2 / 2 |W|^2

which is convex with one minimum, so that the result depends on the data alone: no learning rate,
epochs or seed. Features are rotated to their principal axes (which leaves the penalty as it is) and
each axis is scaled by the most curvature it can have (Boehning 1992: the Hessian of the
cross-entropy is bounded by half the features' covariance). Features that are as correlated as those
of neural networks then cost tens of iterations, not thousands.

Features may be those of L layers, x_n = sum_l softmax(m)_l x_nl with m learnt, too. That is no
longer convex; it starts from equal weights.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from encoders.evaluation.base import put_whole
from encoders.parallel.mesh import BATCH_AXES, batch_shards, to_host

LOGITS_PER_CHUNK = 2**24


class Solution(NamedTuple):
    """weights [D, C] and bias [C] for the features as given; how the solver ended.

    Of several layers also the part [L] that each has in the features.
    """

    weights: np.ndarray
    bias: np.ndarray
    iterations: int
    loss: float
    layers: np.ndarray | None = None

    def logits(self, features: np.ndarray) -> np.ndarray:
        """[N, D] or [N, L, D] -> [N, C]."""
        if self.layers is not None:
            features = np.einsum("l,nld->nd", self.layers, features)
        return features @ self.weights + self.bias


class LogisticRegression:
    """A training set on the mesh, to be fitted with several penalties and weightings.

    Args:
      features: [N, D] float32, centred and scaled; or [N, L, D], of several layers.
      labels: [N] int, from 0.
      num_classes: C.
      mesh: devices, or None; rows are split over its batch axes.
      max_iterations: of L-BFGS.
      tolerance: the solver stops when no component of the scaled gradient is larger.
    """

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        num_classes: int,
        *,
        mesh: Mesh | None = None,
        max_iterations: int = 100,
        tolerance: float = 1e-4,
    ):
        self.num_classes, self.mesh = num_classes, mesh
        self.limits = np.int32(max_iterations), np.float32(tolerance)
        self.examples = len(labels)
        shards = 1 if mesh is None else batch_shards(mesh)
        self._chunks = math.ceil(self.examples * num_classes / shards / LOGITS_PER_CHUNK)
        self._rows = math.ceil(self.examples / (self._chunks * shards)) * shards
        self.layers = None if features.ndim == 2 else features.shape[1]
        # Of layers that count alike, as they do at the start.
        mean = features if features.ndim == 2 else features.mean(1)
        covariance = (mean.T @ mean).astype(np.float64) / self.examples
        curvature, axes = np.linalg.eigh(covariance)
        self._curvature = np.maximum(curvature, 0.0) / 2
        self._axes = axes.astype(np.float32)
        self._features = self._spread(features @ self._axes)
        self._labels = self._spread(labels.astype(np.int32))

    def fit(
        self, l2: float, weights: np.ndarray | None = None, start: Solution | None = None
    ) -> Solution:
        """The minimum for one penalty.

        Args:
          l2: strength of the penalty, above 0.
          weights: [N] float, of the examples; None is 1 for all.
          start: a solution to start from, such as that of a nearby penalty.
        """
        scale = 1 / np.sqrt(self._curvature + l2)
        kernel = np.zeros((len(scale), self.num_classes))
        bias = np.zeros(self.num_classes)
        mixture = {} if self.layers is None else {"layers": np.zeros(self.layers)}
        if start is not None:
            kernel, bias = self._axes.T @ start.weights / scale[:, None], start.bias
            mixture = {} if start.layers is None else {"layers": np.log(start.layers + 1e-30)}
        weights = np.ones(self.examples) if weights is None else weights
        initial = {"kernel": kernel, "bias": bias, **mixture}
        found = _solve(
            {name: self._everywhere(value) for name, value in initial.items()},
            (self._features, self._labels, self._spread(weights.astype(np.float32))),
            self._everywhere(scale),
            self._everywhere(l2),
            *(put_whole(np.asarray(x), self.mesh, P()) for x in self.limits),
        )
        parameters, iterations, loss = to_host(found)
        kernel = self._axes @ (scale[:, None] * parameters["kernel"]).astype(np.float32)
        layers = None if self.layers is None else _softmax(parameters["layers"])
        return Solution(kernel, parameters["bias"], int(iterations), float(loss), layers)

    def _everywhere(self, array: Any) -> jax.Array:
        return put_whole(np.asarray(array, np.float32), self.mesh, P())

    def _spread(self, array: np.ndarray) -> jax.Array:
        """[N, ...] -> [chunks, rows, ...], zeros at the end, rows split over the batch axes."""
        missing = self._chunks * self._rows - self.examples
        array = np.pad(array, ((0, missing), *((0, 0),) * (array.ndim - 1)))
        array = array.reshape(self._chunks, self._rows, *array.shape[1:])
        return put_whole(array, self.mesh, P(None, BATCH_AXES))


@jax.jit
def _solve(
    start: dict[str, jax.Array],
    data: tuple[jax.Array, jax.Array, jax.Array],
    scale: jax.Array,
    l2: jax.Array,
    max_iterations: jax.Array,
    tolerance: jax.Array,
) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    """L-BFGS from `start`; kernels are relative to `scale` [D]. Returns (end, iterations, loss).

    `start` has 'layers' [L], logits, where features are [N, L, D].
    """
    total = data[2].sum()

    def objective(parameters: dict[str, jax.Array]) -> jax.Array:
        kernel = scale[:, None] * parameters["kernel"]
        mixture = jax.nn.softmax(parameters["layers"]) if "layers" in parameters else None

        @jax.checkpoint  # logits of one chunk at a time, backward too
        def add(so_far: jax.Array, part: tuple) -> tuple[jax.Array, None]:
            features, labels, weights = part
            if mixture is not None:
                features = jnp.einsum("l,nld->nd", mixture, features, precision="highest")
            logits = jnp.matmul(features, kernel, precision="highest") + parameters["bias"]
            losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
            return so_far + (losses * weights).sum(), None

        fit, _ = jax.lax.scan(add, jnp.zeros(()), data)
        return fit / total + l2 / 2 * jnp.square(kernel).sum()

    solver = optax.lbfgs(
        linesearch=optax.scale_by_zoom_linesearch(
            max_linesearch_steps=15, initial_guess_strategy="one"
        )
    )
    value_and_grad = optax.value_and_grad_from_state(objective)

    def iterate(carry: tuple) -> tuple:
        parameters, state, iteration, _, _ = carry
        value, grad = value_and_grad(parameters, state=state)
        updates, state = solver.update(
            grad, state, parameters, value=value, grad=grad, value_fn=objective
        )
        parameters = optax.apply_updates(parameters, updates)
        grad, value = optax.tree.get(state, "grad"), optax.tree.get(state, "value")
        steepest = jnp.max(jnp.stack([jnp.abs(g).max() for g in jax.tree.leaves(grad)]))
        return parameters, state, iteration + 1, steepest, value

    def unfinished(carry: tuple) -> jax.Array:
        return (carry[2] < max_iterations) & (carry[3] > tolerance)

    infinite = jnp.full((), jnp.inf)
    carry = (start, solver.init(start), jnp.zeros((), jnp.int32), infinite, infinite)
    parameters, _, iterations, _, loss = jax.lax.while_loop(unfinished, iterate, carry)
    return parameters, iterations, loss


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()
