"""What every objective is: an encoder, heads, corruption and a loss, in one Linen module."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from encoders.errors import ConfigError
from encoders.types import Outcome

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Momentum:
    """How a momentum teacher follows: after every step, m * teacher + (1 - m) * student.

    Attributes:
      start: m after the first step, from 0 to 1.
      end: what m goes to and stays at; None for `start`.
      over: how long that takes, a duration; None for the whole run.
      shape: how it goes there, along a straight line or half a cosine.
    """

    start: float
    end: float | None = None
    over: Mapping[str, Any] | None = dataclasses.field(default=None, hash=False)
    shape: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        for field in ("start", "end"):
            value = getattr(self, field)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"objective.momentum.{field}: {value} is not from 0 to 1.")


class Objective(nn.Module):
    """Base of all objectives.

    Subclasses implement `__call__` and `flops`. Random corruption draws from the stream 'corrupt';
    what one example gets depends on its row in the global batch alone (`rng_per_example`), so
    micro-batches and devices change nothing. A batch may have 'valid' [B] bool: rows where it is
    False are padding and count in no sum.

    An objective that learns from a frozen network has a field `teacher` with its module. The
    training step holds the teacher's variables and passes them as the collection 'teacher'.

    An objective that learns from a slow copy of itself has a field `momentum: Momentum` instead,
    and says in `followed` what the copy is of. The training step keeps it, moves it after every
    step and passes it in the same way; `taught` runs any method with it.

    An objective whose targets may all become one has a field `guard: Guard` that says which of its
    metrics would show that, and `advice`; training then stops the run with it.

    A batch in training has `step`, an int32 scalar, for what changes in the course of it.

    An objective whose loss compares examples with one another says `whole_batch`: of a batch that
    was cut into micro-batches it would be another loss. Where it is made of two methods,
    `embed(batch, train=...)`, vectors of each example on its own, a dict of [B, ...], and
    `compare(embedded, batch)`, the Outcome of all of them, training embeds part by part and
    compares the whole (`training.step`); otherwise it refuses to cut.

    Attributes:
      encoder: the network that is trained; its parameters are in params['encoder'].
    """

    encoder: nn.Module
    whole_batch = False  # not a field: it belongs to the class
    # Not fields here: objectives without a teacher, or a guard, have none to configure.
    teacher = None
    momentum = None
    guard = None
    advice = ""  # what to do about a collapse
    followed = (r"encoder/.*",)  # regexes of parameters that a momentum teacher has its own of

    def __call__(self, batch: Batch, *, train: bool = False) -> Outcome:
        """Returns the loss sum, its weight, and metrics of a (micro-)batch."""
        raise NotImplementedError

    def flops(self, input_size: Any) -> float:
        """Forward FLOPs per training example of that size: (height, width), or T tokens."""
        raise NotImplementedError

    def example_batch(self, preprocessing: Any, rows: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the shapes and types of training.

        Overridden by objectives whose examples are more than one input of the encoder.
        """
        return preprocessing.example_batch(rows)

    def check_source(self, source: Any) -> None:
        """Raises a ConfigError where the training data does not fit; none does so for most."""

    @property
    def frozen(self) -> tuple[str, ...]:
        """Regexes of parameters that get no gradient, which the optimizer then leaves out."""
        return ()

    def constrained(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Parameters as they may be, from those that a step has led to."""
        return params

    def settled(self, stats: Mapping[str, Any]) -> Mapping[str, Any]:
        """Collections of statistics after a step, from those that the last micro-batch has left.

        What every part of a batch should see as it was before the step is added up beside it, and
        changes here.
        """
        return stats

    def taught(self, method: str | Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What one of its methods gives with the parameters of the momentum teacher; no gradient.

        Those that are not `followed` are the student's; and all are where there is no teacher
        (evaluation, initialisation). Call it after the student has run, which makes them.

        Args:
          method: its name, or a function whose first argument is the objective.
          *arguments, **options: as of `flax.linen.Module.apply`.
        """
        module, variables = self.unbind()
        variables = {**variables, **variables.get("teacher", {})}
        variables.pop("teacher", None)
        return jax.lax.stop_gradient(module.apply(variables, *arguments, method=method, **options))

    @staticmethod
    def alone(params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Its parameters, with those of the encoder as they are without the objective.

        The same tree, but of objectives that train a part of the encoder as a difference.
        """
        return params

    def rng_per_example(self, batch: Batch) -> jax.Array:
        """One key per example [B]: from the stream 'corrupt' in training, fixed in evaluation."""
        return per_example_keys(self.corrupt_key(), rows(batch))

    def corrupt_key(self) -> jax.Array:
        """The key of stream 'corrupt', or a fixed one where none is given (evaluation)."""
        return self.make_rng("corrupt") if self.has_rng("corrupt") else jax.random.key(0)


def per_example_keys(key: jax.Array, row: jax.Array) -> jax.Array:
    """Keys [B] that depend on `key` and on each example's row [B] in the global batch alone."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(row)


def rows(batch: Batch) -> jax.Array:
    """Rows [B] of the global batch; a batch that does not say is a whole one."""
    if "row" in batch:
        return batch["row"]
    return jnp.arange(next(iter(batch.values())).shape[0])


def valid_weights(batch: Batch) -> jax.Array:
    """float32 [B]: 1 for real examples, 0 for padding."""
    if "valid" in batch:
        return batch["valid"].astype(jnp.float32)
    return jnp.ones(next(iter(batch.values())).shape[0], jnp.float32)
