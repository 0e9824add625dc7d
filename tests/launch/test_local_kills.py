"""Two processes are killed at any moment, and told to stop: a run that goes on, at last in one, has
the bits of one that was left alone there."""

import os
import pathlib
import random
import signal
import time

import jax
import numpy as np
from running import (
    experiment,
    finish,
    last_step,
    launch,
    losses,
    parameters,
    train_here,
    wait_for_step,
)

from encoders.errors import STOPPED
from encoders.training.metrics import read_facts

KILLS = int(os.environ.get("ENCODERS_KILLS", 2))  # 20 take four minutes
STEPS = 20 * KILLS + 60
OPTIONS = (f"--config.duration.steps={STEPS}", "--config.log.every.steps=1")
SAVING = ("--config.checkpoint.every.steps=2", "--config.checkpoint.keep_last=1")


def workers(supervisor):
    """Pids of the processes that a supervisor runs now."""
    found = []
    for path in pathlib.Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                stat = (path / "stat").read_text().rpartition(")")[2].split()
                command = (path / "cmdline").read_bytes()
            except OSError:
                continue
            if int(stat[1]) == supervisor.pid and b"launch.worker" in command and stat[0] != "Z":
                found.append(int(path.name))
    return sorted(found)


def test_kills_at_any_moment_and_a_stop_change_nothing(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    train_here(undisturbed, *OPTIONS, devices=2)

    draw = random.Random(0)
    run = launch(killed, *OPTIONS, *SAVING, "--processes", 2, "--retries", KILLS)
    kills = 0
    while kills < KILLS:
        assert run.poll() is None, finish(run)
        # At any moment, but before the run can end without having been killed often enough.
        moment = time.monotonic() + draw.uniform(0, 6)
        while time.monotonic() < moment and last_step(killed) < 20 * (kills + 1):
            time.sleep(0.05)
        pair = workers(run)
        if len(pair) == 2:
            os.kill(draw.choice(pair), signal.SIGKILL)
            kills += 1
            while workers(run)[:2] == pair and run.poll() is None:
                time.sleep(0.05)
    wait_for_step(20 * KILLS + 10, killed, run)  # it trains again
    run.send_signal(signal.SIGTERM)
    code, output = finish(run)
    assert code == STOPPED, output
    assert output.count("starting again") == KILLS
    assert 20 * KILLS < last_step(killed) < STEPS
    train_here(killed, *OPTIONS, devices=2)

    sessions = read_facts(killed)["sessions"]
    assert [s["outcome"] for s in sessions[-2:]] == ["stopped", "finished"]
    assert [s["first_step"] for s in sessions] == sorted(s["first_step"] for s in sessions)
    assert losses(killed) == losses(undisturbed)
    jax.tree.map(
        np.testing.assert_array_equal,
        *(parameters(path, experiment(*OPTIONS, devices=2)) for path in (killed, undisturbed)),
    )
