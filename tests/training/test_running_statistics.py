"""Batch norms in training: one batch on any mesh, and statistics that go where weights go."""

import chex
import jax
import numpy as np
from ml_collections import ConfigDict

import encoders
from encoders.checkpoints.store import CheckpointStore
from encoders.parallel.mesh import batch_sharding, make_mesh
from encoders.training.experiment import Experiment
from encoders.training.loop import train
from encoders.training.start import starting_state

IMAGES = dict(name="synthetic", image_size=(32, 32), channels=3, num_classes=4, num_examples=64)


def config(**fields):
    return ConfigDict(
        dict(
            seed=0,
            batch_size=16,
            duration={"steps": 2},
            preprocessing=dict(name="image", image_size=(32, 32)),
            data=dict(source=IMAGES, threads=1, processes=0),
            model=dict(name="resnet", variant="18", width=4, blocks=(1, 1)),
            objective=dict(name="classification", num_classes=4),
            optimizer=dict(name="sgd", lr=0.1, schedule=dict(name="constant")),
            log=dict(every={"steps": 1}, tensorboard=False),
            **fields,
        )
    )


def test_a_run_keeps_them_and_others_start_with_them(tmp_path):
    first = Experiment(config(), devices=jax.devices()[:2])
    train(first, tmp_path / "first")
    encoder = encoders.load(tmp_path / "first")
    stats = encoder.variables["stats"]
    assert np.abs(stats["stem_norm"]["mean"]).max() > 1e-3
    inits = dict(init_from=dict(path=str(tmp_path / "first"), fresh=(r"head/.*",)))
    second = Experiment(config(**inits), devices=jax.devices()[:2])
    with CheckpointStore(tmp_path / "second") as store:
        state = starting_state(second, store)
    chex.assert_trees_all_equal(jax.device_get(state.stats["stats"]["encoder"]), stats)
    chex.assert_trees_all_equal(
        jax.device_get(state.params["encoder"]), encoder.variables["params"]
    )


def test_the_batch_is_the_global_one():
    module = Experiment(config(), devices=jax.devices()[:1]).objective.encoder
    images = np.random.default_rng(0).normal(size=(16, 32, 32, 3)).astype(np.float32)
    variables = jax.jit(module.init)(jax.random.key(0), images)
    run = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["stats"]))
    out, stats = run(variables, images)
    place = batch_sharding(make_mesh(data=-1, fsdp=1))
    spread, spread_stats = run(variables, jax.device_put(images, place))
    assert len(place.device_set) == 8
    np.testing.assert_allclose(spread.pooled, out.pooled, atol=1e-5)
    chex.assert_trees_all_close(spread_stats, stats, atol=1e-6)
