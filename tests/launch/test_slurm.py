"""launch.slurm without a cluster: the scripts that it would submit, and what it refuses."""

import contextlib
import io
import re
import shlex
import subprocess

import pytest
from rendered import assert_documented, assert_reviewed, assert_sound_shell, documented_commands

from encoders.errors import ConfigError
from launch import slurm
from launch.clusters.backend import SubmitError
from launch.flags import Parser
from launch.job import Job

CONFIG = "configs/mae_b16_in1k.py"
PATHS = "--python /shared/venv/bin/python --checkout /shared/encoders"
RUN = f"--config {CONFIG} --workdir /shared/runs/mae {PATHS} --nodes 4 --gpus-per-node 8"
EXAMPLES = {
    "per_gpu": f"{RUN} --time 1-00:00:00 --config.optimizer.lr=1e-4",
    "per_node": f"{RUN} --per-node --partition gpu --account vision --constraint h100 "
    "--cpus-per-task 96 --sbatch mem=900G --sbatch qos=high --setup /shared/modules.sh "
    "--srun mpi=none --notice 600 --retries 0",
    "cpu": f"--config {CONFIG} --workdir /shared/runs/mae {PATHS} --nodes 2 --gpus-per-node 0 "
    "--cpu-devices 2",
}
SWEEP = [
    Job(CONFIG, f"/shared/runs/lr/lr-{lr}", (f"optimizer.lr={lr}",))
    for lr in ("1e-4", "2e-4", "4e-4")
]


def dry_run(arguments):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert slurm.main([*shlex.split(arguments), "--dry-run"]) == 0
    return printed.getvalue()


def flags_of(arguments):
    parser = Parser("")
    slurm.add_flags(parser)
    return parser.parse(shlex.split(arguments))


def array(arguments="--nodes 1 --gpus-per-node 8 --max-running 2 " + PATHS, jobs=None):
    return slurm.render(jobs or SWEEP, flags_of(arguments))


def test_one_process_for_each_gpu_is_the_reviewed_script(rewrite_golden):
    assert_reviewed("slurm/per_gpu.txt", dry_run(EXAMPLES["per_gpu"]), rewrite_golden)


@pytest.mark.parametrize("name", ["per_node", "cpu"])
def test_other_layouts_are_the_reviewed_scripts(name, rewrite_golden):
    assert_reviewed(f"slurm/{name}.txt", dry_run(EXAMPLES[name]), rewrite_golden)


def test_several_runs_are_one_array(rewrite_golden):
    ((name, script),) = array().items()
    assert name == "lr.sbatch"
    assert "#SBATCH --array=0-2%2\n" in script
    assert_reviewed("slurm/array.txt", script, rewrite_golden)
    assert_sound_shell(script)


def test_the_same_runs_give_the_same_script():
    assert array() == array()


@pytest.mark.parametrize("name", EXAMPLES)
def test_shellcheck_finds_nothing(name):
    assert_sound_shell(dry_run(EXAMPLES[name]).partition("\n")[2])


def test_the_number_of_devices_that_processes_must_see_is_that_of_all_nodes():
    assert "--expect-devices 32\n" in dry_run(EXAMPLES["per_gpu"])
    assert "--expect-devices 32\n" in dry_run(EXAMPLES["per_node"])
    assert "--expect-devices 4\n" in dry_run(EXAMPLES["cpu"])


def test_every_run_of_an_array_gets_its_own_command_and_no_shell_reads_it(tmp_path):
    worker = Job("c.py", "/shared/it's $(touch owned); x", ("a='b c'",))
    text = slurm._runs([SWEEP[0], worker], flags_of("--nodes 1 --gpus-per-node 1"))
    seen = subprocess.run(
        ["bash", "-c", text + 'printf "%s\\n" "$workdir" "${worker[@]}"'],
        env={"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"},
        cwd=tmp_path, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert seen[0] == worker.workdir
    assert seen[2:] == worker.worker("--cluster", "slurm", "--expect-devices", "1")[1:]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, complaint",
    [
        ("--nodes 0", "--nodes 0: expected 1 or more"),
        ("--gpus-per-node -1", "--gpus-per-node -1: expected 0 or more"),
        ("--cpu-devices 2", "--cpu-devices is for runs without GPUs"),
        ("--workdir runs/mae", "--workdir runs/mae must be absolute"),
        ("--workdir /tmp/mae", "under /tmp, which every machine has for itself"),
        ("--python python3", "--python python3 must be absolute"),
        ("--checkout /dev/shm/x", "under /dev/shm"),
        ("--config configs/mae_b16_in2k.py", "Did you mean 'configs/mae_b16_in1k.py'"),
        ("--config.optimiser.lr=1", "Did you mean 'optimizer'"),
        ("--config.optimizer.lrr=1", "optimizer.lrr: unknown field. Did you mean 'lr'?"),
        ("--config.optimizer.schedule.name=cos", "optimizer.schedule.name: unknown name 'cos'."),
        ("--sbatch qos", "expected KEY=VALUE"),
        ("--sbatch comment=it's", "reads no quotes"),
        ("--partion gpu", "Did you mean '--partition'"),
        ("--per-gpu --per-node", "not allowed with"),
        ("--retries -1", "--retries -1: expected 0 or more"),
        ("--max-running 0", "--max-running 0: expected 1 or more"),
    ],
)
def test_a_mistake_is_one_sentence(change, complaint):
    arguments = [*shlex.split(RUN), *change.split(), "--dry-run"]
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        slurm.main(arguments)


def test_a_tokenizer_may_be_where_only_the_nodes_see_it():
    run = RUN.replace(CONFIG, "configs/bert_base_packed.py")
    assert run != RUN
    arguments = [*shlex.split(run), "--config.preprocessing.vocabulary=None", "--dry-run"]
    assert slurm.main(arguments) == 0


def test_two_runs_in_one_directory_are_refused():
    with pytest.raises(ConfigError, match="is given to two runs"):
        array(jobs=[Job(CONFIG, "/shared/runs/a"), Job(CONFIG, "/shared/runs/a")])


def test_a_config_is_where_the_job_starts(monkeypatch):
    monkeypatch.chdir("configs")
    with pytest.raises(ConfigError, match="look for it in their checkout"):
        slurm.main(shlex.split(RUN.replace("configs/", "") + " --dry-run"))


def test_without_sbatch_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("launch.clusters.backend._LOCAL", ())
    arguments = RUN.replace("/shared/runs", str(tmp_path))
    with pytest.raises(SubmitError, match="sbatch is not on PATH here; submit from a login node"):
        slurm.main(shlex.split(arguments))


def test_a_workdir_that_cannot_be_written_is_refused(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr("launch.clusters.backend._LOCAL", ())
    arguments = RUN.replace("/shared/runs", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="cannot be written from here"):
        slurm.main(shlex.split(arguments))


def test_what_sbatch_refuses_is_passed_on(monkeypatch, tmp_path):
    program = tmp_path / "sbatch"
    program.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("launch.clusters.backend._LOCAL", ())
    with pytest.raises(SubmitError, match=r"sbatch failed with exit code 1: .*invalid partition"):
        slurm.main(shlex.split(RUN.replace("/shared/runs", str(tmp_path))))


def test_the_page_shows_what_the_command_prints():
    assert_documented("slurm.md", dry_run(EXAMPLES["per_gpu"]))
    assert any(EXAMPLES["per_gpu"] in command for command in documented_commands("slurm.md"))
