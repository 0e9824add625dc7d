"""Every kind of shipped experiment trains two steps in a shrunken form, through the real loop."""

import json
import math

import jax
import pytest
import shipped

from encoders.training.experiment import Experiment
from encoders.training.loop import train


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A shrunken MAE run to start fine-tuning and probing from."""
    runs = {}

    def run(variant: str):
        if variant not in runs:
            directory = tmp_path_factory.mktemp(f"mae_{variant}")
            config = shipped.shrink(shipped.load(f"mae_{variant}_in1k"))
            config.evaluators = {}
            train(Experiment(config, devices=jax.devices()[:1]), directory)
            runs[variant] = directory
        return runs[variant]

    return run


@pytest.mark.parametrize("name", [*shipped.distinct(shipped.NAMES), "siglip_b16:naflex"])
def test_two_steps(name, tmp_path, pretrained):
    config = shipped.shrink(shipped.load(name))
    if "init_from" in config:
        config.init_from.path = str(pretrained(name.split("_")[2]))
    result = train(Experiment(config, devices=jax.devices()[:1]), tmp_path)
    assert result["state"] == "finished"
    assert result["step"] == 2
    assert math.isfinite(result["train/loss"])
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    written = {key for line in lines for key in json.loads(line)}
    assert all(
        any(key.startswith(f"eval/{name}/") for key in written) for name in config.evaluators
    )
