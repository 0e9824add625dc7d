"""Runs of tests/training/tiny.py in real processes, for tests that stop, kill and resume them."""

import functools
import os
import pathlib
import subprocess
import sys
import time

import jax
import tiny

from encoders.checkpoints.store import CheckpointStore
from encoders.config import load_config
from encoders.training.experiment import Experiment
from encoders.training.loop import train
from encoders.training.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = str(pathlib.Path(tiny.__file__))
# When a run stops, or whether it may start, has nothing to do with what it learns.
SHORT = (
    "--config.log.every.steps=1",
    *("--config.model.dropout=0.0", "--config.objective.mixup=0.0", "--config.ema=None"),
)


def environment(devices=1, **variables):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), **variables}


def launch(workdir, *arguments, module="launch.local", config=CONFIG, devices=1, **options):
    """Starts a launcher; what it and its processes print is in `.stdout`."""
    command = [sys.executable, "-m", module, "--config", config, "--workdir", str(workdir)]
    options = {"cwd": ROOT, "env": environment(devices), **options}
    return subprocess.Popen(
        command + list(map(str, arguments)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


@functools.cache
def experiment(*arguments, devices=1):
    """What a launcher makes of its --config.a.b=value, traced once for all tests of a process."""
    overrides = [argument.removeprefix("--config.") for argument in arguments]
    return Experiment(load_config(CONFIG, overrides), devices=jax.devices()[:devices])


def train_here(workdir, *arguments, devices=1):
    """Does what `launch` does in a process of its own, in half the time: for runs that nothing
    disturbs."""
    train(experiment(*arguments, devices=devices), workdir)


def parameters(workdir, run):
    """The last ones that a directory has of a finished experiment."""
    with CheckpointStore(workdir / "checkpoints") as store:
        assert store.latest() == run.total_steps
        return jax.device_get(store.restore(run.abstract_state).params)


def finish(process, seconds=300):
    """Exit code and output."""
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, output


def wait_for(condition, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def wait_for_step(step, workdir, process):
    wait_for(lambda: last_step(workdir) >= step, process)


def last_step(workdir):
    records = read_metrics(workdir)
    return records[-1]["step"] if records else 0


def losses(workdir):
    return {r["step"]: r["train/loss"] for r in read_metrics(workdir) if "train/loss" in r}
