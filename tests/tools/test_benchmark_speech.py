"""Parts of encoders of speech alone: what is measured, and that all ways compute the same."""

import json

import pytest

from encoders.errors import ConfigError
from tools import benchmark_speech


def test_formulations_of_the_convolution_agree():
    lines = benchmark_speech.positions(1, 20, width=32, kernel=8)
    assert [line["formulation"] for line in lines] == ["conv", "blocks", "fft"]
    assert max(line["error"] for line in lines) < 1e-5
    assert min(line["both_ms"] for line in lines) > 0


def test_spectrograms_agree(capsys):
    arguments = ["--clips", "2", "--seconds", "0.5", "--part", "spectrogram"]
    assert benchmark_speech.main(arguments) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["way"] for line in lines] == ["device", "device_from_host", "numpy"]
    assert max(line["error"] for line in lines) < 1e-4
    assert all(line["seconds_per_second"] > 1 for line in lines)


def test_flags_are_checked():
    with pytest.raises(ConfigError, match="at least 1 and"):
        benchmark_speech.main(["--clips", "0"])
    with pytest.raises(ConfigError, match="Did you mean 'positions'"):
        benchmark_speech.main(["--part", "position"])
