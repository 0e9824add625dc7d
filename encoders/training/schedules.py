"""Learning rates over a run: small pure functions `step -> rate`, picked by name from SCHEDULES.

A section such as `dict(name='cosine', warmup={'epochs': 40})` names a function below; durations may
be in steps, epochs, examples or percent. The peak comes from `optimizer.lr`, the length of the run
from `duration`. Every schedule rises linearly from 0 over `warmup` (so with one, step 0 has rate
0), and `end` is a fraction of the peak, so a sweep over `lr` scales the whole curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from encoders.config import Durations
from encoders.errors import ConfigError
from encoders.objectives.base import Momentum

_WHERE = "optimizer.schedule"
Duration = Mapping[str, Any] | None


def _steps(duration: Duration, durations: Durations, field: str) -> int:
    return 0 if duration is None else durations.steps(duration, f"{_WHERE}.{field}")


def _total(durations: Durations, **phases: int) -> int:
    """The length of the run, after checking that the phases fit into it."""
    total = durations.total_steps
    if total is None:
        raise ConfigError(f"{_WHERE}: this schedule needs to know the length of the run.")
    if sum(phases.values()) > total:
        spelled = " + ".join(f"{name} {steps}" for name, steps in phases.items())
        raise ConfigError(f"{_WHERE}: {spelled} steps do not fit into a run of {total}.")
    return total


def _ramp(step: jax.Array, warmup: int) -> jax.Array:
    """0 at step 0, 1 from step `warmup` on."""
    return jnp.minimum(1.0, step / warmup) if warmup else jnp.ones_like(step)


def _progress(step: jax.Array, start: int, stop: int) -> jax.Array:
    """0 until `start`, 1 from `stop`, linear between."""
    # As floats: a run may have more steps than an int32, in small batches for example.
    return jnp.clip((step - float(start)) / float(max(stop - start, 1)), 0.0, 1.0)


def _schedule(peak: float, shape: optax.Schedule) -> optax.Schedule:
    # The count is an int32; float32 counts exactly to 2**24 = 16.7 million steps.
    return lambda count: peak * shape(jnp.asarray(count, jnp.float32))


def constant(peak: float, durations: Durations, warmup: Duration = None) -> optax.Schedule:
    """peak, after the warm-up."""
    up = _steps(warmup, durations, "warmup")
    return _schedule(peak, lambda step: _ramp(step, up))


def cosine(
    peak: float, durations: Durations, warmup: Duration = None, end: float = 0.0
) -> optax.Schedule:
    """end + (1 - end) (1 + cos(pi t)) / 2, with t from 0 after the warm-up to 1 at the run's end.

    One half-cycle without restarts (arXiv 1608.03983, eq. 5), as in MAE and big_vision.
    """
    up = _steps(warmup, durations, "warmup")
    total = _total(durations, warmup=up)

    def shape(step):
        half_cycle = 0.5 * (1.0 + jnp.cos(jnp.pi * _progress(step, up, total)))
        return _ramp(step, up) * (end + (1.0 - end) * half_cycle)

    return _schedule(peak, shape)


def linear(
    peak: float, durations: Durations, warmup: Duration = None, end: float = 0.0
) -> optax.Schedule:
    """A straight line from the peak after the warm-up to `end` at the run's end."""
    up = _steps(warmup, durations, "warmup")
    total = _total(durations, warmup=up)
    return _schedule(
        peak, lambda step: _ramp(step, up) * (1.0 - (1.0 - end) * _progress(step, up, total))
    )


def rsqrt(
    peak: float,
    durations: Durations,
    warmup: Duration = None,
    cooldown: Duration = None,
    timescale: Duration = None,
) -> optax.Schedule:
    """1 / sqrt(1 + (step - warmup) / timescale) after the warm-up, then a linear cool-down to 0.

    The shape of arXiv 2106.04560 (section 3.5): the decay does not know the length of the run, so
    a run can go on, and be cooled down from any point.

    Args:
      peak: the rate at the end of the warm-up.
      durations: resolves durations to steps.
      warmup: length of the linear rise.
      cooldown: length of the linear fall to 0 at the end, multiplied on top of the decay.
      timescale: after how long the rate has fallen to 1/sqrt(2); 10,000 steps by default.
    """
    up = _steps(warmup, durations, "warmup")
    down = _steps(cooldown, durations, "cooldown")
    scale = 10_000 if timescale is None else _steps(timescale, durations, "timescale")
    if scale < 1:
        raise ConfigError(f"{_WHERE}.timescale: expected at least one step, got {timescale}.")
    total = _total(durations, warmup=up, cooldown=down)

    def shape(step):
        decayed = 1.0 / jnp.sqrt(1.0 + jnp.maximum(step - up, 0.0) / scale)
        fall = 1.0 - _progress(step, total - down, total) if down else 1.0
        return _ramp(step, up) * decayed * fall

    return _schedule(peak, shape)


def wsd(
    peak: float,
    durations: Durations,
    decay: Mapping[str, Any],
    warmup: Duration = None,
    shape: Literal["sqrt", "linear"] = "sqrt",
    end: float = 0.0,
) -> optax.Schedule:
    """Warm-up, stable, decay: the peak until the last `decay` of the run, then down to `end`.

    The fall is 1 - sqrt(t) or 1 - t (arXiv 2405.18392, sec. 3.2, who find the root better).
    """
    up, down = _steps(warmup, durations, "warmup"), _steps(decay, durations, "decay")
    total = _total(durations, warmup=up, decay=down)

    def curve(step):
        t = _progress(step, total - down, total) if down else jnp.zeros_like(step)
        fallen = jnp.sqrt(t) if shape == "sqrt" else t
        return _ramp(step, up) * (1.0 - (1.0 - end) * fallen)

    return _schedule(peak, curve)


def step(
    peak: float,
    durations: Durations,
    at: Sequence[Mapping[str, Any]],
    factor: float = 0.1,
    warmup: Duration = None,
) -> optax.Schedule:
    """Multiplied by `factor` at each point of `at`, as ResNets are trained (arXiv 1512.03385)."""
    up = _steps(warmup, durations, "warmup")
    points = [_steps(point, durations, f"at[{i}]") for i, point in enumerate(at)]

    def shape(count):
        passed = sum((count >= point).astype(jnp.float32) for point in points)
        return _ramp(count, up) * jnp.power(factor, passed)

    return _schedule(peak, shape)


def momentum(section: Momentum, durations: Durations) -> optax.Schedule:
    """step -> the momentum of a teacher, from `start` at step 0 to `end`."""
    start, end = section.start, section.start if section.end is None else section.end
    over = durations.total_steps
    if section.over is not None:
        over = durations.steps(section.over, "objective.momentum.over")

    def at(step):
        t = _progress(step, 0, over)
        gone = 0.5 * (1.0 - jnp.cos(jnp.pi * t)) if section.shape == "cosine" else t
        return start + (end - start) * gone

    return lambda count: at(jnp.asarray(count, jnp.float32))


SCHEDULES = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "rsqrt": rsqrt,
    "step": step,
    "wsd": wsd,
}
