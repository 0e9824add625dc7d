"""The planner's command: what it prints, refuses, and exits with."""

import importlib.util

import pytest

from encoders.errors import ConfigError
from launch import plan
from launch.planning import search, target
from launch.planning.compiled import refusal

LARGE = "configs/vit_22b_jft.py"
SMALL = (
    "--config.model.width=512",
    "--config.model.depth=2",
    "--config.model.mlp_dim=1024",
    "--config.model.num_heads=8",
    "--config.objective.num_classes=128",
    "--config.batch_size=64",
    "--config.preprocessing.image_size=(56,56)",
)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--topology", "v5q:4x4"], "unknown TPU 'v5q'. Did you mean 'v5p'?"),
        (["--topology", "v5e:4x4x4"], "v5e is a torus of 2 dimensions"),
        (["--topology", "pod"], "expected a generation and its chips"),
        (["--topology", "v5e:3x5"], "libtpu knows no 'v5e:3x5'"),
        (["--devices", "8xH300"], "unknown kind 'H300'. Did you mean 'H200'?"),
        (["--devices", "H200"], "expected a number and a kind"),
        ([], "one of --topology"),
        (["--devices", "8xH200", "--topology", "v5e:4x4"], "one of --topology"),
        (["--devices", "8xH200", "--slices", "2"], "--slices goes with --topology"),
        (["--devices", "8xH200", "--config.hardware.mesh.tensor=3"], "does not fit 8 devices"),
        (["--topology", "v5e:4x4", "--config.batch_size=24"], "24 cannot be cut into 16"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, words):
    with pytest.raises(ConfigError) as found:
        plan.main(["--config", LARGE, *arguments])
    assert words in str(found.value)
    assert "\n" not in str(found.value)


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install encoders\[plan\]"):
        plan.main(["--config", LARGE, "--topology", "v5e:4x4"])


@pytest.mark.parametrize(
    "text, expected",
    [
        ("v5p:8x8x16", target.Topology("v5p", (8, 8, 16))),
        ("2x v5e:16x16", target.Topology("v5e", (16, 16), 2)),
        ("2xv5e:4x4", target.Topology("v5e", (4, 4), 2)),
    ],
)
def test_a_topology_may_have_several_slices(text, expected):
    assert target.parse_topology(text) == expected
    assert target.parse_topology(str(expected)) == expected


def test_what_does_not_fit_exits_with_one(capsys):
    assert plan.main(["--config", LARGE, "--devices", "8xH200"]) == 1
    printed = capsys.readouterr().out
    assert "Does not fit." in printed
    assert "Counted from shapes and formulas" in printed


def test_gpus_are_counted_without_opening_data(capsys):
    flags = ["--config.model.scan=True", "--config.model.remat=full"]
    assert plan.main(["--config", "configs/mae_l16_in1k.py", "--devices", "8xH200", *flags]) == 0
    printed = capsys.readouterr().out
    assert "8 chips, mesh fsdp 8" in printed
    assert "chip-hours" in printed


@pytest.mark.usefixtures("quick_compiler")
def test_the_step_is_compiled_for_a_pod(capsys):
    assert plan.main(["--config", LARGE, "--topology", "v5e:4x4", *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "v5e:4x4: 16 chips, mesh fsdp 16" in printed
    assert "parameters" in printed
    assert "optimizer state" in printed
    assert "Traced and compiled in" in printed


def test_two_slices_are_joined_by_dcn():
    machine = search.pod(target.parse_topology("2x v5e:2x2"))
    assert len(machine.devices) == 8
    assert machine.slices == 2


def test_a_search_tries_all_that_divides_and_prints_the_best(capsys):
    flags = ["--search", "--keep", "2", *SMALL]
    assert plan.main(["--config", LARGE, "--devices", "8xH200", *flags]) == 0
    printed = capsys.readouterr().out
    assert "none compiled; the best that fit:" in printed
    assert printed.count("--config.hardware.mesh.data=") == 2


def test_a_search_that_finds_nothing_exits_with_one(capsys):
    assert plan.main(["--config", LARGE, "--devices", "1xA100", "--search"]) == 1
    assert "none fits" in capsys.readouterr().out


def test_candidates_divide():
    found = list(search.candidates(chips=8, batch_size=24, heads=6, slices=2))
    assert {c.tensor for c in found} == {1, 2}
    assert all(24 % (2 * c.data * c.fsdp * c.micro_batches) == 0 for c in found)
    assert all(2 * c.data * c.fsdp * c.tensor == 8 for c in found)


def test_the_compilers_refusal_is_shown():
    words = "RESOURCE_EXHAUSTED: Ran out of memory: 45.20G exceeds 15.75G.\nmore"
    assert refusal(words) == "Ran out of memory: 45.20G exceeds 15.75G."
