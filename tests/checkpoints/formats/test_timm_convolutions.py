"""timm's ResNets and EfficientNets, both ways.

Written by `python -m tools.golden.write_timm_convolutions`; read here without PyTorch.
"""

import dataclasses
import functools
import pathlib

import chex
import jax
import numpy as np
import optax
import pytest

import encoders
from encoders.checkpoints.formats import files
from encoders.checkpoints.formats.mapping import linear
from encoders.checkpoints.formats.timm_convolutions import network
from encoders.config import build
from encoders.errors import CheckpointError
from encoders.models import MODELS
from tools.golden.inputs import picture, weight

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "convolutions"
SIZE, CLASSES = (65, 47), 5
ARGUMENTS = {
    "resnet18": {"layers": [1, 1, 1, 1]},
    "resnet50": {"layers": [1, 2, 1, 1]},
    "efficientnet_b0": {},
    "tf_efficientnet_b0": {},
}
PRETRAINED = {
    "input_size": [3, *SIZE],
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "interpolation": "bicubic",
    "crop_pct": 0.875,
}


def saved(name, directory, **arguments):
    """A directory as timm saves it; its tensors."""
    found = network(name, ARGUMENTS[name], (), 3, {}, name)
    rules = [*found.rules, *linear(found.classifier, "head", found.width, CLASSES)]
    tensors = {key: weight(key, shape) for rule in rules for key, shape in rule.theirs}
    batches = {
        key.replace("running_mean", "num_batches_tracked"): np.array(7)
        for key in tensors
        if key.endswith("running_mean")
    }
    config = {
        "architecture": f"{name}.ra_in1k",
        "model_args": arguments,  # tensors say the rest
        "pretrained_cfg": PRETRAINED,
    }
    directory.mkdir()
    files.write_json(directory / files.CONFIG, config)
    files.write_tensors(directory / files.WEIGHTS, tensors | batches)
    return tensors


@pytest.mark.parametrize("name", ARGUMENTS)
def test_outputs_gradients_and_the_way_back(name, tmp_path):
    tensors = saved(name, tmp_path / "in")
    model = encoders.load(tmp_path / "in")
    with np.load(GOLDEN / f"timm_{name}.npz") as file:
        want = dict(file)

    def loss(params, head, stats):
        out = model.module.apply({"params": params, "stats": stats}, picture(SIZE))
        logits = out.pooled @ head["kernel"] + head["bias"]
        labels = np.arange(len(logits))
        total = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return total, {"map": out.tokens, "pooled": out.pooled, "logits": logits}

    asked = [key for key in want if "/" in key]
    function = jax.grad(loss, argnums=(0, 1), has_aux=True) if asked else loss
    variables = model.variables
    result = jax.jit(function)(variables["params"], model.heads["head"], variables["stats"])
    for key, value in result[1].items():
        scale = np.abs(want[key]).max()
        np.testing.assert_allclose(value, want[key], rtol=0, atol=1e-5 * scale, err_msg=key)
    write = functools.partial(encoders.save, format="timm", heads=True)
    if asked:
        params, head = result[0]
        carrier = dataclasses.replace(
            model, variables={**variables, "params": params}, heads={"head": head}
        )
        write(carrier, tmp_path / "gradients")
        found = files.read_tensors(tmp_path / "gradients")
        for key in asked:
            scale = np.abs(want[key]).max()
            of = found[key.removeprefix("gradients/")]
            np.testing.assert_allclose(of, want[key], rtol=0, atol=1e-4 * scale, err_msg=key)
    write(model, tmp_path / "out")
    chex.assert_trees_all_equal(files.read_tensors(tmp_path / "out"), tensors)
    again = encoders.load(tmp_path / "out")
    assert (again.module, again.preprocessing) == (model.module, model.preprocessing)


def test_what_timm_has_not_is_refused(tmp_path):
    tensors = saved("resnet18", tmp_path / "in", block_args={})
    with pytest.raises(CheckpointError, match=r"model_args\.block_args is not supported"):
        encoders.load(tmp_path / "in")
    saved("resnet18", tmp_path / "good")
    model = encoders.load(tmp_path / "good")
    assert len(tensors) > len(model.metadata["dropped"]) > 0
    for section, message in (
        (dict(name="resnet", width=32), "model.width=32 cannot be expressed: there it is 64"),
        (dict(name="efficientnet", head=False), "model.head=False cannot be expressed"),
        (dict(name="efficientnet", padding="late"), "'late' cannot be expressed"),
        (dict(name="efficientnet", width_factor=2.0), "model.width_factor=2.0 cannot be"),
        (dict(name="efficientnet", norm_eps=1e-6), "model.norm_eps=1e-06 cannot be expressed"),
        (dict(name="clip_resnet"), "model.name='clip_resnet' cannot be expressed"),
    ):
        other = dataclasses.replace(
            model,
            module=build(MODELS, section, "model"),
            variables={"params": {"stem": {"kernel": np.zeros((7, 7, 3, 64), np.float32)}}},
            heads={},
        )
        with pytest.raises(CheckpointError, match=message):
            encoders.save(other, tmp_path / "out", format="timm")
