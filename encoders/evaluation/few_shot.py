"""Few-shot ridge regression on frozen features, in closed form.

As papers on ViT report it (arXiv 2010.11929, section 4.1): regression to -1 or 1 for every class.
It differs in how the penalty is chosen: on training examples that are not among the shots, never
on the test set.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from encoders.errors import ConfigError, DataError
from encoders.evaluation.features import Labelled
from encoders.evaluation.probe import Probe, standardize


@dataclasses.dataclass(kw_only=True)
class FewShot(Probe):
    """Ridge regression from a few labelled examples of every class.

    Metrics: 'shots{n}', accuracy with n shots as the mean over draws, 'shots{n}_std', its standard
    deviation over draws, and 'accuracy', that of the most shots.

    Attributes:
      shots: examples per class.
      draws: how many times the shots are drawn; the seeds are `seed`, `seed` + 1, ...
      l2: penalties on |W|^2, against the sum of squared errors over standardised features.
      max_validation: how many other training examples the penalty is chosen on.
    """

    shots: tuple[int, ...] = (1, 5, 10)
    draws: int = 3
    l2: tuple[float, ...] = tuple(2.0**power for power in range(-6, 21, 2))
    max_validation: int = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shots or min(self.shots) < 1 or self.draws < 1 or min(self.l2) <= 0:
            raise ConfigError(
                f"evaluators.{self.label}: expected shots and draws of at least 1 and penalties "
                f"above 0, got {self.shots}, {self.draws} and {self.l2}."
            )

    def score(self, train: Labelled, test: Labelled, num_classes: int) -> dict[str, float]:
        found = {}
        for shots in sorted(self.shots):
            draws = [self._draw(shots, d, train, test, num_classes) for d in range(self.draws)]
            found[f"shots{shots}"] = float(np.mean(draws))
            found[f"shots{shots}_std"] = float(np.std(draws))
        return {"accuracy": found[f"shots{max(self.shots)}"], **found}

    def _draw(
        self, shots: int, draw: int, train: Labelled, test: Labelled, num_classes: int
    ) -> float:
        rng = np.random.default_rng((self.seed + draw, shots))
        chosen = self._choose(train.labels, shots, num_classes, rng)
        others = np.ones(len(train.labels), bool)
        others[chosen] = False
        others = np.flatnonzero(others)
        if len(others) == 0:
            raise DataError(
                f"evaluators.{self.label}: {shots} shots are all of train; the penalty needs "
                "others to be chosen on."
            )
        others = rng.permutation(others)[: self.max_validation]
        features, validation, tested = standardize(
            train.features[chosen],
            train.features[others],
            test.features,
            one_scale=train.one_scale,
        )
        targets = 2.0 * np.eye(num_classes, dtype=np.float32)[train.labels[chosen]] - 1.0
        kernels, bias = jax.device_get(
            _ridge(*jax.device_put((features, targets, np.asarray(self.l2, np.float32))))
        )
        right = [
            ((validation @ kernel + bias).argmax(1) == train.labels[others]).mean()
            for kernel in kernels
        ]
        best = kernels[len(right) - 1 - int(np.argmax(right[::-1]))]  # of equals the strongest
        return float(((tested @ best + bias).argmax(1) == test.labels).mean())

    def _choose(
        self, labels: np.ndarray, shots: int, num_classes: int, rng: np.random.Generator
    ) -> np.ndarray:
        chosen = []
        for label in range(num_classes):
            rows = np.flatnonzero(labels == label)
            if len(rows) < shots:
                raise DataError(
                    f"evaluators.{self.label}.shots: {shots} shots, but class {label} has "
                    f"{len(rows)} training examples."
                )
            chosen.append(rng.choice(rows, shots, replace=False))
        return np.concatenate(chosen)


@jax.jit
def _ridge(features: jax.Array, targets: jax.Array, l2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Minimises |X W + b - Y|^2 + l2 |W|^2 for every penalty, from one eigendecomposition.

    Args:
      features: X [N, D], columns of mean 0 (so that b is the mean of Y).
      targets: Y [N, C].
      l2: [S].

    Returns:
      W [S, D, C] and b [C].
    """
    with jax.default_matmul_precision("highest"):
        bias = targets.mean(0)
        targets = targets - bias
        if features.shape[0] <= features.shape[1]:  # W = X^T (X X^T + l2)^-1 Y
            values, vectors = jnp.linalg.eigh(features @ features.T)
            left, right = features.T @ vectors, vectors.T @ targets
        else:  # W = (X^T X + l2)^-1 X^T Y
            values, left = jnp.linalg.eigh(features.T @ features)
            right = left.T @ (features.T @ targets)
        shrink = 1 / (jnp.maximum(values, 0.0) + l2[:, None])
        return jnp.einsum("dk,sk,kc->sdc", left, shrink, right), bias
