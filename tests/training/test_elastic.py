"""Four processes, then two, then one: the run goes on as if nothing had changed."""

import signal

import jax
import numpy as np
from running import (
    experiment,
    finish,
    launch,
    losses,
    parameters,
    train_here,
    wait_for_step,
)

from encoders.errors import STOPPED
from encoders.training.metrics import read_facts, read_status

STEPS = 60
OPTIONS = (
    f"--config.duration.steps={STEPS}",
    "--config.log.every.steps=1",
    "--config.checkpoint.every.steps=1000",
    # Training amplifies what sums round away; slowly enough to compare at this rate.
    "--config.optimizer.lr=3e-4",
)


def run_and_stop(workdir, step, *arguments):
    """The step at which it stopped, after it was asked to at `step`."""
    process = launch(workdir, *OPTIONS, *arguments)
    wait_for_step(step, workdir, process)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == STOPPED, output
    return read_status(workdir)["step"]


def test_a_run_goes_from_four_processes_to_two_to_one(tmp_path):
    alone, moved = tmp_path / "alone", tmp_path / "moved"
    train_here(alone, *OPTIONS)
    first = run_and_stop(moved, 5, "--processes", 4)
    assert 5 <= first < STEPS
    second = run_and_stop(moved, first + 2, "--processes", 2, "--devices-per-process", 2)
    assert first < second < STEPS
    train_here(moved, *OPTIONS)

    sessions = read_facts(moved)["sessions"]
    assert [s["first_step"] for s in sessions] == [0, first, second]
    assert [s["devices"]["processes"] for s in sessions] == [4, 2, 1]
    assert [s["outcome"] for s in sessions] == ["stopped", "stopped", "finished"]
    found, expected = losses(moved), losses(alone)
    assert list(found) == list(expected) == list(range(1, STEPS + 1))
    worst = max(abs(found[step] - expected[step]) for step in expected)
    assert worst < 1e-5
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4),
        *(parameters(workdir, experiment(*OPTIONS)) for workdir in (moved, alone)),
    )
    assert {f"log-{i}.txt" for i in (1, 2, 3)} <= {p.name for p in moved.iterdir()}
