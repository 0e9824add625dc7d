"""How well hidden tokens of held-out text are guessed, beside what counting words alone gives."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from encoders.data.token_store import unigram_entropy
from encoders.errors import ConfigError, DataError
from encoders.evaluation.base import Evaluator, batches, on_mesh, place


@dataclasses.dataclass(kw_only=True)
class MaskedAccuracy(Evaluator):
    """Loss and accuracy of a masked-language objective on `test`.

    What is hidden depends on a row's number in the source alone: the same tokens at every step, for
    every batch size and on every mesh.

    Metrics: 'accuracy' of hidden tokens, 'loss' in nats per hidden token, 'perplexity' (its
    exponential), what other metrics the objective has, and 'unigram': the entropy in nats of the
    test set's own tokens, special ones left out. Guesses from frequencies alone do not go below it.
    """

    subject: ClassVar[Literal["encoder", "objective"]] = "objective"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._compiled: tuple[nn.Module, Any] | None = None
        self._unigram: float | None = None

    def run(
        self, module: nn.Module, variables: Mapping[str, Any], *, step: int | None = None
    ) -> dict[str, float]:
        if self._compiled is None or self._compiled[0] != module:
            function = on_mesh(
                lambda variables, batch: _sums(module, variables, batch),
                self.preprocessing, self.mesh, self.compute_dtype,
            )  # fmt: skip
            self._compiled = module, function
        variables = place(variables, self.mesh)
        sums: dict[str, np.ndarray] = collections.defaultdict(lambda: np.zeros(2))
        counts: collections.Counter = collections.Counter()
        pending: collections.deque = collections.deque()

        def collect() -> None:
            found, ids = jax.device_get(pending.popleft())
            for name, pair in found.items():
                sums[name] += np.asarray(pair, np.float64)
            if self._unigram is None:
                values, times = np.unique(ids[ids >= 0], return_counts=True)
                counts.update(dict(zip(values.tolist(), times.tolist(), strict=True)))

        for batch in batches(self.test_source, self.preprocessing, self.batch_size, self.mesh):
            pending.append(self._compiled[1](variables, batch))
            if len(pending) > 2:  # the device works on the next ones meanwhile
                collect()
        while pending:
            collect()
        if self._unigram is None:
            self._unigram = unigram_entropy(np.array(list(counts.values())))
        return self._means(module, sums)

    def _means(self, module: nn.Module, sums: Mapping[str, np.ndarray]) -> dict[str, float]:
        if "accuracy" not in sums:
            raise ConfigError(
                f"evaluators.{self.label}: {type(module).__name__} guesses no hidden tokens; this "
                "evaluator needs an objective such as masked_language."
            )
        if not sums["accuracy"][1]:
            raise DataError(f"evaluators.{self.label}.test: no token of it was hidden.")
        found = {name: float(total / weight) for name, (total, weight) in sums.items() if weight}
        found["loss"] = found.pop("token_loss", found["loss"])
        perplexity = math.exp(min(found["loss"], 700.0))
        return {**found, "perplexity": perplexity, "unigram": self._unigram}


def _sums(
    module: nn.Module, variables: Mapping[str, Any], batch: Mapping[str, jax.Array]
) -> tuple[dict[str, tuple], jax.Array]:
    """(sum, weight) of loss and metrics; ids [B, T], -1 where there is no token to count."""
    vocabulary = getattr(module, "vocabulary", None)
    if vocabulary is None or "ids" not in batch:
        raise ConfigError(
            f"masked_accuracy: {type(module).__name__} guesses no hidden tokens; this evaluator "
            "needs an objective on text, such as masked_language."
        )
    outcome = module.apply(variables, batch, train=False)
    word = (batch["segments"] > 0) & batch["valid"][:, None]
    word &= ~jnp.isin(batch["ids"], jnp.asarray(vocabulary.special_ids))
    sums = {**outcome.metrics, "loss": (outcome.loss, outcome.weight)}
    return sums, jnp.where(word, batch["ids"], -1)
