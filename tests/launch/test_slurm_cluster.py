"""launch.slurm and launch.sweep on a real Slurm: two nodes on this machine (slurm/cluster.py)."""

import pathlib
import re
import shutil
import subprocess
import tempfile
import time

import pytest
from running import train_here
from slurm import cluster

from encoders.training.metrics import read_facts, read_metrics, read_status
from launch import slurm, sweep

pytestmark = pytest.mark.skipif(cluster.why_not() is not None, reason=str(cluster.why_not()))

NODES = ["--gpus-per-node", "0", "--cpus-per-task", "1", "--time", "10"]
STAND_IN = str(pathlib.Path(cluster.__file__).with_name("python"))
PATIENCE = 200.0  # seconds; a busy machine needs half of it for all tests of this file


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A directory that both nodes share, and their Slurm running."""
    directory = tmp_path_factory.mktemp("shared")
    state = pathlib.Path(tempfile.mkdtemp(prefix="slurm-"))  # sockets want short paths
    with pytest.MonkeyPatch.context() as patch:
        try:
            for name, value in cluster.start(state).items():
                patch.setenv(name, value)
            patch.setenv("JAX_COMPILATION_CACHE_DIR", str(directory / "compiled"))
            patch.setattr("launch.clusters.backend._LOCAL", ())  # here, both nodes do share /tmp
            yield directory
        finally:
            cluster.stop(state)
            shutil.rmtree(state)


def submit(workdir, *arguments, config="tests/training/tiny.py"):
    slurm.main(["--config", config, "--workdir", str(workdir), *NODES, *arguments])


def act(workdir, *starts, notice=()):
    """Submits the stand-in: what processes 0 and 1 do at each start."""
    workdir.mkdir()
    (workdir / "plan").write_text("\n".join(starts) + "\n")
    submit(workdir, "--nodes", "2", "--python", STAND_IN, *notice)


def job_of(workdir):
    """The fields of a run's Slurm job, once it has one."""
    (found,) = [job for job in jobs() if job.get("StdOut", "").startswith(f"{workdir}/")]
    return found


def jobs():
    """The fields of every job that Slurm knows."""
    listed = scontrol("show", "job", "-o").splitlines()
    return [dict(w.split("=", 1) for w in line.split() if "=" in w) for line in listed]


def scontrol(*words):
    return subprocess.run(["scontrol", *words], capture_output=True, text=True).stdout


def until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > deadline:
            logs = "".join(f"\n{p}:\n{p.read_text()}" for p in what.rglob("slurm-*.log"))
            pytest.fail(f"{what} was not done in {PATIENCE:.0f} s\n{scontrol('show', 'job')}{logs}")
        time.sleep(0.3)
    return value


def ended(workdir):
    """The run's job, when Slurm is done with it."""

    def done():
        job = job_of(workdir)
        return job if job["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT") else None

    return until(done, workdir)


def console(workdir):
    (file,) = workdir.glob("slurm-*.log")
    return file.read_text()


@pytest.fixture(scope="module")
def told_by_slurm(shared):
    """Submitted first, because Slurm's own notice takes a while: it comes up to a minute early,
    so 15 to 75 seconds after the start."""
    act(shared / "notice", "wait wait", "0 0", notice=["--time", "2", "--notice", "45"])
    return shared / "notice"


def test_a_run_that_is_told_to_stop_requeues_itself_and_ends_as_if_undisturbed(
    shared, told_by_slurm
):
    steps = ["--config.duration.steps=80"]
    workdir, undisturbed = shared / "disturbed", shared / "undisturbed"
    submit(workdir, "--nodes", "2", *steps)
    until(lambda: len(read_metrics(workdir)) > 0, workdir)
    # What --signal=TERM does, at a moment of the test's choice: the steps get it, the script not.
    subprocess.run(["scancel", "--signal=TERM", job_of(workdir)["JobId"]], check=True)
    train_here(undisturbed, *steps, devices=2)
    job = ended(workdir)
    assert (job["JobState"], job["Restarts"], job["NumNodes"]) == ("COMPLETED", "1", "2")
    assert "stopped, its state is saved" in console(workdir)
    first, second = read_facts(workdir)["sessions"]
    assert first["outcome"] == "stopped"
    assert 0 < second["first_step"] < 80
    assert (second["devices"]["count"], second["devices"]["processes"]) == (2, 2)
    last, expected = (read_metrics(path)[-1] for path in (workdir, undisturbed))
    assert last["step"] == expected["step"] == 80
    assert read_status(workdir)["state"] == "finished"
    assert last["train/loss"] == expected["train/loss"]


def test_a_sweep_of_four_points_is_one_array(shared):
    root = shared / "sweep"
    points = ["--config", "tests/training/tiny_sweep.py", "--workdir", str(root), "--on", "slurm"]
    nodes = [*NODES, "--nodes", "1", "--max-running", "3", "--python", STAND_IN]
    assert sweep.main([*points, *nodes]) == 0

    def tasks():
        return [job for job in jobs() if job.get("StdOut", "").startswith(f"{root}/")]

    until(lambda: [job["JobState"] for job in tasks()] == ["COMPLETED"] * 4, root)
    assert len({job["ArrayJobId"] for job in tasks()}) == 1
    assert all(job["ArrayTaskThrottle"] == "3" for job in tasks())
    given = {path.parent.name: path.read_text().split() for path in root.glob("*/starts-0")}
    assert sorted(given) == [
        "000-lr=0.001-wd=0", "001-lr=0.001-wd=0.1", "002-lr=0.01-wd=0", "003-lr=0.01-wd=0.1"
    ]  # fmt: skip
    for name, words in given.items():
        lr, decay = re.search(r"lr=(.*)-wd=(.*)", name).groups()
        assert words[:2] == ["-m", "launch.worker"]
        assert words[words.index("--workdir") + 1] == f"{root}/{name}"
        assert words[-2:] == [
            f"--config.optimizer.lr={lr}",
            f"--config.optimizer.weight_decay={float(decay)}",
        ]


def test_a_mistake_of_one_process_is_not_tried_again(shared):
    act(shared / "mistake", "8 3")
    job = ended(shared / "mistake")
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "3:0", "0")


def test_failures_are_tried_again_until_the_limit(shared):
    act(shared / "lost", "8 137", "9 8", "7 7", notice=["--retries", "2"])
    act(shared / "once", "8 137", "0 0")
    job = ended(shared / "lost")
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "7:0", "2")
    assert ended(shared / "once")["JobState"] == "COMPLETED"


def test_scancel_does_not_requeue(shared):
    workdir = shared / "cancelled"
    act(workdir, "wait wait", "0 0")
    until(lambda: len(list(workdir.glob("starts-*"))) == 2, workdir)
    subprocess.run(["scancel", job_of(workdir)["JobId"]], check=True)
    until(lambda: "ended from outside" in console(workdir), workdir)
    job = ended(workdir)
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0")


def test_the_notice_of_the_time_limit_makes_it_requeue(told_by_slurm):
    job = ended(told_by_slurm)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")
    assert "stopped, its state is saved" in console(told_by_slurm)
    assert not list(told_by_slurm.glob("slurm/*.failures"))


def test_slurm_itself_requeues_what_ran_on_a_node_that_died(shared):
    workdir = shared / "died"
    act(workdir, "wait wait", "0 0")
    until(lambda: len(list(workdir.glob("starts-*"))) == 2, workdir)
    scontrol("update", "NodeName=n2", "State=DOWN", "Reason=test")
    until(lambda: job_of(workdir)["JobState"] == "PENDING", workdir)
    scontrol("update", "NodeName=n2", "State=RESUME")
    job = ended(workdir)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")
    assert not list(workdir.glob("slurm/*.failures"))
