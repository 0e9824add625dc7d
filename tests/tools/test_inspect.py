import subprocess
import sys

import pytest
import shipped

from encoders.errors import ConfigError
from launch.flags import parse_flags


def test_it_says_what_a_config_means_and_what_it_needs():
    command = [sys.executable, "-m", "tools.inspect", "--config", "configs/demo.py"]
    sizes = ["--config.batch_size=16", "--config.model.depth=1"]
    override = [*sizes, "--config.duration={'steps': 4}", "--compile"]
    out = subprocess.run(
        command + override, cwd=shipped.ROOT, capture_output=True, text=True, check=True
    ).stdout
    for line in (
        "duration = {'steps': 4} -> 4 steps",
        "model.norm_eps = 1e-06",
        "batch image = [16, 28, 28, 1] uint8",
        "encoder/patch_embedding/kernel ",
        "peak = ",
    ):
        assert line in out


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (
            ["--config", "configs/demo.py", "--workdri", "x"],
            "'--workdri'. Did you mean '--workdir'",
        ),
        (["--config", "configs/demoo.py", "--workdir", "x"], "Did you mean 'configs/demo.py'"),
        (["--config", "configs/demo.py"], "--workdir"),
        (["--config", "configs/vit_b16_in1k.py:scna", "--workdir", "x"], "argument 'scna'"),
        (["--config", "configs/demo.py", "--config.seed", "--workdir", "x"], "seed=VALUE"),
    ],
)
def test_wrong_flags_are_explained(arguments, problem, monkeypatch):
    monkeypatch.chdir(shipped.ROOT)
    with pytest.raises(ConfigError, match=problem):
        parse_flags("", arguments, workdir="where to")


def test_values_keep_their_types(monkeypatch):
    monkeypatch.chdir(shipped.ROOT)
    flags = ["--config.optimizer.lr=1", "--config.data.transforms.0.scale=(0.5, 1.0)"]
    parsed, config = parse_flags("", ["--config", "configs/demo.py", *flags])
    assert parsed.config == "configs/demo.py"
    assert isinstance(config.optimizer.lr, float)
    assert config.data.transforms[0]["scale"] == (0.5, 1.0)
