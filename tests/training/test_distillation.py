"""A teacher from a run directory: loaded, run beside the student, and never changed or saved."""

import chex
import jax
import numpy as np
import pytest
import tiny

from encoders import loading
from encoders.checkpoints.store import CheckpointStore
from encoders.errors import CheckpointError
from encoders.training.experiment import Experiment
from encoders.training.loop import train


def experiment(config):
    config.log.every = {"steps": 2}
    config.duration = {"steps": 4}
    return Experiment(config, devices=jax.devices()[:2])


def test_a_student_learns_from_a_run(tmp_path):
    train(experiment(tiny.get_config()), tmp_path / "teacher")
    before = loading.read_variables(tmp_path / "teacher")

    config = tiny.get_config()
    config.model.width = 16
    config.objective.teacher = str(tmp_path / "teacher")
    config.objective.distillation = dict(kind="soft", temperature=2.0, weight=0.9)
    student = experiment(config)
    assert student.objective.teacher.encoder.size.width == 24
    result = train(student, tmp_path / "student")

    assert 0 <= result["train/agreement"] <= 1
    assert np.isfinite(result["train/loss"])
    chex.assert_trees_all_equal(before, loading.read_variables(tmp_path / "teacher"))
    with CheckpointStore(tmp_path / "student/checkpoints") as store:
        assert store.read_params(prefix="params")["encoder"]["cls_token"].shape == (16,)
        with pytest.raises(CheckpointError, match="has no 'teacher'"):
            store.read_params(prefix="teacher")


def test_a_missing_teacher_is_named():
    config = tiny.get_config()
    config.objective.teacher = "runs/nobody"
    config.objective.distillation = dict(kind="hard")
    with pytest.raises(CheckpointError, match="runs/nobody"):
        experiment(config)
