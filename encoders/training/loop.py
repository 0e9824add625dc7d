"""The one training loop: start or resume, step, log, evaluate, save, stop cleanly."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from encoders.checkpoints.store import CheckpointStore
from encoders.data.prefetch import prefetch
from encoders.errors import PeerError, StorageError
from encoders.evaluation.base import between_batches
from encoders.parallel import processes
from encoders.parallel.mesh import to_device
from encoders.training.experiment import Experiment
from encoders.training.meter import Meter
from encoders.training.metrics import (
    MetricWriter,
    end_session,
    first_start,
    last_values,
    write_facts,
    write_status,
)
from encoders.training.progress import Progress
from encoders.training.start import claimed_directory, starting_state, storage_errors
from encoders.training.state import TrainState
from encoders.training.stopping import Interrupted, Stop, stop_signals
from encoders.training.watchdog import Watchdog

log = logging.getLogger(__name__)

# How collectives and jax's coordinator say that another process is gone.
_LOST_PEER = ("Gloo", "NCCL", "UNAVAILABLE", "ABORTED", "CANCELLED", "Connection", "coordination")

# Where a checkpoint's metadata has the counts of the objective's guard.
_BELOW = "below_floors"


def train(experiment: Experiment, workdir: str | pathlib.Path) -> dict[str, Any]:
    """Runs an experiment until its end, or until SIGTERM or Ctrl-C, in `workdir`.

    Calling it again on the same directory goes on from the last checkpoint, bit for bit as if it
    had never stopped; on other devices or another number of processes, as exactly as their sums
    round. Of many processes every one calls it.

    Returns:
      {'state': 'finished' | 'stopped', 'step': n, and the last value of every metric}.

    Raises:
      EncodersError: bad config, data, checkpoint, disk or numbers; what was saved stays.
    """
    workdir = pathlib.Path(workdir)

    def failed(message: str) -> None:
        write_status(workdir, "failed", message=message)

    with (
        storage_errors(workdir),
        claimed_directory(workdir, experiment),
        _log_file(workdir),
        _failure_in_status(workdir),
        stop_signals() as stop,
        Watchdog(experiment.sections.deadlines, workdir, failed) as watchdog,
        open_store(experiment, workdir) as store,
    ):
        return _run(experiment, workdir, store, stop, watchdog)


def _run(
    experiment: Experiment,
    workdir: pathlib.Path,
    store: CheckpointStore,
    stop: Stop,
    watchdog: Watchdog,
) -> dict[str, Any]:
    sections, patience = experiment.sections, experiment.sections.deadlines.startup or math.inf
    evaluators, pipeline = processes.together(
        "opening the data",
        lambda: (experiment.evaluators(workdir), experiment.pipeline()),
        patience,
    )
    durations, total = experiment.durations, experiment.total_steps
    log_every = max(1, durations.steps(sections.log.every, "log.every"))
    save_every = max(1, durations.steps(sections.checkpoint.every, "checkpoint.every"))
    state = processes.together(
        "making the first state", lambda: starting_state(experiment, store), patience
    )
    first = int(state.step)
    write_status(workdir, "running", first, total)
    writer = MetricWriter(workdir, tensorboard=sections.log.tensorboard)
    writer.truncate(first)
    before = processes.from_first("reading the metrics so far", lambda: last_values(workdir, first))
    flops_per_example = experiment.flops_per_example(pipeline.sizes)
    write_facts(
        workdir,
        first_step=first,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(experiment.param_shapes)),
        flops_per_example=flops_per_example,
        batch_size=sections.batch_size,
        examples_per_epoch=pipeline.examples_per_epoch,
        compute_dtype=str(experiment.compute_dtype),
        evaluators={name: evaluator.sizes for name, (evaluator, _) in evaluators.items()},
    )
    buckets = range(pipeline.batcher.buckets)
    step_fn, compile_seconds = compile_steps(
        experiment, state, [pipeline.batcher.empty(bucket) for bucket in buckets]
    )
    meter = Meter(
        experiment,
        compile_seconds,
        started=first_start(workdir),
        useful_seconds=before.get("train/useful_seconds", 0.0),
        flops_per_example=flops_per_example,
        below_floors=store.metadata(first).get(_BELOW) if first else None,
    )
    last: dict[str, Any] = {}

    def flush(step: int) -> None:
        record = meter.flush(step, store)
        record |= {f"train/{name}": value for name, value in pipeline.stats.metrics().items()}
        report(step, record)
        progress.update(step, record)

    def report(step: int, record: dict[str, Any]) -> None:
        writer.write(step, record)
        last.update(record)
        write_status(workdir, "running", step, total, last)

    def evaluate(step: int, names: list[str]) -> dict[str, float]:
        """Scores of the evaluators; without those that a stop left no time for."""
        scores: dict[str, float] = {}

        def next_batch() -> None:
            watchdog.progress("evaluation")
            stop.interrupt()

        with (
            meter.paused(),
            watchdog.phase("evaluation"),
            between_batches(next_batch),
            contextlib.suppress(Interrupted),
        ):
            for name in names:
                found = run_evaluator(evaluators[name][0], experiment, state, step)
                record = {f"eval/{name}/{key}": value for key, value in found.items()}
                report(step, record)
                scores |= record
                shown = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
                progress.note(f"step {step:,}: {name}: {shown}")
        return scores

    def save(step: int, scores: dict[str, float]) -> None:
        with meter.paused(), watchdog.phase("barrier"):
            metadata = experiment.metadata(step)
            if meter.below_floors:
                metadata[_BELOW] = meter.below_floors
            store.save(step, state.replace(frozen_teacher=None), metadata, scores)

    log.info(
        "training steps %d to %d on %d %s device(s); process %d of %d, pid %d", first, total,
        experiment.mesh.size, experiment.mesh.devices.flat[0].platform, jax.process_index(),
        jax.process_count(), os.getpid(),
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
        missed = [
            name
            for name, (_, every) in evaluators.items()
            if first and is_due(first, every, total)
            and not any(key.startswith(f"eval/{name}/") for key in before.get("at_step", ()))
        ]  # fmt: skip
        if missed and not stop.poll():  # a stop left no time for them
            evaluate(first, missed)
        while step < total and not stop.poll():
            watchdog.progress()
            profile(step)
            batch = next(batches)
            with jax.transfer_guard("disallow"), meter.on_device():
                state, metrics = step_fn(state, batch)  # a hidden host sync here is an error
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
    with watchdog.phase("barrier"):
        if step < total and store.latest() != step:
            save(step, {})
        store.wait()
    outcome = "stopped" if step < total or stop.requested else "finished"
    write_status(workdir, outcome, step, total, last)
    end_session(workdir, outcome)
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
        variables = {"params": experiment.objective.alone(params)["encoder"], **stats}
        return evaluator.run(experiment.objective.encoder, variables, step=step)
    return evaluator.run(experiment.objective, {"params": params, **state.stats}, step=step)


def compile_steps(
    experiment: Experiment, state: TrainState, batches: Sequence[Any]
) -> tuple[Callable[..., Any], float]:
    """`compile_step` for each of the shapes that batches come in.

    Returns:
      The step, which knows by its batch which of the programs to run, and the seconds it took.
    """
    programs = [compile_step(experiment, state, batch) for batch in batches]
    seconds = sum(seconds for _, seconds in programs)
    if len(programs) == 1:
        return programs[0][0], seconds
    by_shape = {_shape(batch): step for batch, (step, _) in zip(batches, programs, strict=True)}
    return lambda state, batch: by_shape[_shape(batch)](state, batch), seconds


def _shape(batch: Mapping[str, Any]) -> tuple:
    """What tells batches apart of which this process may have some rows only."""
    return tuple(sorted((name, array.shape[1:]) for name, array in batch.items()))


def compile_step(experiment: Experiment, state: TrainState, batch: Any) -> tuple[Any, float]:
    """Compiles the step ahead of the loop, so that its time is known and logged.

    Args:
      experiment: what to compile.
      state: its state, or the shapes of it.
      batch: this process's rows, with any values.

    Returns:
      The step, and the seconds it took; few where jax's compilation cache has it.
    """
    began = time.perf_counter()
    batch = to_device(batch, experiment.mesh)
    compiled = experiment.step().lower(state, batch).compile()
    seconds = time.perf_counter() - began
    log.info("compiled the training step in %.1f s", seconds)
    return compiled, seconds


# --- around the loop ------------------------------------------------------------------------------


@contextlib.contextmanager
def _failure_in_status(workdir: pathlib.Path) -> Iterator[None]:
    """Leaves the reason of a failure in status.json.

    Raises:
      PeerError: for what jax says when another process is gone.
    """
    try:
        yield
    except BaseException as error:
        text = str(error) if isinstance(error, jax.errors.JaxRuntimeError) else ""
        if jax.process_count() > 1 and any(sign in text for sign in _LOST_PEER):
            lost = PeerError(
                f"process {jax.process_index()}: another process of the run is gone or stopped "
                f"answering ({text.splitlines()[0]})."
            )
            log.error(lost)
            raise lost from error  # whoever is at fault says so in status.json
        with contextlib.suppress(OSError, StorageError):
            write_status(workdir, "failed", message=str(error) or type(error).__name__)
            end_session(workdir, "failed")
        raise


@contextlib.contextmanager
def _log_file(workdir: pathlib.Path) -> Iterator[None]:
    index = jax.process_index()
    handler = logging.FileHandler(workdir / (f"log-{index}.txt" if index else "log.txt"))
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
