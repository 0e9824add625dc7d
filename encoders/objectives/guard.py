"""When a run has collapsed: what it learns from has become one and the same.

Some losses are smallest where nothing is learned: a quantizer that makes one code of everything, a
teacher whose targets are constant. Loss curves look best then. So objectives that can collapse have
a metric that shows it, and a guard says how low that may be and for how long. Training looks
whenever it reads its metrics, and looks at every step. The count travels in checkpoints, so a run
that is resumed stops where it would have stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from encoders.errors import CollapseError, ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class Guard:
    """A run that is below a floor for `patience` steps on end has collapsed.

    Attributes:
      floors: metric -> the least that a healthy run has; {} is no guard.
      patience: steps.
      after: steps at the beginning that do not count.
    """

    floors: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    patience: int = 500
    after: int = 0

    def __post_init__(self) -> None:
        if self.patience < 1 or self.after < 0:
            raise ConfigError(
                f"objective.guard: expected patience from 1 and after from 0, got "
                f"{self.patience} and {self.after}."
            )


class Watch:
    """Counts for how many steps on end a run has been below each of the floors of its guard.

    Args:
      guard: the objective's, or None.
      advice: what to do about a collapse, for its message.
      below: the counts of a run that is resumed; None at its start.

    Attributes:
      below: metric -> steps on end, the last one that was looked at included.
    """

    def __init__(self, guard: Guard | None, advice: str, below: Mapping[str, int] | None = None):
        self._guard = Guard() if guard is None else guard
        self._advice = advice
        self.below = {name: (below or {}).get(name, 0) for name in self._guard.floors}

    def look(self, step: int, metrics: Mapping[str, float]) -> None:
        """Looks at the metrics of one step; steps come in order.

        Raises:
          CollapseError: the run has been below a floor for too long.
          ConfigError: the objective has no such metric.
        """
        guard = self._guard
        for name, floor in guard.floors.items():
            if name not in metrics:
                raise ConfigError(
                    f"objective.guard.floors: no metric '{name}'.{nearest(name, metrics)}"
                )
            low = step > guard.after and not metrics[name] >= floor
            self.below[name] = self.below[name] + 1 if low else 0
            if self.below[name] >= guard.patience:
                raise CollapseError(
                    f"step {step}: the run has collapsed, its {name} of {metrics[name]:.4g} has "
                    f"been below objective.guard's {floor:g} since step "
                    f"{step - guard.patience + 1}; {self._advice}."
                )
