"""Who holds up the others, from the time that each process needs for itself."""

import logging
import time

import jax
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from encoders.training import meter
from encoders.training.experiment import Experiment
from encoders.training.meter import stragglers


def test_a_straggler_needs_more_than_its_peers_and_enough_to_matter():
    assert stragglers({0: 0.01, 1: 0.5, 2: 0.02, 3: 0.01}, step_seconds=1.0) == [1]
    assert stragglers({0: 0.01, 1: 0.05, 2: 0.02, 3: 0.01}, step_seconds=1.0) == []
    assert stragglers({0: 0.4, 1: 0.01}, step_seconds=1.0) == [0]
    assert stragglers({0: 0.9, 1: 0.1, 2: 0.1, 3: 0.8, 4: 0.1}, step_seconds=1.0) == [0, 3]


@given(st.floats(0, 10), st.integers(2, 9), st.floats(0.01, 10))
def test_equals_are_no_stragglers(own, count, step):
    assert stragglers(dict.fromkeys(range(count), own), step) == []


class Batches:
    waited = 0.0


def test_process_0_names_the_straggler_of_the_window_before(monkeypatch, caplog):
    notes = {step: {1: [0.5, 0.4, "n1", 0.6]} for step in (10, 20)}  # what process 1 leaves
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        meter.processes, "leave_note", lambda topic, step, note: notes[step].update({0: note})
    )
    monkeypatch.setattr(meter.processes, "collect_notes", lambda topic, step: notes.pop(step))
    experiment = Experiment(tiny.get_config(), devices=jax.devices()[:1])
    watch = meter.Meter(experiment, compile_seconds=0.0)
    watch.start(Batches)
    metrics = {"loss": (np.float32(1), np.float32(1)), "finite": np.ones(1, bool)}
    with caplog.at_level(logging.WARNING, logger="encoders"):
        for step in (0, 10, 20):
            watch.add(metrics)
            with watch.on_device():
                time.sleep(0.6)
            record = watch.flush(step, store=None)
    assert record["train/slowest_process"] == 1
    assert record["train/slowest_own_seconds"] == 0.5
    assert record["train/median_own_seconds"] == pytest.approx(0.25, abs=0.1)
    assert record["train/step_seconds"] > 0.5
    [warning] = caplog.messages
    assert "straggler up to step 10: process 1 on n1 needs 0.500 s per step for itself" in warning
