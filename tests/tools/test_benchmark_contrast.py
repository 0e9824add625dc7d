"""The contrastive losses by themselves: what is measured, and that both forms are one loss."""

import json

import pytest

from encoders.errors import ConfigError
from tools import benchmark_contrast


def test_both_forms_are_timed_and_agree(capsys):
    assert benchmark_contrast.main(["--rows", "64", "--dim", "8", "--dense"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {(line["loss"], line["form"]): line for line in lines}
    assert len(found) == 4
    for kind in ("softmax", "sigmoid"):
        ring, dense = found[kind, "ring"], found[kind, "dense"]
        assert ring["value"] == pytest.approx(dense["value"], rel=1e-5)
        assert min(line["ms"] for line in (ring, dense)) > 0
        assert ring["devices"] == 8


def test_of_the_dense_form_only_memory_is_needed():
    found = benchmark_contrast.measure("sigmoid", "dense", 64, 8, timed=False)
    assert "ms" not in found
    assert found["device_mib"] > 0


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="multiple of the 8 devices"):
        benchmark_contrast.main(["--rows", "65"])
