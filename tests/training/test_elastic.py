"""Four processes, then two, then one: the run goes on as if nothing had changed."""

import signal

import jax
import numpy as np
import pytest
import tiny
from running import finish, launch, losses, wait_for_step

from encoders.checkpoints.store import CheckpointStore
from encoders.errors import STOPPED
from encoders.training.experiment import Experiment
from encoders.training.metrics import read_facts, read_status

STEPS = 60
OPTIONS = (
    f"--config.duration.steps={STEPS}",
    "--config.log.every.steps=1",
    "--config.checkpoint.every.steps=1000",
    "--config.model.depth=1",
    # Training amplifies what sums round away; slowly enough to compare at this rate.
    "--config.optimizer.lr=3e-4",
)


def parameters(workdir):
    config = tiny.get_config()
    config.model.depth = 1
    config.duration.steps = STEPS
    abstract = Experiment(config, devices=jax.devices()[:1]).abstract_state
    with CheckpointStore(workdir / "checkpoints") as store:
        return jax.device_get(store.restore(abstract, STEPS).params)


def run(workdir, *arguments, stop_at=None):
    process = launch(workdir, *OPTIONS, *arguments)
    if stop_at is not None:
        wait_for_step(stop_at, workdir, process)
        process.send_signal(signal.SIGTERM)
    return finish(process)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone")
    code, output = run(workdir)
    assert code == 0, output
    return workdir


def test_a_run_goes_from_four_processes_to_two_to_one(alone, tmp_path):
    code, output = run(tmp_path, "--processes", 4, stop_at=5)
    assert code == STOPPED, output
    first = read_status(tmp_path)["step"]
    assert 5 <= first < STEPS
    code, output = run(tmp_path, "--processes", 2, "--devices-per-process", 2, stop_at=first + 2)
    assert code == STOPPED, output
    second = read_status(tmp_path)["step"]
    assert first < second < STEPS
    code, output = run(tmp_path)
    assert code == 0, output

    sessions = read_facts(tmp_path)["sessions"]
    assert [s["first_step"] for s in sessions] == [0, first, second]
    assert [s["devices"]["processes"] for s in sessions] == [4, 2, 1]
    assert [s["outcome"] for s in sessions] == ["stopped", "stopped", "finished"]
    found, expected = losses(tmp_path), losses(alone)
    assert list(found) == list(expected) == list(range(1, STEPS + 1))
    worst = max(abs(found[step] - expected[step]) for step in expected)
    assert worst < 1e-5
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4),
        parameters(tmp_path),
        parameters(alone),
    )
    assert {f"log-{i}.txt" for i in (1, 2, 3)} <= {p.name for p in tmp_path.iterdir()}
