"""What a window of steps did and how long it took, on this process and on the others."""

from __future__ import annotations

import contextlib
import logging
import socket
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from encoders import rules
from encoders.checkpoints.store import CheckpointStore
from encoders.errors import NonFiniteError
from encoders.objectives.guard import Watch
from encoders.parallel import processes
from encoders.parallel.chips import peak_flops
from encoders.training.experiment import Experiment

log = logging.getLogger(__name__)

# A straggler's own work takes this many times the median of all, and this share of the step more.
_SLOW, _NOTABLE = 1.5, 0.1


class Meter:
    """Collects the device metrics of a window of steps; reading them is one transfer.

    Args:
      experiment: what runs.
      compile_seconds: shown with every record.
      started: time.time() of the run's first start.
      useful_seconds: what earlier sessions spent in steps that this one goes on from.
      flops_per_example: None is the experiment's.
      below_floors: the guard's counts that a resumed run goes on from.
    """

    def __init__(
        self,
        experiment: Experiment,
        compile_seconds: float,
        *,
        started: float | None = None,
        useful_seconds: float = 0.0,
        flops_per_example: float | None = None,
        below_floors: Mapping[str, int] | None = None,
    ):
        self.experiment = experiment
        self.compile_seconds = compile_seconds
        self.pending: list[Any] = []
        self._started = time.time() if started is None else started
        self._useful = useful_seconds
        self._flops = flops_per_example
        self._pause = self._device = 0.0
        self._batches: Any = None
        self._noted: int | None = None
        self._warm = False
        objective = experiment.objective
        self._watch = Watch(objective.guard, objective.advice, below_floors)

    def start(self, batches: Any) -> None:
        self._batches = batches
        self._mark, self._waited = time.perf_counter(), batches.waited

    def add(self, metrics: Any) -> None:
        self.pending.append(metrics)

    @property
    def below_floors(self) -> dict[str, int]:
        """Of the objective's guard, for how many steps on end the run has been below each floor."""
        return self._watch.below

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in here is not training time."""
        began = time.perf_counter()
        yield
        self._pause += time.perf_counter() - began

    @contextlib.contextmanager
    def on_device(self) -> Iterator[None]:
        """Time spent in here is the device's, or that of peers that it waits for."""
        began = time.perf_counter()
        yield
        self._device += time.perf_counter() - began

    def flush(self, step: int, store: CheckpointStore) -> dict[str, float]:
        """Means over the window that ends at `step`, as sums over weights.

        Raises:
          NonFiniteError: a step of the window had a non-finite loss or gradient.
          CollapseError: the objective's guard says so.
        """
        with self.on_device():
            window, self.pending = jax.device_get(self.pending), []
        if not window:
            return {}
        self._check_finite(window, step - len(window), store)
        self._check_guard(window, step - len(window))
        record = {}
        for name in window[-1]:
            if name == "finite":
                continue
            values = [metrics[name] for metrics in window]
            if isinstance(values[0], tuple):
                summed, weight = np.sum(np.asarray(values, np.float64), axis=0)
                record[f"train/{name}"] = float(summed / max(weight, 1e-9))
            else:
                record[f"train/{name}"] = float(np.mean(values))
        return record | self._times(step, len(window))

    def _times(self, step: int, steps: int) -> dict[str, float]:
        """Rates of the window just read, and the marks of the next one."""
        now = time.perf_counter()
        seconds = max(now - self._mark - self._pause, 1e-9)
        waited, own = self._batches.waited - self._waited, seconds - self._device
        self._mark, self._waited = now, self._batches.waited
        self._pause = self._device = 0.0
        self._useful += seconds - waited
        rate = steps * self.experiment.sections.batch_size / seconds
        record = {
            "train/examples_per_second": rate,
            "train/step_seconds": seconds / steps,
            "train/data_wait": waited / seconds,
            "train/compile_seconds": self.compile_seconds,
            "train/useful_seconds": self._useful,
            "train/goodput": min(1.0, self._useful / max(time.time() - self._started, 1e-9)),
        }
        peak = peak_flops(self.experiment.mesh.devices.flat[0])
        if peak is not None:
            each = self.experiment.flops_per_example() if self._flops is None else self._flops
            record["train/mfu"] = each * rate / (peak * self.experiment.mesh.size)
        return record | self._compare(step, seconds / steps, own / steps, waited / steps)

    def _compare(self, step: int, seconds: float, own: float, waited: float) -> dict[str, float]:
        """Tells process 0 how this process fared; there, names who was slow in the last window.

        In one program on many chips all steps take as long as the slowest process needs. What sets
        it apart is its own share: the time that it did not spend waiting for the device.
        """
        if jax.process_count() == 1:
            return {}
        if not self._warm:  # the first window has the input's start in it
            self._warm = True
            return {}
        before, self._noted = self._noted, step
        processes.leave_note("times", step, [own, waited, socket.gethostname(), seconds])
        if jax.process_index() != 0 or before is None:
            return {}
        found = processes.collect_notes("times", before)  # all have passed that step
        if len(found) < 2:
            return {}
        slowest = max(found, key=lambda index: found[index][0])
        for index in stragglers({i: value[0] for i, value in found.items()}, found[slowest][3]):
            log.warning(
                "straggler up to step %d: process %d on %s needs %.3f s per step for itself "
                "(%.3f s of it waiting for data), the median process %.3f s",
                before, index, found[index][2], found[index][0], found[index][1],
                statistics.median(value[0] for value in found.values()),
            )  # fmt: skip
        return {
            "train/slowest_process": slowest,
            "train/slowest_own_seconds": found[slowest][0],
            "train/median_own_seconds": statistics.median(value[0] for value in found.values()),
        }

    def _check_guard(self, window: list[Any], before: int) -> None:
        for offset, metrics in enumerate(window):
            pairs = {name: value for name, value in metrics.items() if isinstance(value, tuple)}
            means = {name: float(s / max(w, 1e-9)) for name, (s, w) in pairs.items()}
            self._watch.look(before + offset + 1, means)

    def _check_finite(self, window: list[Any], before: int, store: CheckpointStore) -> None:
        for offset, metrics in enumerate(window):
            if metrics["finite"].all() and np.isfinite(metrics["loss"][0]):
                continue
            paths = rules.leaf_paths(self.experiment.param_shapes)
            bad = [p for p, fine in zip(paths, metrics["finite"], strict=True) if not fine]
            store.wait()
            good = store.latest()
            where = (
                f"the last good checkpoint is step {good} in {store.directory}"
                if good is not None
                else "no checkpoint had been saved yet"
            )
            raise NonFiniteError(
                f"step {before + offset + 1}: loss {metrics['loss'][0]} and "
                f"{len(bad)} of {len(paths)} gradients are not finite "
                f"({', '.join(bad[:4]) or 'none'}{', ...' if len(bad) > 4 else ''}); {where}."
            )


def stragglers(own: dict[int, float], step_seconds: float) -> list[int]:
    """Processes whose own work holds up the others.

    Args:
      own: process -> seconds per step that it did not spend waiting for the device.
      step_seconds: how long a step takes.

    Returns:
      Those that need 1.5 times the median, and a tenth of the step more than it; slowest first.
    """
    # Of two, the median is half the slow one: the lower one is the measure.
    median = statistics.median_low(own.values())
    slow = [
        index
        for index, seconds in own.items()
        if seconds > _SLOW * median and seconds - median > _NOTABLE * step_seconds
    ]
    return sorted(slow, key=lambda index: -own[index])
