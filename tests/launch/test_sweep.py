"""Sweeps as their users meet them: started, stopped, killed, gone on with, and changed."""

import argparse
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types

import fake_sweep
import pytest
from rendered import ROOT, assert_documented, assert_reviewed, documented_commands
from running import environment

from encoders.errors import ConfigError
from launch import sweep
from launch.sweeping.children import share_of_gpus

TINY = "tests/training/tiny_sweep.py"
CONFIG = """
from ml_collections import ConfigDict
from configs import sweeps

def get_config(arg=None):
    return ConfigDict(dict(
        duration={{"steps": 6}}, optimizer=dict(lr=0.1), seed=0, evaluators=dict(knn=dict()),
        log=dict(seconds=0.0), fake_failure="", fake_loss=0.0,
    ))

def sweep():
    return {body}
"""
FOUR = """[dict(fake_loss=float(i)) for i in (3, 1, 2, 4)]"""


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def config(tmp_path):
    """Writes a config whose sweep() returns an expression, and gives its path."""
    (tmp_path / "configs_of_test").mkdir()

    def write(body=FOUR):
        path = tmp_path / "configs_of_test" / "c.py"
        path.write_text(CONFIG.format(body=body))
        return str(path)

    return write


def run(config, root, *flags):
    return fake_sweep.main(["--config", config, "--workdir", str(root), *flags])


def start(config, root, *flags):
    command = [sys.executable, fake_sweep.__file__, "--config", config, "--workdir", str(root)]
    return subprocess.Popen(
        [*command, *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def states(root):
    found = {p.parent.name: json.loads(p.read_text()) for p in root.glob("*/status.json")}
    return {name: found[name]["state"] for name in sorted(found)}


def starts(root):
    """name -> the steps at which its sessions started."""
    found = {}
    for path in sorted(root.glob("*/starts.txt")):
        lines = [line.split() for line in path.read_text().splitlines()]
        found[path.parent.name] = [int(step) for step, _ in lines if step != "end"]
    return found


# --- what would run -------------------------------------------------------------------------------


EXAMPLES = {
    "local": """--config configs/demo.py --workdir runs/sweep --jobs 2
        --config.duration="{'epochs': 2}" --dry-run""",
    "slurm": """--config configs/demo.py --workdir /shared/runs/sweep --on slurm --nodes 1
        --gpus-per-node 1 --cpus-per-task 8 --max-running 4 --time 30
        --python /shared/venv/bin/python --checkout /shared/encoders --dry-run""",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_the_dry_run_shows_was_reviewed_and_is_documented(name, capsys, rewrite_golden):
    words = " ".join(EXAMPLES[name].split())
    assert sweep.main(shlex.split(words)) == 0
    text = capsys.readouterr().out
    if name == "slurm":  # all of it is in the golden files of launch.slurm
        text = text[: text.index(";;")].rstrip() + "\n"
    assert_reviewed(f"sweep/{name}.txt", text, rewrite_golden)
    assert_documented("sweep.md", text)
    assert f"python -m launch.sweep {words}" in documented_commands("sweep.md")


@pytest.mark.parametrize("where, title", [("tpu", "startup.sh"), ("gke", "yaml")])
def test_every_launcher_shows_each_run_of_the_documented_sweep(where, title, capsys):
    (command,) = (c for c in documented_commands("sweep.md") if f"--on {where}" in c)
    assert sweep.main([*shlex.split(command)[3:], "--dry-run"]) == 0
    shown = capsys.readouterr().out
    titles = re.findall(rf"^--- .*-mr-0-(?:5|75|9)-lr-0-00\d\.{title} ---$", shown, re.M)
    assert len(set(titles)) == 6


def test_a_dry_run_writes_nothing(tmp_path):
    sweep.main(["--config", TINY, "--workdir", str(tmp_path / "new"), "--dry-run"])
    assert not (tmp_path / "new").exists()


def test_the_demo_has_a_sweep(capsys):
    sweep.main(["--config", "configs/demo.py", "--workdir", "runs/x", "--dry-run"])
    assert "compared by eval/knn/accuracy (max)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "field, message",
    [
        ("optimizer.lrr", r"optimizer\.lrr: unknown field\. Did you mean 'lr'"),
        ("optimiser.lr", r"optimiser: unknown field\. Did you mean 'optimizer'"),
        ("batchsize", r"batchsize: unknown field\. Did you mean 'batch_size'"),
        ("model.widht", r"model\.widht: unknown field\. Did you mean 'width'"),
        ("optimizer.schedule.warm_up", r"unknown field\. Did you mean 'warmup'"),
        ("batch_size", r"batch_size: expected int, got 0\.5"),
    ],
)
@pytest.mark.parametrize("kind", ["grid", "search"])
def test_an_axis_that_no_config_has_is_refused_before_anything_starts(
    tmp_path, field, message, kind
):
    axis = "(0.5, 0.25)" if kind == "grid" else "sweeps.uniform(0.5, 0.75)"
    more = "" if kind == "grid" else ", trials=3"
    (tmp_path / "x").mkdir()
    path = tmp_path / "x" / "c.py"
    path.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from training.tiny import get_config\nfrom configs import sweeps\n"
        f"def sweep():\n    return sweeps.{kind}({{{field!r}: {axis}}}{more})\n"
    )
    with pytest.raises(ConfigError, match=message) as caught:
        sweep.main(["--config", str(path), "--workdir", str(tmp_path / "w")])
    assert str(caught.value).startswith(f"sweep() of {path}: ")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--metric", "eval/knm/accuracy"], "no evaluator 'knm'. Did you mean 'knn'"),
        (["--jobs", "0"], "counts from 1"),
        (["--job", "2"], "Did you mean '--jobs'"),
        (["--on", "slrum"], "invalid choice"),
        (["--on", "local", "--resubmit"], "unknown argument '--resubmit'"),
        (["--config.sed=3"], "Did you mean 'seed'"),
    ],
)
def test_a_wrong_flag_is_refused_before_anything_starts(config, tmp_path, flags, message):
    with pytest.raises(ConfigError, match=message):
        run(config(), tmp_path / "w", *flags)
    assert not (tmp_path / "w").exists()


# --- on this machine ------------------------------------------------------------------------------


def test_all_points_run_so_many_at_a_time_and_are_ranked(config, tmp_path, capsys):
    root = tmp_path / "w"
    assert run(config(), root, "--jobs", "2", "--config.log.seconds=0.1") == 0
    assert list(states(root).values()) == ["finished"] * 4
    spans = []
    for path in root.glob("*/starts.txt"):
        (_, began), (_, ended) = (line.split() for line in path.read_text().splitlines())
        spans.append((float(began), float(ended)))
    together = max(sum(b <= began < e for b, e in spans) for began, _ in spans)
    assert together == 2
    rows = [line for line in (root / "sweep.md").read_text().splitlines() if "finished" in line]
    assert [row.split(" | ")[1] for row in rows] == ["1", "2", "3", "4"]
    assert "the lowest train/loss is 1: 001-fl=1" in capsys.readouterr().out
    assert "<svg" in (root / "sweep.html").read_text()


def test_the_same_command_skips_what_has_finished(config, tmp_path):
    assert run(config(), tmp_path / "w") == 0
    assert run(config(), tmp_path / "w") == 0
    assert all(begun == [0] for begun in starts(tmp_path / "w").values())


def test_a_longer_duration_goes_on_with_what_has_finished(config, tmp_path):
    run(config("[dict(fake_loss=1.0)]"), tmp_path / "w")
    run(config("[dict(fake_loss=1.0)]"), tmp_path / "w", "--config.duration={'steps': 12}")
    assert starts(tmp_path / "w") == {"000-fl=1": [0, 3]}


def test_points_can_be_added_and_others_stay_as_they_are(config, tmp_path):
    run(config("[dict(fake_loss=1.0), dict(fake_loss=2.0)]"), tmp_path / "w")
    run(config("[dict(fake_loss=0.5), dict(fake_loss=2.0)]"), tmp_path / "w")
    assert starts(tmp_path / "w") == {"000-fl=1": [0], "001-fl=2": [0], "002-fl=0.5": [0]}
    assert (tmp_path / "w/sweep.md").read_text().count("finished") == 3


def test_another_experiment_in_the_same_directory_is_refused(config, tmp_path):
    run(config(), tmp_path / "w")
    with pytest.raises(ConfigError, match="holds a run with seed=0, but this config has 1"):
        run(config(), tmp_path / "w", "--config.seed=1")


@pytest.mark.parametrize(
    "failure, said, again",
    [
        ("machine", "killed by SIGKILL", [0, 1]),
        ("numbers", "step 1: loss nan", [0]),  # it would be the same again
        ("words", "no data in /x.", [0, 1]),
    ],
)
def test_a_point_that_fails_does_not_stop_the_others(
    config, tmp_path, capsys, failure, said, again
):
    body = f"[dict(fake_loss=1.0, fake_failure={failure!r}), dict(fake_loss=2.0)]"
    assert run(config(body), tmp_path / "w") == 1
    shown = capsys.readouterr().out
    assert said in shown
    table = (tmp_path / "w/sweep.md").read_text()
    assert re.search(r"000.* \| failed \|", table)
    assert said in table
    assert re.search(r"001.* \| finished \|", table)
    code = run(config(body), tmp_path / "w")
    assert code == (0 if failure == "machine" else 1)
    (failed, fine) = starts(tmp_path / "w").values()
    assert (failed, fine) == (again, [0])


def test_a_run_that_diverged_is_tried_again_once_its_directory_is_gone(config, tmp_path):
    body = "[dict(fake_loss=1.0, fake_failure='numbers')]"
    for _ in range(2):
        assert run(config(body), tmp_path / "w") == 1
        shutil.rmtree(next((tmp_path / "w").glob("000*")))
        assert run(config(body), tmp_path / "w") == 1
        assert list(starts(tmp_path / "w").values()) == [[0]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_run_and_the_same_command_goes_on(config, tmp_path, number):
    root = tmp_path / "w"
    process = start(config(), root, "--jobs", "2", "--config.log.seconds=0.4")
    wait_for(lambda: len(starts(root)) == 2, process)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75, out
    assert states(root) == {"000-fl=3": "stopped", "001-fl=1": "stopped"}
    assert (root / "sweep.md").read_text().count("| stopped |") == 2
    reached = json.loads((root / "000-fl=3" / "status.json").read_text())["step"]
    assert run(config(), root, "--jobs", "2") == 0
    assert list(states(root).values()) == ["finished"] * 4
    steps = starts(root)
    assert reached > 0
    assert steps["000-fl=3"] == [0, reached]
    assert steps["002-fl=2"] == [0]


def test_a_second_signal_ends_runs_that_do_not_stop(config, tmp_path):
    root = tmp_path / "w"
    process = start(config(), root, "--config.log.seconds=600")
    wait_for(lambda: states(root), process)
    process.terminate()
    time.sleep(0.5)
    assert process.poll() is None  # the run is given its time
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75, out
    assert "killed by SIGKILL" in out


def test_runs_that_outlive_a_killed_sweep_are_waited_for_and_not_run_twice(config, tmp_path):
    root = tmp_path / "w"
    process = start(config(), root, "--jobs", "2", "--config.log.seconds=0.7")
    wait_for(lambda: len(starts(root)) == 2, process)
    process.kill()
    process.communicate()
    assert run(config(), root, "--jobs", "2") == 0
    assert list(states(root).values()) == ["finished"] * 4
    assert all(begun == [0] for begun in starts(root).values())


def test_a_metric_that_no_run_has_is_named_with_the_nearest(config, tmp_path):
    run(config(), tmp_path / "w")
    with pytest.raises(ConfigError, match=r"no run has it\. Did you mean 'train/loss'"):
        run(config(), tmp_path / "w", "--metric", "train/los", "--report")


def test_a_report_alone_starts_nothing(config, tmp_path, capsys):
    with pytest.raises(ConfigError, match="no sweep has been started there"):
        run(config(), tmp_path / "w", "--report")
    run(config(), tmp_path / "w")
    capsys.readouterr()
    run(config(), tmp_path / "w", "--report", "--mode=max")
    assert "4 of 4 runs have a result; the highest train/loss is 4" in capsys.readouterr().out
    assert all(begun == [0] for begun in starts(tmp_path / "w").values())


def test_the_best_is_the_highest_where_the_metric_says_so(config, tmp_path, capsys):
    run(config(), tmp_path / "w", "--mode", "max")
    assert "the highest train/loss is 4: 003-fl=4" in capsys.readouterr().out


@pytest.mark.parametrize(
    "visible, jobs, expected",
    [
        ("0,1,2,3", 2, [("0,1", None), ("2,3", None)]),
        ("5,7", 2, [("5", None), ("7", None)]),
        ("0", 2, [("0", "0.45"), ("0", "0.45")]),
        ("0,1", 3, [("0", "0.45"), ("1", "0.45"), ("0", "0.45")]),
        ("0,1", 1, [(None, None)]),
        ("", 2, [(None, None), (None, None)]),
    ],
)
def test_runs_at_a_time_share_the_gpus(visible, jobs, expected):
    found = [share_of_gpus(slot, jobs, {"CUDA_VISIBLE_DEVICES": visible}) for slot in range(jobs)]
    names = ("CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    assert [tuple(share.get(name) for name in names) for share in found] == expected


def test_four_real_runs_two_at_a_time(tmp_path):
    command = [sys.executable, "-m", "launch.sweep", "--config", TINY, "--workdir", str(tmp_path)]
    done = subprocess.run(
        [*command, "--jobs", "2"], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(states(tmp_path).values()) == ["finished"] * 4
    values = {}
    for path in tmp_path.glob("*/status.json"):
        status = json.loads(path.read_text())
        assert status["step"] == 6
        values[path.parent.name] = status["metrics"]["train/loss"]
        config = json.loads((path.parent / "config.json").read_text())
        assert f"lr={config['optimizer']['lr']:g}-" in path.parent.name
    assert len(set(values.values())) == 4  # each point trained with its own fields
    best = min(values, key=values.get)
    assert f": {best}." in done.stdout


# --- searches -------------------------------------------------------------------------------------

SEARCH = (
    'sweeps.search({{"fake_loss": sweeps.uniform(0.0, 8.0)}}, trials={trials}, '
    'metric="train/loss", seed=3)'
)


def test_a_search_runs_generations_and_goes_on_from_what_it_knows(config, tmp_path):
    half, whole = SEARCH.format(trials=3), SEARCH.format(trials=5)
    assert run(config(half), tmp_path / "w", "--jobs", "2") == 0
    assert len(starts(tmp_path / "w")) == 3
    assert run(config(whole), tmp_path / "w", "--jobs", "2") == 0
    assert len(starts(tmp_path / "w")) == 5
    assert all(begun == [0] for begun in starts(tmp_path / "w").values())


def test_a_search_that_was_stopped_is_the_same_as_one_that_was_not(config, tmp_path):
    body = SEARCH.format(trials=4)
    assert run(config(body), tmp_path / "one", "--jobs", "2") == 0
    process = start(config(body), tmp_path / "two", "--jobs", "2", "--config.log.seconds=0.3")
    wait_for(lambda: len(starts(tmp_path / "two")) == 2, process)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert run(config(body), tmp_path / "two", "--jobs", "2") == 0
    assert states(tmp_path / "two") == states(tmp_path / "one")


# --- schedulers -----------------------------------------------------------------------------------


@pytest.fixture
def scheduler(monkeypatch):
    """A scheduler that only takes note."""
    module = types.SimpleNamespace(submitted=[])

    def add_flags(parser: argparse.ArgumentParser):
        parser.add_argument("--nodes", type=int, required=True)

    def submit(jobs, flags):
        first = sum(map(len, module.submitted))
        module.submitted.append([*jobs])
        return [f"job{first + index}" for index in range(len(jobs))]

    module.add_flags, module.submit = add_flags, submit
    module.render = lambda jobs, flags: {"a.sh": "\n".join(j.workdir for j in jobs) + "\n"}
    monkeypatch.setitem(sys.modules, "launch.slurm", module)
    return module


def test_a_scheduler_is_handed_each_run_once(config, tmp_path, scheduler, capsys):
    root = tmp_path / "w"
    flags = ["--on", "slurm", "--nodes", "1", "--config.seed=7"]
    assert run(config("[dict(fake_loss=1.0), dict(fake_loss=2.0)]"), root, *flags) == 0
    (jobs,) = scheduler.submitted
    assert [job.workdir for job in jobs] == [f"{root}/000-fl=1", f"{root}/001-fl=2"]
    assert jobs[0].overrides == ("seed=7", "fake_loss=1.0")
    assert "submitted" in (root / "sweep.md").read_text()
    three = config("[dict(fake_loss=1.0), dict(fake_loss=2.0), dict(fake_loss=3.0)]")
    assert run(three, root, *flags) == 0
    assert [job.workdir for job in scheduler.submitted[1]] == [f"{root}/002-fl=3"]
    assert "--resubmit" in capsys.readouterr().out
    assert run(three, root, *flags, "--resubmit") == 0
    assert len(scheduler.submitted[2]) == 3


def test_what_a_scheduler_refused_is_not_taken_for_submitted(config, tmp_path, scheduler):
    taking = scheduler.submit

    def refuse(jobs, flags):
        raise ConfigError("no such partition.")

    scheduler.submit = refuse
    flags = [config(), tmp_path / "w", "--on", "slurm", "--nodes", "1"]
    with pytest.raises(ConfigError, match="no such partition"):
        run(*flags)
    scheduler.submit = taking
    assert run(*flags) == 0
    assert len(scheduler.submitted[0]) == 4


def test_a_dry_run_on_a_scheduler_shows_its_files(config, tmp_path, scheduler, capsys):
    run(config(), tmp_path / "w", "--on=slurm", "--nodes", "1", "--dry-run")
    assert f"--- a.sh ---\n{tmp_path}/w/000-fl=3\n" in capsys.readouterr().out
    assert scheduler.submitted == []


def test_a_search_needs_this_machine(config, tmp_path, scheduler):
    with pytest.raises(ConfigError, match="a search chooses points from the results of others"):
        run(config(SEARCH.format(trials=3)), tmp_path / "w", "--on", "slurm", "--nodes", "1")
