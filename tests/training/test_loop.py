"""The loop as its users meet it: resumed, interrupted, and given what cannot work."""

import functools
import json
import re
import shutil
import signal

import chex
import jax
import numpy as np
import pytest
import tiny
from PIL import Image
from running import CONFIG, finish, launch, wait_for

from encoders.checkpoints.store import CheckpointStore
from encoders.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from encoders.training.experiment import Experiment
from encoders.training.loop import is_due, train
from encoders.training.metrics import read_facts
from launch import local, session


def experiment(config):
    return Experiment(config, devices=jax.devices()[:2])


@functools.cache
def tiny_experiment():
    return experiment(tiny.get_config())


def state_of(workdir, step):
    with CheckpointStore(workdir / "checkpoints") as store:
        return jax.device_get(store.restore(tiny_experiment().abstract_state, step))


@pytest.fixture(scope="module")
def in_one_go(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("in_one_go")
    train(tiny_experiment(), workdir)
    return workdir


def test_twenty_steps_are_ten_a_kill_and_ten_more_to_the_bit(in_one_go, tmp_path):
    # As long as it takes: the process dies right after its first checkpoint, wherever it is.
    process = launch(tmp_path, devices=2)
    wait_for(lambda: (tmp_path / "checkpoints/10/manifest.json").exists(), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    # Whatever was written after step 10 must not be needed.
    (tmp_path / "checkpoints/20/manifest.json").unlink(missing_ok=True)
    assert CheckpointStore(tmp_path / "checkpoints").latest() == 10
    train(experiment(tiny.get_config()), tmp_path)
    assert [s["first_step"] for s in read_facts(tmp_path)["sessions"]] == [0, 10]
    chex.assert_trees_all_equal(state_of(tmp_path, 20), state_of(in_one_go, 20))

    def curve(workdir):
        lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        return {r["step"]: r["train/loss"] for r in records if "train/loss" in r}

    assert curve(tmp_path) == curve(in_one_go)
    assert sorted(curve(tmp_path)) == [5, 10, 15, 20]


def test_the_next_batch_is_a_function_of_the_step():
    first, second = (experiment(tiny.get_config()).pipeline() for _ in range(2))
    chex.assert_trees_all_equal(list(first.iterate(7, 9))[1], second.batch(8))


@pytest.mark.parametrize(
    "every, total, steps",
    [(10, 20, [10, 20]), (3, 10, [3, 6, 10]), (2, 9, [2, 4, 6, 9]), (None, 4, [4])],
)
def test_what_comes_due_just_before_the_end_waits_for_it(every, total, steps):
    assert [step for step in range(1, total + 1) if is_due(step, every, total)] == steps


def test_parameters_and_their_average_move(in_one_go):
    state = state_of(in_one_go, 20)
    assert int(state.step) == 20
    for params in (state.params, state.ema):
        chex.assert_tree_all_finite(params)
    moved = np.abs(state.params["head"]["kernel"] - state.ema["head"]["kernel"]).max()
    assert moved > 0


def test_a_loss_that_is_no_number_stops_with_step_parameters_and_last_checkpoint(tmp_path):
    config = tiny.get_config()
    config.optimizer = dict(name="sgd", lr=1e30, schedule=dict(name="constant"))
    config.objective.mixup = 0.0
    with pytest.raises(NonFiniteError, match=r"step \d+: loss .* gradients are not finite \(.*\)"):
        train(experiment(config), tmp_path)
    status = json.loads((tmp_path / "status.json").read_text(encoding="utf-8"))
    assert status["state"] == "failed"
    assert "not finite" in status["message"]


def test_a_directory_belongs_to_one_experiment(in_one_go):
    config = tiny.get_config()
    config.optimizer.lr = 0.02
    with pytest.raises(ConfigError, match=r"holds a run with optimizer.lr=0.01, but .* 0.02"):
        train(experiment(config), in_one_go)


def test_a_truncated_picture_is_replaced_counted_and_named(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("left", "right"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(12):
            image = Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8))
            image.save(tmp_path / "data" / label / f"{number}.jpg")
    broken = tmp_path / "data/left/3.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    config = tiny.get_config()
    config.duration = {"epochs": 2}
    config.data.source = dict(name="folder", path=str(tmp_path / "data"))
    config.log.profile_steps = (1, 2)
    result = train(experiment(config), tmp_path / "run")
    assert result["step"] == 3
    assert result["train/corrupt_examples"] >= 2  # once an epoch, or a replacement drew it again
    log = (tmp_path / "run/log.txt").read_text(encoding="utf-8")
    assert "3.jpg" in log
    assert list((tmp_path / "run/profile").rglob("*.xplane.pb"))  # as config.log.profile_steps asks


def test_a_damaged_checkpoint_and_one_of_another_model_are_told_apart(in_one_go, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(in_one_go, run)
    (run / "config.json").unlink()
    config = tiny.get_config()
    config.model.mlp_dim = 40
    with pytest.raises(
        CheckpointError, match=r"another model .*fc1/bias is .*48. there, .*40. here"
    ):
        train(experiment(config), run)

    (run / "config.json").unlink()
    largest = max(
        (run / "checkpoints/20").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"step 20 .*damaged.*step 10"):
        train(experiment(tiny.get_config()), run)


@pytest.mark.parametrize(
    "override, problem",
    [
        ("optimizer.lrr=1", "optimizer.lrr: unknown field. Did you mean 'lr'?"),
        ("optimzer.lr=1", "--config.optimzer: unknown field. Did you mean 'optimizer'?"),
        ("batch_size=ten", "--config.batch_size: expected int, got 'ten'"),
        ("batch_size=15", "batch_size: 15 cannot be cut into 8 device shards"),
        ("model.name=vitt", "model.name: unknown name 'vitt'. Did you mean 'vit'?"),
    ],
)
def test_what_cannot_work_is_refused(override, problem, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "prepare", lambda config: None)  # jax has started
    with pytest.raises(ConfigError, match=re.escape(problem)):
        local.main(["--config", CONFIG, "--workdir", str(tmp_path), f"--config.{override}"])


def test_what_cannot_work_is_said_in_one_sentence(tmp_path):
    process = launch(tmp_path, "--config.data.source={'name': 'folder', 'path': 'nowhere'}")
    code, output = finish(process)
    assert (code, "Traceback" in output) == (DataError.exit_code, False), output
    last = output.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "nowhere" in last
