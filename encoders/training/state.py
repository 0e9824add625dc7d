"""Everything that a run carries from one step to the next, sharded from birth."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class TrainState:
    """The arrays of a run; a batch and all randomness follow from (seed, step).

    Attributes:
      step: int32 scalar, steps taken so far.
      params: the objective's parameters, float32.
      stats: other collections that the objective updates (running statistics), or {}.
      opt_state: the optimizer's state.
      ema: moving average of params, or None.
      teacher: what a momentum teacher has of its own, with None where it has the parameters, or
        None.
      frozen_teacher: variables of a teacher that stays as it is, or None; no checkpoint has them.
    """

    step: jax.Array
    params: Any
    stats: Any
    opt_state: Any
    ema: Any = None
    teacher: Any = None
    frozen_teacher: Any = None

    @property
    def best_params(self) -> Any:
        """What evaluation and export use: the average if there is one."""
        return self.params if self.ema is None else self.ema
