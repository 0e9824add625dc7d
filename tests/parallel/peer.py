"""One step and two evaluators of a tiny experiment; run by one process, or by one of several.

Usage: peer.py ADDRESS COUNT INDEX MESH..., each MESH as JSON; prints a line of JSON for each.
"""

import json
import pathlib
import sys

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "training"))
import tiny

from encoders.parallel.mesh import AXES, local_rows, to_device
from encoders.training.experiment import Experiment
from encoders.training.loop import run_evaluator

DATA = dict(name="synthetic", image_size=(16, 16), num_classes=4, num_examples=21)


def measure(sizes, devices=None):
    """Metrics of the first step from random weights, and of evaluators after it.

    Checks on the way that every device of this process has its rows of the global batch.
    """
    config = tiny.get_config()
    config.hardware.mesh = sizes
    config.evaluators = {
        "classification": dict(name="classification", test=DATA, batch_size=8),
        "knn": dict(name="knn", train=DATA, test={**DATA, "seed": 1}, k=(3,), batch_size=8),
    }
    experiment = Experiment(config, devices=devices)
    pipeline = experiment.pipeline()
    whole = type(pipeline)(
        experiment.source, experiment.transforms, config.batch_size, config.seed, threads=0
    ).batch(5)
    batch = to_device(pipeline.batch(5), experiment.mesh)
    check_shards(batch, whole)

    state, metrics = experiment.step()(experiment.create_state(), batch)
    metrics = jax.device_get(metrics)
    total, weight = metrics["loss"]
    found = {"loss": total / weight, "grad_norm": metrics["grad_norm"]}
    for name, (evaluator, _) in experiment.evaluators().items():
        scores = run_evaluator(evaluator, experiment, state, 1)
        found |= {f"{name}/{key}": value for key, value in scores.items()}
    return {name: float(value) for name, value in found.items()}


def check_shards(batch, whole):
    """Every device of this process holds its rows of the global batch, and knows which they are."""
    for name, array in batch.items():
        assert array.shape == whole[name].shape
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[name][shard.index])


def check_interleaved_rows():
    """On an interconnect, neighbours may be of different processes."""
    devices = np.asarray(jax.devices()).reshape(-1, 2).T.reshape(1, -1, 1, 1, 1)
    mesh = jax.sharding.Mesh(devices, AXES)
    whole = {"x": np.arange(24).reshape(8, 3)}
    rows = local_rows(mesh, 8)
    assert np.diff(rows).tolist() == [1, 3, 1]
    check_shards(to_device({"x": whole["x"][rows]}, mesh), whole)


if __name__ == "__main__":
    address, count, index = sys.argv[1:4]
    jax.distributed.initialize(address, int(count), int(index))
    check_interleaved_rows()
    for mesh in sys.argv[4:]:
        print(json.dumps(measure(json.loads(mesh))), flush=True)
