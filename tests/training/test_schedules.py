"""Schedules against the formulas of the codes they come from, and against optax's own."""

import math

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import optax
import pytest

from encoders.config import Durations, build
from encoders.errors import ConfigError
from encoders.training.schedules import SCHEDULES

TOTAL = 1000
DURATIONS = Durations(batch_size=10, examples_per_epoch=500, total_steps=TOTAL)  # 50 steps an epoch
PEAK = 0.3


def values(**section):
    schedule = build(SCHEDULES, section, "optimizer.schedule", peak=PEAK, durations=DURATIONS)
    return np.asarray(schedule(np.arange(TOTAL + 1)))


def test_cosine_is_that_of_mae():
    """MAE's adjust_learning_rate, with its min_lr, in fractional epochs."""
    got = values(name="cosine", warmup={"epochs": 2}, end=0.1)
    warmup, total, floor = 100, TOTAL, 0.1 * PEAK
    expected = [
        PEAK * step / warmup
        if step < warmup
        else floor
        + (PEAK - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        for step in range(TOTAL + 1)
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_run_may_have_more_steps_than_an_int32():
    long = Durations(batch_size=2, examples_per_epoch=None, total_steps=6_400_000_000)
    section = {"name": "cosine", "warmup": {"steps": 100}}
    schedule = build(SCHEDULES, section, "optimizer.schedule", peak=PEAK, durations=long)
    assert jax.jit(schedule)(200) == pytest.approx(PEAK)


def test_cosine_is_that_of_optax():
    got = values(name="cosine", warmup={"percent": 10}, end=0.01)
    optaxs = optax.warmup_cosine_decay_schedule(0.0, PEAK, 100, TOTAL, PEAK * 0.01)
    np.testing.assert_allclose(got, jax.vmap(optaxs)(np.arange(TOTAL + 1)), rtol=2e-5, atol=1e-8)


def test_rsqrt_is_that_of_big_vision():
    got = values(
        name="rsqrt", warmup={"steps": 100}, cooldown={"examples": 2000}, timescale={"steps": 300}
    )
    warmup, cooldown, timescale = 100, 200, 300
    expected = []
    for step in range(TOTAL + 1):
        lr = PEAK
        if step > warmup:
            lr /= math.sqrt((step + timescale - warmup) / timescale)
        lr *= min(1.0, step / warmup)
        lr *= min(1.0, (TOTAL - step) / cooldown)
        expected.append(lr)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8)


def test_linear_and_constant():
    got = values(name="linear", warmup={"steps": 200}, end=0.5)
    assert got[[0, 100, 200, 600, 1000]] == pytest.approx(
        [0, PEAK / 2, PEAK, 0.75 * PEAK, 0.5 * PEAK]
    )
    got = values(name="constant", warmup={"steps": 10})
    assert got[[0, 5, 10, 1000]] == pytest.approx([0, PEAK / 2, PEAK, PEAK])
    assert values(name="constant")[0] == pytest.approx(PEAK)


@pytest.mark.parametrize(("shape", "half"), [("linear", 0.5), ("sqrt", 1 - math.sqrt(0.5))])
def test_wsd_is_stable_then_decays(shape, half):
    got = values(
        name="wsd", warmup={"percent": 5}, decay={"percent": 20}, shape=shape, end=0.1
    ) / PEAK  # fmt: skip
    assert got[25] == pytest.approx(0.5)
    np.testing.assert_allclose(got[50:801], 1.0, rtol=1e-6)
    assert got[900] == pytest.approx(0.1 + 0.9 * half)
    assert got[1000] == pytest.approx(0.1)
    assert np.all(np.diff(got[800:]) < 0)


def test_step_falls_at_each_point():
    got = values(name="step", at=({"epochs": 6}, {"epochs": 12}), factor=0.1, warmup={"epochs": 1})
    assert got[[25, 299, 300, 599, 600, 1000]] == pytest.approx(
        [PEAK / 2, PEAK, PEAK * 0.1, PEAK * 0.1, PEAK * 0.01, PEAK * 0.01]
    )


@hypothesis.given(
    name=st.sampled_from(["constant", "cosine", "linear", "rsqrt"]),
    total=st.integers(1, 400),
    warmup=st.floats(0, 100),
)
@hypothesis.settings(deadline=None, max_examples=40)
def test_every_schedule_stays_between_zero_and_its_peak(name, total, warmup):
    durations = Durations(8, 80, total)
    section = {"name": name, "warmup": {"percent": warmup}}
    schedule = build(SCHEDULES, section, "optimizer.schedule", peak=PEAK, durations=durations)
    got = np.asarray(
        schedule(np.linspace(0, total, 41).astype(np.int32))
    )  # one shape: no compiling
    assert np.all(np.isfinite(got))
    assert got.min() >= 0
    assert got.max() <= PEAK * (1 + 1e-6)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"name": "cosin"},
            r"optimizer.schedule.name: unknown name 'cosin'. Did you mean 'cosine'",
        ),
        ({"name": "cosine", "warm_up": {"steps": 1}}, r"schedule.warm_up: unknown field.*'warmup'"),
        ({"name": "cosine", "cooldown": {"steps": 1}}, r"schedule.cooldown: unknown field"),
        ({"name": "cosine", "warmup": {"epoch": 1}}, r"warmup: unknown unit 'epoch'.*'epochs'"),
        ({"name": "cosine", "warmup": 10}, r"schedule.warmup: expected"),
        ({"name": "cosine", "warmup": {"steps": 1001}}, r"warmup 1001 steps do not fit .* 1000"),
        ({"name": "wsd"}, r"schedule.decay is missing"),
        ({"name": "wsd", "decay": {"steps": 1}, "shape": "root"}, r"shape: unknown value 'root'"),
        ({"name": "wsd", "warmup": {"steps": 500}, "decay": {"steps": 501}}, r"do not fit"),
        ({"name": "rsqrt", "timescale": {"steps": 0}}, r"timescale: expected at least one step"),
        ({"name": "step", "at": ({"steps": 1}, {"years": 2})}, r"at\[1\]: unknown unit 'years'"),
    ],
)
def test_mistakes_are_named(section, message):
    with pytest.raises(ConfigError, match=message):
        values(**section)


def test_a_decay_needs_an_end():
    with pytest.raises(ConfigError, match="length of the run"):
        SCHEDULES["cosine"](1.0, Durations(1, 1))
