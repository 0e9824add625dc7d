"""Named hardware: what it sets, that it fits every experiment, and that XLA knows its flags."""

import os
import subprocess
import sys

import pytest
import shipped
from ml_collections import ConfigDict

from configs import hardware
from encoders.config import load_config
from encoders.errors import ConfigError
from encoders.training.experiment import Experiment

TPUS, GPUS = ("v4", "v5e", "v5p", "v6e"), ("a100", "h100", "h200")


@pytest.mark.parametrize("name", shipped.NAMES)
def test_every_experiment_takes_chips_and_other_transforms(name):
    config = shipped.load(f"{name}:h200,scan,remat")
    for network in hardware.networks(config):
        assert (network.scan, network.remat) == (True, "dots")
    assert config.hardware.environment.JAX_OPTIMIZATION_LEVEL == "O1"
    assert Experiment(config).mesh.shape["fsdp"] == 8
    assert shipped.load(f"{name}:v5p").hardware.mesh.fsdp == -1


@pytest.mark.parametrize("name", [*TPUS, *GPUS])
def test_a_chip_changes_nothing_but_hardware_and_remat(name):
    plain, changed = (shipped.load(f"vit_b16_in1k{suffix}") for suffix in ("", f":{name}"))
    assert changed.hardware.environment
    experiment = Experiment(changed)
    assert experiment.sections.hardware.environment == changed.hardware.environment.to_dict()
    changed.hardware, changed.model.remat = plain.hardware, plain.model.remat
    assert changed.to_dict() == plain.to_dict()


def test_transforms_add_to_what_a_config_has_and_overrides_come_last():
    config = ConfigDict(dict(model={}, hardware=dict(micro_batches=4)))
    config = hardware.apply(config, "h200,replicate")
    assert config.hardware.micro_batches == 4
    assert config.hardware.mesh.to_dict() == hardware.mesh(data=-1, fsdp=1)
    assert set(config.hardware.environment) == {"JAX_OPTIMIZATION_LEVEL", "XLA_FLAGS"}
    spec = f"{shipped.ROOT}/configs/vit_b16_in1k.py:h100"
    overridden = load_config(spec, ["hardware.mesh.fsdp=4", "hardware.environment.XLA_FLAGS=--x"])
    assert overridden.hardware.mesh.fsdp == 4
    assert overridden.hardware.environment.XLA_FLAGS == "--x"
    with pytest.raises(ConfigError, match=r"unknown config argument 'h300'; known: .*'h200'"):
        shipped.load("vit_s16_in1k:300,h300")
    with pytest.raises(ConfigError, match="'second' and 'ctc' are variants of demo_speech"):
        shipped.load("demo_speech:second,ctc")


def test_xla_knows_the_flags_and_jax_the_level():
    environment = shipped.load("vit_b16_in1k:h200").hardware.environment.to_dict()
    program = "import jax; print(jax.jit(abs)(-1.0), jax.config.jax_optimization_level)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["1.0", "O1"], done.stderr
