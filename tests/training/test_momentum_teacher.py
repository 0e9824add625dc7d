"""A teacher that follows the student: by its formula, on any mesh, and through checkpoints."""

import functools
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from encoders.config import Durations
from encoders.errors import ConfigError
from encoders.layers.linear import Linear
from encoders.models.vit import ViT
from encoders.objectives import OBJECTIVES
from encoders.objectives.base import Momentum, Objective
from encoders.parallel.mesh import make_mesh, to_device
from encoders.parallel.sharding import like_parameters, named, parameter_specs
from encoders.rules import only
from encoders.training.experiment import Experiment
from encoders.training.loop import open_store, train
from encoders.training.schedules import momentum
from encoders.training.start import starting_state
from encoders.training.state import TrainState
from encoders.training.step import make_step
from encoders.types import Outcome

RAMP = Momentum(0.5, 0.9, {"steps": 2})


class Follower(Objective):
    """What the student makes of an image should be one more than what the teacher makes of it."""

    momentum: Momentum = RAMP

    followed = (r"encoder/.*",)

    def setup(self):
        self.head = Linear(3)

    def features(self, images):
        return self.head(self.encoder(images).pooled)

    def __call__(self, batch, *, train=False):
        found = self.features(batch["image"])
        error = found - self.taught("features", batch["image"]) - 1
        return Outcome(jnp.square(error).sum(), jnp.float32(len(error)))

    def flops(self, input_size):
        return self.encoder.flops(input_size)


ENCODER = ViT(width=16, depth=1, mlp_dim=32, num_heads=2, patch_size=4, pool="mean")
OBJECTIVE = Follower(ENCODER)
DURATIONS = Durations(16, total_steps=8)


@functools.cache
def batch():
    images = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)
    return {"image": images, "row": np.arange(16, dtype=np.int32)}


@functools.cache
def parameters():
    params = jax.jit(OBJECTIVE.init)(jax.random.key(0), batch())["params"]
    return jax.device_get(params)


def steps(number, mesh, micro_batches=1):
    """(parameters, teacher) after every step."""
    optimizer = optax.sgd(0.1)
    params = parameters()
    teacher = only(OBJECTIVE.followed, params, where="followed")
    specs = parameter_specs(params, mesh, min_size=1)
    kept = like_parameters(teacher, params, specs)
    placed = jax.device_put(params, named(mesh, specs))
    state = TrainState(
        jnp.int32(0),
        placed,
        {},
        optimizer.init(placed),
        teacher=jax.device_put(teacher, named(mesh, kept)),
    )
    step = jax.jit(
        make_step(
            OBJECTIVE,
            optimizer,
            optax.constant_schedule(0.1),
            seed=0,
            normalize=lambda x: x,
            mesh=mesh,
            micro_batches=micro_batches,
            momentum=momentum(RAMP, DURATIONS),
        )
    )
    found = []
    for _ in range(number):
        state, _ = step(state, to_device(batch(), mesh))
        found.append(jax.device_get((state.params, state.teacher)))
    return found


@functools.cache
def alone():
    return steps(3, make_mesh(devices=jax.devices()[:1]))


def test_it_follows_by_its_formula_and_has_no_gradient():
    def features(params):
        return OBJECTIVE.apply({"params": params}, batch()["image"], method="features")

    goals = jax.jit(features)

    @jax.jit
    def slopes(params, goal):
        return jax.grad(lambda p: jnp.square(features(p) - goal - 1).sum() / 16)(params)

    params = parameters()
    teacher = params["encoder"]
    for slow, (found, followed) in zip((0.5, 0.7, 0.9), alone(), strict=True):
        # The head is one for both: the teacher has none of its own.
        goal = goals({"encoder": teacher, "head": params["head"]})
        slope = slopes(params, goal)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, slope)
        chex.assert_trees_all_close(found, params, atol=1e-6)
        assert followed["head"] == {"kernel": None, "bias": None}
        teacher = jax.tree.map(lambda t, p: slow * t + (1 - slow) * p, teacher, found["encoder"])  # noqa: B023
        chex.assert_trees_all_close(followed["encoder"], teacher, atol=1e-7)
        teacher = followed["encoder"]
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), teacher, parameters()["encoder"])
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_meshes_and_micro_batches_change_nothing():
    found = steps(2, make_mesh(dcn=2, fsdp=4), micro_batches=2)
    chex.assert_trees_all_close(found[-1], alone()[1], atol=1e-6)


def test_ramps():
    def values(section, at):
        return momentum(section, DURATIONS)(jnp.asarray(at))

    np.testing.assert_allclose(values(RAMP, [0, 1, 2, 5]), [0.5, 0.7, 0.9, 0.9], atol=1e-7)
    np.testing.assert_allclose(values(Momentum(0.996), [0, 7]), [0.996] * 2, atol=1e-7)
    # DINO's: 1 - (1 - m) (cos(pi t) + 1) / 2 over the whole run.
    cosine = values(Momentum(0.996, 1.0, shape="cosine"), np.arange(9))
    expected = 1 - 0.004 * (np.cos(np.pi * np.arange(9) / 8) + 1) / 2
    np.testing.assert_allclose(cosine, expected, atol=1e-7)
    with pytest.raises(ConfigError, match=r"objective\.momentum\.end: 1\.5 is not from 0 to 1"):
        Momentum(0.9, 1.5)


def experiment(steps, **fields):
    config = tiny.get_config()
    config.model.update(dict(width=16, depth=1, mlp_dim=32, num_heads=2, dropout=0.0))
    config.objective = dict(name="follower", **fields)
    config.optimizer.schedule = dict(name="constant")
    config.ema = None
    config.duration = {"steps": steps}
    config.checkpoint = dict(every={"steps": 2}, keep_last=5)
    return Experiment(config, devices=jax.devices()[:2])


def restored(workdir, step):
    made = experiment(step)
    with open_store(made, workdir) as store:
        return jax.device_get(store.restore(made.abstract_state, step))


def test_a_run_that_goes_on_has_the_bits_of_one_that_did_not_stop(tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "follower", Follower)
    train(experiment(4), tmp_path)
    whole = restored(tmp_path, 4)
    shutil.rmtree(tmp_path / "checkpoints/4")
    train(experiment(4), tmp_path)
    chex.assert_trees_all_equal(restored(tmp_path, 4), whole)
    assert np.abs(whole.teacher["encoder"]["cls_token"]).max() > 0
    # Sharded as the parameters, and the teacher of a run from weights starts as these.
    made = experiment(2)
    other = Experiment(
        {**made.config, "init_from": {"path": str(tmp_path), "load": ((".*", True),)}},
        devices=jax.devices()[:2],
    )
    with open_store(other, tmp_path / "other") as store:
        state = starting_state(other, store)
    chex.assert_trees_all_equal(jax.device_get(state.teacher["encoder"]), whole.params["encoder"])
    jax.tree.map(
        lambda t, p: chex.assert_equal(t.sharding, p.sharding),
        state.teacher["encoder"],
        state.params["encoder"],
    )


def test_a_rule_of_a_teacher_that_has_nothing_is_an_error(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "follower", Follower)
    monkeypatch.setattr(Follower, "followed", ("encoder/blocks_7/.*",))
    with pytest.raises(ConfigError, match=r"Follower\.followed: rule 'encoder/blocks_7/\.\*'"):
        _ = experiment(2).abstract_state
