"""The guard: it counts steps below a floor, stops a run that has collapsed, and no other."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from encoders.errors import CollapseError, ConfigError
from encoders.layers.quantizer import GumbelQuantizer, Temperature
from encoders.objectives.classification import Classification
from encoders.objectives.guard import Guard, Watch
from encoders.objectives.span_masking import SpanMasking
from encoders.objectives.speech_contrast import SpeechContrast
from encoders.parallel.mesh import make_mesh
from encoders.training.experiment import Experiment
from encoders.training.loop import train
from encoders.training.state import TrainState
from encoders.training.step import make_step
from tests.objectives.speech import ENCODER as TINY


def looked_at(watch, values):
    """The step at which a run with these values of 'x' is stopped, or None."""
    for step, value in enumerate(values, start=1):
        try:
            watch.look(step, {"x": value})
        except CollapseError:
            return step
    return None


@pytest.mark.parametrize(
    "guard, values, stopped",
    [
        (Guard({"x": 1.0}, patience=3), [2, 0, 0, 0, 0], 4),
        (Guard({"x": 1.0}, patience=3), [0, 0, 2, 0, 0, 1], None),
        (Guard({"x": 1.0}, patience=2, after=3), [0, 0, 0, 0, 2, 0, 0], 7),
        (Guard({"x": 1.0}, patience=1), [float("nan")], 1),
        (Guard(), [0, 0], None),
        (None, [0, 0], None),
    ],
)
def test_a_run_is_stopped_after_so_many_steps_below_the_floor(guard, values, stopped):
    assert looked_at(Watch(guard, "advice"), values) == stopped


def test_guards_that_cannot_be():
    with pytest.raises(ConfigError, match="patience from 1"):
        Guard({"x": 1.0}, patience=0)
    with pytest.raises(ConfigError, match=r"no metric 'perplexty'\..+'perplexity'"):
        Watch(Guard({"perplexty": 1.0}), "").look(1, {"perplexity": 2.0, "loss": 1.0})


def test_training_stops_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(Classification, "guard", Guard({"accuracy": 2.0}, patience=7))
    monkeypatch.setattr(Classification, "advice", "no accuracy is above one")
    config = tiny.get_config()  # which reads its metrics every five steps
    total, config.duration = config.duration, {"steps": 4}
    train(Experiment(config, devices=jax.devices()[:1]), tmp_path)
    config.duration = total  # a run that is resumed goes on counting
    with pytest.raises(CollapseError) as raised:
        train(Experiment(config, devices=jax.devices()[:1]), tmp_path)
    message = str(raised.value)
    assert message.startswith("step 7: the run has collapsed, its accuracy of ")
    assert message.endswith("objective.guard's 2 since step 1; no accuracy is above one.")
    assert raised.value.exit_code == 5
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["message"]) == ("failed", message)


SIZES = dict(width=16, mlp_dim=32, conv_dim=16, conv_kernels=(10, 4), conv_strides=(5, 4))
ENCODER = TINY.clone(**SIZES, feature_gradient=1.0)
SAMPLES, STEPS = 810, 120
BROKEN_STEPS = 60  # within which docs/speech.md says that the broken run is stopped


def tones(step):
    """Clips of six notes each, of any pitch."""
    pitch = np.random.default_rng(step).uniform(0.02, 0.3, (8, 6)).repeat(SAMPLES // 6, 1)
    return {
        "waveform": np.sin(np.cumsum(pitch, 1) * 2 * np.pi / 3).astype(np.float32),
        "length": np.full(8, SAMPLES, np.int32),
        "row": np.arange(8, dtype=np.int32),
    }


def stopped_at(**fields):
    """The step of STEPS at which the guard stops training, and its message; None if it does not."""
    objective = SpeechContrast(
        ENCODER,
        masking=SpanMasking(length=5),
        quantizer=GumbelQuantizer(groups=2, entries=16, width=16),
        projection_dim=16,
        num_negatives=10,
        feature_dropout=0.0,
        guard=Guard({"perplexity": 20.0}, patience=30),
        **fields,
    )
    params = jax.jit(objective.init)(jax.random.key(0), tones(0))["params"]
    optimizer, schedule = optax.adam(0.02), optax.constant_schedule(0.02)
    mesh = make_mesh(fsdp=1, devices=jax.devices()[:1])
    options = {"seed": 0, "normalize": lambda x: x, "mesh": mesh}
    step = jax.jit(make_step(objective, optimizer, schedule, **options))
    state = TrainState(jnp.int32(0), params, {}, optimizer.init(params))
    watch = Watch(objective.guard, objective.advice)
    for number in range(STEPS):
        state, metrics = step(state, tones(number))
        total, weight = metrics["perplexity"]
        try:
            watch.look(number + 1, {"perplexity": float(total / weight)})
        except CollapseError as error:
            return number + 1, str(error)
    return None


def test_a_broken_run_is_stopped():
    """No diversity, and a temperature that stays where gradients are noise."""
    stuck = Temperature(start=0.1, decay=1.0, floor=0.1)
    step, message = stopped_at(diversity_weight=0.0, temperature=stuck)
    assert step <= BROKEN_STEPS
    assert "raise objective.diversity_weight" in message


def test_a_healthy_run_is_not():
    assert stopped_at(temperature=Temperature(decay=0.995)) is None
