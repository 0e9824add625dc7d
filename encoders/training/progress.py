"""The line that says how a run is doing: a live bar on a terminal, plain lines without one.

Of several processes only the first one shows anything.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

# metric -> how it is shown
_SHOWN: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("train/loss", lambda v: f"loss {v:.4f}"),
    ("train/examples_per_second", lambda v: f"{v:,.0f} examples/s"),
    ("train/mfu", lambda v: f"MFU {100 * v:.1f}%"),
    ("train/data_wait", lambda v: f"data wait {100 * v:.1f}%"),
)


class Progress:
    """Shows step, time left, loss, examples/s, MFU and data wait.

    Args:
      total_steps: length of the run.
      first_step: where this session starts.
      stream: where to write; a terminal gets a bar, anything else a line now and then.
      seconds: least time between two plain lines.
      clock: seconds, for tests.
    """

    def __init__(
        self,
        total_steps: int,
        first_step: int = 0,
        *,
        stream: IO[str] | None = None,
        seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.seconds, self._clock = total_steps, seconds, clock
        self._stream = sys.stdout if stream is None else stream
        self._began: tuple[int, float] | None = None
        self._printed = -float("inf")
        self._metrics: dict[str, float] = {}
        self._shown_step = first_step
        self._bar = None
        self._silent = jax.process_index() != 0
        if self._stream.isatty() and not self._silent:
            self._bar = Bar(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:3.0f}%"),
                TextColumn("{task.fields[text]}"),
                console=Console(file=self._stream),
                refresh_per_second=4,
                expand=True,
            )
            self._task = self._bar.add_task("", total=total_steps, completed=first_step, text="")
            self._bar.start()

    def update(self, step: int, metrics: Mapping[str, Any] | None = None) -> None:
        """Says that `step` steps are done; cheap enough for every step.

        Args:
          step: steps done.
          metrics: the latest record, when there is a new one; only with one is a line printed.
        """
        if self._began is None:
            self._began = step, self._clock()
        self._shown_step = step
        if metrics:
            self._metrics.update(metrics)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=self._text(step))
        elif metrics and (step >= self.total or self._clock() - self._printed >= self.seconds):
            self._printed = self._clock()
            share = 100 * step / max(self.total, 1)
            self._line(f"step {step:,}/{self.total:,} ({share:.0f}%)  {self._text(step)}")

    def note(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            self._line(text)

    def close(self) -> None:
        """Leaves the last state of the bar on the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _line(self, text: str) -> None:
        if not self._silent:
            print(text, file=self._stream, flush=True)

    def _text(self, step: int) -> str:
        parts = [
            show(self._metrics[name])
            for name, show in _SHOWN
            if isinstance(self._metrics.get(name), int | float)
        ]
        left = self._seconds_left(step)
        if left is not None:
            parts.append(f"ETA {duration(left)}")
        return "  ".join(parts)

    def _seconds_left(self, step: int) -> float | None:
        first, began = self._began
        if step <= first:
            return None
        return (self._clock() - began) / (step - first) * (self.total - step)


def duration(seconds: float) -> str:
    """'0:42', '12:07', '3:04:05' or '2 d 03:04'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02d}:{minutes:02d}"
    if hours:
        return f"{hours}:{minutes:02d}:{seconds:02d}"
    return f"{minutes}:{seconds:02d}"
