"""The typed sections of a config that are not built from a table: the schema of its top level."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from encoders.errors import ConfigError, nearest
from encoders.parallel import sharding


@dataclasses.dataclass(frozen=True)
class Data:
    """config.data: where examples come from and how the host prepares them."""

    source: Mapping[str, Any]
    transforms: tuple[Mapping[str, Any], ...] = ()
    examples_per_epoch: int | None = None
    threads: int | None = None
    processes: int = 0
    max_corrupt_rate: float | None = None
    prefetch: int = 2


@dataclasses.dataclass(frozen=True)
class InitFrom:
    """config.init_from: weights to start from (see `checkpoints.partial`)."""

    path: str
    load: tuple[tuple[str, Any], ...] = ((r"encoder/.*", True),)
    fresh: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """config.checkpoint: when to save and what to keep."""

    every: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"percent": 10})
    keep_last: int = 1
    keep_every: Mapping[str, float] | None = None
    best_metric: str | None = None
    best_mode: Literal["max", "min"] = "max"

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise ConfigError(f"checkpoint.keep_last: expected 1 or more, got {self.keep_last}.")


@dataclasses.dataclass(frozen=True)
class Log:
    """config.log: how often metrics are written, and which steps are profiled."""

    every: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"steps": 50})
    tensorboard: bool = True
    profile_steps: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        first, last = self.profile_steps or (0, 1)
        if not 0 <= first < last:
            raise ConfigError(
                f"log.profile_steps: expected a step and a later one, got {self.profile_steps}."
            )


@dataclasses.dataclass(frozen=True)
class Deadlines:
    """config.deadlines: seconds after which a run that makes no progress is ended; None for never.

    Attributes:
      startup: opening data, restoring and compiling, up to the first step.
      step: one step, with the wait for its batch.
      evaluation: from one batch of an evaluation to the next, compilation and probes included.
      barrier: a save, which waits for the slowest process.
    """

    startup: float | None = 3600.0
    step: float | None = 900.0
    evaluation: float | None = 3600.0
    barrier: float | None = 1800.0


@dataclasses.dataclass(frozen=True)
class Hardware:
    """config.hardware: how the machine is used; changes speed and memory, never what is computed.

    But for rounding, and but for dropout: other micro-batches drop other units.

    compute_dtype None means bfloat16 on accelerators and float32 on CPU. environment has variables
    to set before jax starts; what the user's own environment has is appended, and so wins.
    """

    mesh: Mapping[str, int] = dataclasses.field(default_factory=dict)
    micro_batches: int = 1
    compute_dtype: Literal["float32", "bfloat16"] | None = None
    tensor_rules: tuple[tuple[str, tuple[str | None, ...]], ...] = sharding.TENSOR_RULES
    fsdp_min_size: int = 2**14
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Sections:
    """The top level of a config: its schema."""

    model: Mapping[str, Any]
    objective: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    data: Data
    optimizer: Mapping[str, Any]
    duration: Mapping[str, float]
    batch_size: int
    seed: int = 0
    ema: float | None = None
    init_from: InitFrom | None = None
    evaluators: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    deadlines: Deadlines = Deadlines()
    hardware: Hardware = Hardware()

    def __post_init__(self) -> None:
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ConfigError(f"ema: expected a share from 0 and below 1, got {self.ema}.")
        for name, section in self.evaluators.items():
            if not isinstance(section, Mapping):
                raise ConfigError(f"evaluators.{name}: expected a section, got {section!r}.")
        best = self.checkpoint.best_metric
        if best is not None and evaluator_of(best) not in self.evaluators:
            raise ConfigError(
                f"checkpoint.best_metric: expected eval/EVALUATOR/METRIC of an evaluator that the "
                f"config has, got '{best}'.{nearest(evaluator_of(best) or '', self.evaluators)}"
            )


def evaluator_of(metric: str) -> str | None:
    """The evaluator of a metric 'eval/<evaluator>/...'; None for a metric of training."""
    kind, _, rest = metric.partition("/")
    return rest.partition("/")[0] if kind == "eval" else None
