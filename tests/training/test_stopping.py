"""SIGTERM at any moment saves and stops; a hang ends with its stacks written."""

import os
import pathlib
import re
import signal

import pytest
from running import (
    SHORT,
    finish,
    last_step,
    launch,
    losses,
    train_here,
    wait_for,
    wait_for_step,
)

from encoders.errors import STOPPED, DeadlineError
from encoders.training.metrics import read_facts, read_metrics, read_status

TWO = ("--processes", 2)


def says(workdir, text):
    log = workdir / "log.txt"
    return lambda: log.exists() and text in log.read_text()


def saved(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def test_a_signal_while_compiling_or_evaluating_is_made_up_for_by_the_next_start(tmp_path):
    run = launch(tmp_path, *SHORT, *TWO, "--config.duration.steps=5000")
    wait_for((tmp_path / "run.json").exists, run)  # the last thing before compiling
    assert not says(tmp_path, "compiled the training step")()
    run.send_signal(signal.SIGTERM)
    code, output = finish(run)
    assert code == STOPPED, output
    status = read_status(tmp_path)
    first = status["step"]
    assert status["state"] == "stopped"
    assert saved(tmp_path) == [first]

    scored = first + 4
    options = (*SHORT, f"--config.duration.steps={2 * scored}")
    source = "{'name': 'synthetic', 'image_size': (20, 20), 'num_classes': 4, 'num_examples': %d}"
    evaluator = (
        "--config.evaluators={'top': {'name': 'classification', 'batch_size': 8, "
        f"'every': {{'steps': {scored}}}, 'test': %s}}}}"
    )
    run = launch(tmp_path, *options, *TWO, evaluator % (source % 10**6))
    wait_for_step(scored, tmp_path, run)
    run.send_signal(signal.SIGTERM)
    code, output = finish(run, seconds=120)
    assert code == STOPPED, output
    assert last_step(tmp_path) == scored
    assert saved(tmp_path)[-1] == scored
    assert not any("eval/" in name for record in read_metrics(tmp_path) for name in record)

    train_here(tmp_path, *options, evaluator % (source % 16))
    scores = [r["step"] for r in read_metrics(tmp_path) if "eval/top/accuracy" in r]
    assert scores == [scored, 2 * scored]
    assert [s["first_step"] for s in read_facts(tmp_path)["sessions"]] == [0, first, scored]
    assert read_status(tmp_path)["state"] == "finished"


def test_a_signal_while_saving_lets_the_save_finish(tmp_path):
    """Every step is saved in the background, so any moment is one; and goodput counts steps that
    lasted and all the time since the first start."""
    options = (*SHORT, "--config.checkpoint.every.steps=1", "--config.checkpoint.keep_last=1")
    run = launch(tmp_path, *options, "--config.duration.steps=100000")
    wait_for_step(10, tmp_path, run)
    run.terminate()
    code, output = finish(run)
    assert code == STOPPED, output
    status = read_status(tmp_path)
    step = status["step"]
    assert status["state"] == "stopped"
    assert f"stopped at step {step}" in output
    assert saved(tmp_path) == [step]
    assert losses(tmp_path).keys() == set(range(1, step + 1))
    before = read_metrics(tmp_path)[-1]
    assert 0 < before["train/goodput"] < 1
    last = step + 5
    train_here(tmp_path, *options, f"--config.duration.steps={last}")
    sessions = read_facts(tmp_path)["sessions"]
    assert sessions[1]["first_step"] == step
    after = read_metrics(tmp_path)[-1]
    assert list(losses(tmp_path)) == list(range(1, last + 1))
    useful = after["train/useful_seconds"]
    assert before["train/useful_seconds"] < useful < after["time"] - sessions[0]["started"]
    assert after["train/goodput"] == pytest.approx(
        useful / (after["time"] - sessions[0]["started"]), rel=0.05
    )


def test_a_process_that_hangs_ends_the_run_with_its_stacks(tmp_path):
    options = (*SHORT, *TWO, "--retries", 0, "--config.deadlines.step=15")
    run = launch(tmp_path, *options, "--config.duration.steps=100000")
    wait_for_step(3, tmp_path, run)
    [second] = re.findall(r"pid (\d+)", pathlib.Path(tmp_path / "log-1.txt").read_text())
    os.kill(int(second), signal.SIGSTOP)
    code, output = finish(run, seconds=120)
    assert code == DeadlineError.exit_code, output
    assert "process 0: no progress for 15 s (deadlines.step)" in output
    stacks = (tmp_path / "stacks-0.txt").read_text()
    assert "loop.py" in stacks
    assert "Current thread" in stacks
    status = read_status(tmp_path)
    assert status["state"] == "failed"
    assert "no progress" in status["message"]
