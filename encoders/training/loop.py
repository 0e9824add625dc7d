"""The one training loop: start or resume, step, log, evaluate, save, stop cleanly."""

from __future__ import annotations

import contextlib
import errno
import logging
import pathlib
import signal
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from encoders import rules
from encoders.checkpoints.store import CheckpointStore
from encoders.config import to_json
from encoders.data.prefetch import prefetch
from encoders.errors import NonFiniteError, StorageError
from encoders.parallel.chips import peak_flops
from encoders.parallel.mesh import to_device
from encoders.training.experiment import Experiment
from encoders.training.metrics import MetricWriter, write_facts, write_status
from encoders.training.progress import Progress
from encoders.training.start import claim_directory, starting_state
from encoders.training.state import TrainState

log = logging.getLogger(__name__)


def train(experiment: Experiment, workdir: str | pathlib.Path) -> dict[str, Any]:
    """Runs an experiment until its end, or until SIGTERM or Ctrl-C, in `workdir`.

    Calling it again on the same directory goes on from the last checkpoint, bit for bit as if it
    had never stopped.

    Returns:
      {'state': 'finished' | 'stopped', 'step': n, and the last value of every metric}.

    Raises:
      EncodersError: bad config, data, checkpoint, disk or numbers; what was saved stays.
    """
    workdir = pathlib.Path(workdir)
    with _disk_errors(workdir):
        claim_directory(workdir, experiment.config, to_json(experiment.config))
        with (
            _log_file(workdir),
            _failure_in_status(workdir),
            _stop_signals() as stop,
            open_store(experiment, workdir) as store,
        ):
            return _run(experiment, workdir, store, stop)


def _run(
    experiment: Experiment, workdir: pathlib.Path, store: CheckpointStore, stop: _Stop
) -> dict[str, Any]:
    sections, durations = experiment.sections, experiment.durations
    total = experiment.total_steps
    log_every = max(1, durations.steps(sections.log.every, "log.every"))
    save_every = max(1, durations.steps(sections.checkpoint.every, "checkpoint.every"))
    state = starting_state(experiment, store)
    first = int(state.step)
    write_status(workdir, "running", first, total)
    evaluators = experiment.evaluators(workdir)
    writer = MetricWriter(workdir, tensorboard=sections.log.tensorboard)
    writer.truncate(first)
    pipeline = experiment.pipeline()
    write_facts(
        workdir,
        first_step=first,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(experiment.param_shapes)),
        flops_per_example=experiment.flops_per_example(),
        batch_size=sections.batch_size,
        examples_per_epoch=durations.examples_per_epoch,
        compute_dtype=str(experiment.compute_dtype),
        evaluators={name: evaluator.sizes for name, (evaluator, _) in evaluators.items()},
    )
    step_fn, compile_seconds = _compile(experiment, state, pipeline.batcher.empty())
    meter = _Meter(experiment, compile_seconds)
    last: dict[str, Any] = {}

    def flush(step: int) -> None:
        record = meter.flush(step, store) | {"train/corrupt_examples": pipeline.stats.corrupt}
        report(step, record)
        progress.update(step, record)

    def report(step: int, record: dict[str, Any]) -> None:
        writer.write(step, record)
        last.update(record)
        write_status(workdir, "running", step, total, last)

    def evaluate(step: int, names: list[str]) -> dict[str, float]:
        scores = {}
        with meter.paused():
            for name in names:
                found = run_evaluator(evaluators[name][0], experiment, state, step)
                record = {f"eval/{name}/{key}": value for key, value in found.items()}
                report(step, record)
                scores |= record
                shown = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
                progress.note(f"step {step:,}: {name}: {shown}")
        return scores

    def save(step: int, scores: dict[str, float]) -> None:
        with meter.paused():
            store.save(step, state.replace(teacher=None), experiment.metadata(step), scores)

    log.info(
        "training steps %d to %d on %d %s device(s)", first, total, experiment.mesh.size,
        experiment.mesh.devices.flat[0].platform,
    )  # fmt: skip
    step = first
    due = False
    with (
        prefetch(
            pipeline.iterate(first, total),
            lambda batch: to_device(batch, experiment.mesh),
            sections.data.prefetch,
        ) as batches,
        _profile(sections.log.profile_steps, workdir) as profile,
        Progress(total, first) as progress,
    ):
        meter.start(batches)
        while step < total and not stop.requested:
            profile(step)
            batch = next(batches)
            with jax.transfer_guard("disallow"):  # a hidden host sync in the step is an error
                state, metrics = step_fn(state, batch)
            step += 1
            progress.update(step)
            if due:  # read one window while the device works on the next
                flush(step - 1)
            meter.add(metrics)
            due = step % log_every == 0
            save_now = is_due(step, save_every, total)
            evaluate_now = [n for n, (_, every) in evaluators.items() if is_due(step, every, total)]
            if save_now or evaluate_now:  # nothing unchecked is saved or scored
                flush(step)
                due = False
            scores = evaluate(step, evaluate_now)
            if save_now:
                save(step, scores)
        if meter.pending:
            flush(step)
    if step < total and store.latest() != step:
        save(step, {})
    store.wait()
    outcome = "finished" if step == total else "stopped"
    write_status(workdir, outcome, step, total, last)
    writer.close()
    log.info("%s at step %d of %d; checkpoint saved in %s", outcome, step, total, store.directory)
    return {"state": outcome, "step": step, **last}


def is_due(step: int, every: int | None, total: int) -> bool:
    """True at multiples of `every` and at the end, which takes the place of one just before it."""
    if every is None or step == total:
        return step == total
    return step % every == 0 and total - step > every // 2


def open_store(experiment: Experiment, workdir: pathlib.Path) -> CheckpointStore:
    """The run's checkpoints, kept as its config says."""
    kept = experiment.sections.checkpoint
    every = kept.keep_every
    return CheckpointStore(
        workdir / "checkpoints",
        keep_last=kept.keep_last,
        keep_every=None
        if every is None
        else experiment.durations.steps(every, "checkpoint.keep_every"),
        best_metric=kept.best_metric,
        best_mode=kept.best_mode,
    )


def run_evaluator(
    evaluator: Any, experiment: Experiment, state: TrainState, step: int
) -> dict[str, float]:
    """Runs one evaluator on the subject it asks for: the encoder, or the whole objective."""
    params = state.best_params
    if evaluator.subject == "encoder":
        stats = {k: v["encoder"] for k, v in state.stats.items() if "encoder" in v}
        variables = {"params": params["encoder"], **stats}
        return evaluator.run(experiment.objective.encoder, variables, step=step)
    return evaluator.run(experiment.objective, {"params": params, **state.stats}, step=step)


def _compile(experiment: Experiment, state: TrainState, batch: Any) -> tuple[Any, float]:
    """Compiles the step ahead of the loop, so that its time is known and logged."""
    began = time.perf_counter()
    batch = to_device(batch, experiment.mesh)
    compiled = experiment.step().lower(state, batch).compile()
    seconds = time.perf_counter() - began
    log.info("compiled the training step in %.1f s", seconds)
    return compiled, seconds


class _Meter:
    """Collects the device metrics of a window of steps; reading them is one transfer."""

    def __init__(self, experiment: Experiment, compile_seconds: float):
        self.experiment = experiment
        self.compile_seconds = compile_seconds
        self.pending: list[Any] = []
        self._pause = 0.0
        self._batches: Any = None

    def start(self, batches: Any) -> None:
        self._batches = batches
        self._mark, self._waited = time.perf_counter(), batches.waited

    def add(self, metrics: Any) -> None:
        self.pending.append(metrics)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in here is not training time."""
        began = time.perf_counter()
        yield
        self._pause += time.perf_counter() - began

    def flush(self, step: int, store: CheckpointStore) -> dict[str, float]:
        """Means over the window that ends at `step`, as sums over weights.

        Raises:
          NonFiniteError: a step of the window had a non-finite loss or gradient.
        """
        window, self.pending = jax.device_get(self.pending), []
        if not window:
            return {}
        self._check_finite(window, step - len(window), store)
        now = time.perf_counter()
        seconds = max(now - self._mark - self._pause, 1e-9)
        waited = self._batches.waited - self._waited
        self._mark, self._pause, self._waited = now, 0.0, self._batches.waited
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
        rate = len(window) * self.experiment.sections.batch_size / seconds
        record["train/examples_per_second"] = rate
        record["train/data_wait"] = waited / seconds
        record["train/compile_seconds"] = self.compile_seconds
        peak = peak_flops(self.experiment.mesh.devices.flat[0])
        if peak is not None:
            flops = self.experiment.flops_per_example() * rate
            record["train/mfu"] = flops / (peak * self.experiment.mesh.size)
        return record

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


# --- around the loop ------------------------------------------------------------------------------


class _Stop:
    """Set by SIGTERM or the first Ctrl-C; the second Ctrl-C interrupts at once."""

    requested = False


@contextlib.contextmanager
def _stop_signals() -> Iterator[_Stop]:
    stop = _Stop()

    def handle(number: int, frame: Any) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = True
        log.info("%s: saving after this step, then stopping", signal.Signals(number).name)

    before = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, handle)
    except ValueError:
        log.info("not in the main thread: signals keep their handlers")
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _disk_errors(workdir: pathlib.Path) -> Iterator[None]:
    """Gives a full disk its own error, wherever it shows."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise StorageError(f"{workdir}: {error.strerror}; free space and start again.") from error


@contextlib.contextmanager
def _failure_in_status(workdir: pathlib.Path) -> Iterator[None]:
    """Leaves the reason of a failure in status.json."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError, StorageError):
            write_status(workdir, "failed", message=str(error) or type(error).__name__)
        raise


@contextlib.contextmanager
def _log_file(workdir: pathlib.Path) -> Iterator[None]:
    handler = logging.FileHandler(workdir / "log.txt")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("encoders")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def _profile(steps: tuple[int, int] | None, workdir: pathlib.Path) -> Iterator[Any]:
    """Captures a profile from the first of `steps` to before the second."""
    running = False

    def at(step: int) -> None:
        nonlocal running
        if steps is None:
            return
        if not running and steps[0] <= step < steps[1]:
            jax.profiler.start_trace(str(workdir / "profile"))
            running = True
        elif running and step >= steps[1]:
            jax.profiler.stop_trace()
            running = False

    try:
        yield at
    finally:
        if running:
            jax.profiler.stop_trace()
