"""Two processes are told to stop, and killed at any moment: a run that goes on has the bits of one
that was left alone, in one process."""

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
STEPS = 20 * KILLS
OPTIONS = (
    f"--config.duration.steps={STEPS}",
    "--config.log.every.steps=1",
    "--config.checkpoint.every.steps=2",
    "--config.checkpoint.keep_last=1",
)
TWO = ("--processes", 2, "--retries", KILLS + 5)


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


def test_a_stop_and_kills_at_any_moment_change_nothing(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    train_here(undisturbed, *OPTIONS, devices=2)

    run = launch(killed, *OPTIONS, *TWO)
    wait_for_step(3, killed, run)
    run.send_signal(signal.SIGTERM)
    code, output = finish(run)
    assert code == STOPPED, output
    assert 3 <= last_step(killed) < STEPS

    draw = random.Random(0)
    run = launch(killed, *OPTIONS, *TWO)
    kills = 0
    while kills < KILLS and run.poll() is None:
        # At any moment, but before the run can end without having been killed often enough.
        moment = time.monotonic() + draw.uniform(0, 6)
        while time.monotonic() < moment and last_step(killed) < STEPS * (kills + 1) / (KILLS + 2):
            time.sleep(0.01)
        pair = workers(run)
        if len(pair) == 2:
            os.kill(draw.choice(pair), signal.SIGKILL)
            kills += 1
            while workers(run)[:2] == pair and run.poll() is None:
                time.sleep(0.05)
    code, output = finish(run)
    assert code == 0, output
    assert kills == KILLS
    assert output.count("starting again") == kills
    sessions = read_facts(killed)["sessions"]
    assert sessions[0]["outcome"] == "stopped"
    assert [s["first_step"] for s in sessions] == sorted(s["first_step"] for s in sessions)
    assert losses(killed) == losses(undisturbed)
    jax.tree.map(
        np.testing.assert_array_equal,
        *(parameters(path, experiment(*OPTIONS, devices=2)) for path in (killed, undisturbed)),
    )
