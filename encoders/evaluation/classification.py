"""Accuracy of a classifier's own head."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from encoders.data.preprocessing import labels_of
from encoders.errors import ConfigError
from encoders.evaluation.base import Evaluator, batches, on_mesh, place


@dataclasses.dataclass(kw_only=True)
class Classification(Evaluator):
    """Accuracy and cross-entropy on `test`, for any objective whose `logits` are [B, C].

    Metrics: 'accuracy', 'top5' (where there are more than five classes) and 'cross_entropy' in nats
    (of the softmax, whatever the loss was), as sums over valid examples divided once.
    """

    subject: ClassVar[Literal["encoder", "objective"]] = "objective"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._compiled: tuple[nn.Module, Any] | None = None

    def run(
        self, module: nn.Module, variables: Mapping[str, Any], *, step: int | None = None
    ) -> dict[str, float]:
        if not callable(getattr(module, "logits", None)):
            raise ConfigError(
                f"evaluators.{self.label}: {type(module).__name__} has no logits to score; this "
                "evaluator needs an objective with a classification head."
            )
        if self._compiled is None or self._compiled[0] != module:
            function = on_mesh(
                lambda variables, batch: _sums(
                    module, variables, batch, self.preprocessing.encoder_inputs(batch)
                ),
                self.preprocessing, self.mesh, self.compute_dtype,
            )  # fmt: skip
            self._compiled = module, function
        variables = place(variables, self.mesh)
        pending = [
            self._compiled[1](variables, batch)
            for batch in batches(self.test_source, self.preprocessing, self.batch_size, self.mesh)
        ]
        sums = {k: np.sum([x[k] for x in jax.device_get(pending)], 0, float) for k in pending[0]}
        weight = sums.pop("weight")
        return {name: float(value / weight) for name, value in sums.items()}


def _sums(
    module: nn.Module,
    variables: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    given: tuple[tuple, dict[str, Any]],
) -> dict[str, jax.Array]:
    """Sums over a batch, of which `given` are what logits are of, positional and by name."""
    labels = labels_of(batch)
    inputs, named = given
    logits = module.apply(variables, *inputs, **named, method="logits").astype(jnp.float32)
    valid = batch["valid"].astype(jnp.float32)
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    # A tie counts as wrong unless the label comes first, as argmax has it.
    earlier = jnp.arange(logits.shape[1]) < labels[:, None]
    ahead = (logits > own[:, None]) | ((logits == own[:, None]) & earlier)
    rank = ahead.sum(1)
    found = {
        "accuracy": ((rank < 1) * valid).sum(),
        "cross_entropy": ((jax.nn.logsumexp(logits, axis=1) - own) * valid).sum(),
        "weight": valid.sum(),
    }
    if logits.shape[1] > 5:
        found["top5"] = ((rank < 5) * valid).sum()
    return found
