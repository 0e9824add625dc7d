"""The command that trains on this machine: what it prints, refuses and compiles."""

import pathlib

import pytest
from running import CONFIG, SHORT, environment, finish, launch

from encoders.errors import ConfigError, DeadlineError
from launch import local, supervisor
from launch.job import Job

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/launch/local"
PAGE = pathlib.Path(__file__).parents[2] / "docs/launch/local.md"


def test_a_dry_run_prints_every_process(capsys, monkeypatch, rewrite_golden):
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    command = "--config configs/demo.py --workdir runs/demo --processes 2 --devices-per-process 4"
    arguments = [*command.split(), "--config.seed=1", "--dry-run"]
    assert local.main(arguments) == 0
    printed = capsys.readouterr().out
    golden = GOLDEN / "dry_run.txt"
    if rewrite_golden:
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(printed)
    assert printed == golden.read_text()
    page = PAGE.read_text()
    assert printed in page
    assert f"python -m launch.local {' '.join(arguments)}" in page


def test_accelerators_are_shared_out(monkeypatch):
    monkeypatch.setattr(supervisor, "has_accelerator", lambda: True)
    lines = supervisor.render(Job("c.py", "w"), 2, 4).splitlines()
    assert [line.split()[0] for line in lines] == [
        "JAX_LOCAL_DEVICE_IDS=0,1,2,3",
        "JAX_LOCAL_DEVICE_IDS=4,5,6,7",
    ]


@pytest.mark.parametrize(
    "flags, problem",
    [
        ("--devices-per-process 2", "need --processes"),
        ("--processes 0", "count from 1, got 0 and 1"),
        ("--processes 2 --retries -1", "--retries: counts from 0"),
        ("--processes 2 --compile-only", "leave out --processes"),
        ("--procesess 2", "Did you mean '--processes'"),
    ],
)
def test_bad_flags_are_refused(flags, problem, tmp_path):
    with pytest.raises(ConfigError, match=problem):
        local.main(["--config", CONFIG, "--workdir", str(tmp_path), *flags.split()])


def test_what_is_compiled_once_is_not_compiled_again(tmp_path):
    cache = tmp_path / "cache" / "encoders" / "jax"
    variables = environment(XDG_CACHE_HOME=str(tmp_path / "cache"))
    variables.pop("JAX_COMPILATION_CACHE_DIR", None)  # would be used instead
    code, output = finish(launch(tmp_path / "run", *SHORT, "--compile-only", env=variables))
    assert code == 0, output
    assert "compiled the training step in" in output
    assert not (tmp_path / "run").exists()
    [step] = cache.glob("jit_step-*-cache")
    code, output = finish(launch(tmp_path / "run", *SHORT, env=variables))
    assert code == 0, output
    assert list(cache.glob("jit_step-*-cache")) == [step]


def test_a_mistake_is_not_tried_again(tmp_path):
    options = ("--processes", 1, "--devices-per-process", 2, "--config.batch_size=15")
    code, output = finish(launch(tmp_path, *options))
    assert code == ConfigError.exit_code, output
    assert "batch_size: 15 cannot be cut into 2 device shards" in output
    assert "starting again" not in output


def test_a_run_that_dies_again_and_again_is_given_up(tmp_path):
    options = ("--processes", 1, "--retries", 1, "--config.deadlines.startup=0.5")
    code, output = finish(launch(tmp_path, *options))
    assert code == DeadlineError.exit_code, output
    assert output.count("starting again (1 of 1)") == 1
    assert "giving up after 1 retries" in output
