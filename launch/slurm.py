"""Submits runs to Slurm: python -m launch.slurm --config C --workdir W --nodes 4 --gpus-per-node 8

A run that is stopped by its time limit or preempted saves, and its job puts itself back into the
queue under the same id; several runs are one job array. docs/launch/slurm.md tells the rest.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Sequence

from encoders.errors import STOPPED, ConfigError, exit_cleanly
from launch.clusters import backend
from launch.job import Job

NOTICE = 300  # seconds before its end at which a run is told to save


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--nodes", type=int, required=True, metavar="N", help="nodes of a run")
    add("--gpus-per-node", type=int, required=True, metavar="G", help="0 for a run on CPUs")
    processes = parser.add_mutually_exclusive_group()
    processes.add_argument("--per-gpu", action="store_true", help="a process per GPU (default)")
    processes.add_argument("--per-node", action="store_true", help="one process per node")
    add("--cpu-devices", type=int, default=1, metavar="M", help="of each process, without GPUs")
    add("--partition"), add("--account"), add("--constraint")
    add("--time", metavar="D-HH:MM:SS", help="time limit of one stay; the run itself goes on")
    add("--cpus-per-task", type=int, metavar="N", help="of a process (default: the whole nodes)")
    add("--notice", type=int, default=NOTICE, metavar="S", help="seconds that saving may take")
    add(
        "--retries", type=int, default=3, metavar="R", help="how many failures to start again after"
    )
    add("--max-running", type=int, metavar="J", help="runs of an array at a time")
    add("--python", default=sys.executable, help="the interpreter, as the nodes see it")
    add("--checkout", default=str(backend.CHECKOUT), help="this project, as the nodes see it")
    add("--setup", metavar="FILE", help="shell file to source first, with 'module load' and such")
    add("--sbatch", action="append", default=[], metavar="KEY=VALUE", help="any option of sbatch")
    add("--srun", action="append", default=[], metavar="KEY=VALUE", help="any option of srun")


def render(jobs: Sequence[Job], flags: argparse.Namespace) -> dict[str, str]:
    """The batch script of one run, or of the array of several, under its file name.

    Raises:
      ConfigError: a flag, config or workdir is wrong.
    """
    _check(jobs, flags)
    name, _ = _name_and_directory(jobs)
    parts = [_header(jobs, flags), _environment(flags), _runs(jobs, flags), _body(flags)]
    return {f"{name}.sbatch": "\n".join(parts)}


def submit(jobs: Sequence[Job], flags: argparse.Namespace) -> list[str]:
    """Submits them; returns the job's id, or 'id_index' of each run of an array.

    Raises:
      ConfigError: as `render`; or a workdir cannot be written.
      SubmitError: sbatch is missing or refused.
    """
    ((name, script),) = render(jobs, flags).items()
    for job in jobs:
        backend.make_workdir(job.workdir)
    _, directory = _name_and_directory(jobs)
    pathlib.Path(directory, name).write_text(script, encoding="utf-8")
    printed = backend.call(
        ["sbatch", "--parsable"],
        text=script,
        needed="submit from a login node of the cluster, or look at the script with --dry-run",
    )
    number = printed.strip().partition(";")[0]
    ids = [number] if len(jobs) == 1 else [f"{number}_{index}" for index in range(len(jobs))]
    for identifier, job in zip(ids, jobs, strict=True):
        print(f"submitted job {identifier}: {job.workdir}")
    return ids


# --- the script -----------------------------------------------------------------------------------


def _processes_per_node(flags: argparse.Namespace) -> int:
    return 1 if flags.per_node else max(1, flags.gpus_per_node)


def _check(jobs: Sequence[Job], flags: argparse.Namespace) -> None:
    backend.at_least("--nodes", flags.nodes, 1)
    backend.at_least("--gpus-per-node", flags.gpus_per_node, 0)
    backend.at_least("--cpu-devices", flags.cpu_devices, 1)
    backend.at_least("--notice", flags.notice, 1)
    backend.at_least("--retries", flags.retries, 0)
    for name in ("cpus_per_task", "max_running"):
        if getattr(flags, name) is not None:
            backend.at_least("--" + name.replace("_", "-"), getattr(flags, name), 1)
    if flags.gpus_per_node and flags.cpu_devices != 1:
        raise ConfigError("--cpu-devices is for runs without GPUs; add --gpus-per-node 0.")
    backend.check_shared("--checkout", flags.checkout)
    backend.check_shared("--python", flags.python)
    if flags.setup is not None:
        backend.check_shared("--setup", flags.setup)
    backend.check_jobs(jobs)


def _name_and_directory(jobs: Sequence[Job]) -> tuple[str, str]:
    """What the Slurm job is called, and where its script and console go."""
    if len(jobs) == 1:
        return jobs[0].name, jobs[0].workdir
    common = os.path.commonpath([job.workdir for job in jobs])
    return Job("", common).name, common


def _header(jobs: Sequence[Job], flags: argparse.Namespace) -> str:
    name, directory = _name_and_directory(jobs)
    console = directory.replace("%", "%%")
    options: dict[str, object] = {
        "job-name": name,
        "partition": flags.partition,
        "account": flags.account,
        "constraint": flags.constraint,
        "time": flags.time,
        "nodes": flags.nodes,
        "ntasks-per-node": _processes_per_node(flags),
        "gpus-per-node": flags.gpus_per_node or None,
        "cpus-per-task": flags.cpus_per_task,
        "exclusive": "" if flags.cpus_per_task is None else None,
        "mem": 0 if flags.cpus_per_task is None else None,
        "signal": f"TERM@{flags.notice}",
        "requeue": "",
        "open-mode": "append",
        "output": f"{console}/slurm-%j.log",
        "chdir": flags.checkout,
    }
    if len(jobs) > 1:
        limit = "" if flags.max_running is None else f"%{flags.max_running}"
        options["array"] = f"0-{len(jobs) - 1}{limit}"
        options["output"] = f"{console}/slurm-%A_%a.log"
    options |= backend.read_pairs("--sbatch", flags.sbatch)
    return "#!/bin/bash\n" + "".join(
        f"#SBATCH --{key}{'' if value == '' else '=' + _argument(key, value)}\n"
        for key, value in options.items()
        if value is not None
    )


def _argument(key: str, value: object) -> str:
    """A value on an #SBATCH line, which sbatch itself takes apart."""
    text = str(value)
    if re.search(r"[\"'\\#\n\r]", text):
        raise ConfigError(
            f"--{key} {text}: sbatch reads no quotes, backslashes, '#' or line breaks here."
        )
    return f'"{text}"' if re.search(r"\s", text) else text


def _environment(flags: argparse.Namespace) -> str:
    lines = ["set -u", "export PYTHONUNBUFFERED=1"]
    if not flags.gpus_per_node:
        wanted = f"--xla_force_host_platform_device_count={flags.cpu_devices}"
        lines += ["export JAX_PLATFORMS=cpu", f'export XLA_FLAGS="${{XLA_FLAGS:-}} {wanted}"']
    if flags.setup is not None:
        lines += ["# shellcheck source=/dev/null", f"source {shlex.quote(flags.setup)} || exit"]
    return "\n".join(lines) + "\n"


def _runs(jobs: Sequence[Job], flags: argparse.Namespace) -> str:
    """Sets `run`, `workdir` and `worker`: the one that there is, or that of this array task."""
    per_process = flags.gpus_per_node or flags.cpu_devices
    devices = flags.nodes * per_process
    workers = [
        job.worker("--cluster", "slurm", "--expect-devices", str(devices), python=flags.python)
        for job in jobs
    ]
    if len(jobs) == 1:
        return (
            "run=$SLURM_JOB_ID\n"
            f"workdir={shlex.quote(jobs[0].workdir)}\n"
            f"worker={backend.quote_array(workers[0])}\n"
        )
    text = "run=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID\ncase $SLURM_ARRAY_TASK_ID in\n"
    for index, (job, worker) in enumerate(zip(jobs, workers, strict=True)):
        text += (
            f"{index})\n"
            f"  workdir={shlex.quote(job.workdir)}\n"
            f"  worker={backend.quote_array(worker, '  ')}\n"
            "  ;;\n"
        )
    return text + '*) echo "no run has number $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;\nesac\n'


_BODY = rf"""# Each process leaves its exit code here: srun returns only the highest of them.
codes=$workdir/slurm/$run
mkdir -p "$codes" || exit
rm -f "$codes"/*
ended() {{ cat "$codes"/* 2>/dev/null | grep -xE -m 1 "$1"; }}

# Slurm signals only the processes that it has started itself; they pass it on.
# shellcheck disable=SC2016
task='
told=
trap "told=1; kill -TERM \$! 2>/dev/null" TERM
"$@" &
wait $!
code=$?
while [ "$told" ]; do  # the signal, not the end, may be what ended the wait
  told=
  wait $!
  code=$?
done
echo $code >"$0/$SLURM_PROCID"
exit $code'

# scancel, a node's death and the time limit reach this shell; the notice before the limit does not.
told=
trap 'told=1' TERM
past_limit() {{ scontrol show job "$SLURM_JOB_ID" | grep -q 'Reason=TimeLimit'; }}

try_again() {{
  failures=$(($(cat "$codes.failures" 2>/dev/null) + 1))
  echo $failures >"$codes.failures"
  if [ $failures -gt @RETRIES@ ]; then
    echo "launch.slurm: $1; that was the last retry" >&2
  else
    echo "launch.slurm: $1; retry $failures of @RETRIES@" >&2
    scontrol requeue "$run"
  fi
}}

srun @SRUN@ \
  bash -c "$task" "$codes" "${{worker[@]}}" &
wait $!
code=$?

if [ "$told" ] && past_limit; then  # there is no time to wait for processes that do not end
  try_again 'not saved within the time limit'
elif [ "$told" ]; then
  wait $!
  echo 'launch.slurm: ended from outside; only Slurm itself starts it again' >&2
elif mistake=$(ended '[2-6]'); then
  echo "launch.slurm: failed with exit code $mistake; another try would fail too" >&2
  code=$mistake
elif ended {STOPPED} >/dev/null; then
  echo 'launch.slurm: stopped, its state is saved; it goes on when its turn comes' >&2
  scontrol requeue "$run"
elif [ $code != 0 ]; then
  try_again "failed with exit code $code"
fi
exit "$code"
"""


def _body(flags: argparse.Namespace) -> str:
    options = {"label": "", "kill-on-bad-exit": "0", "wait": "120"}
    if flags.cpus_per_task is None:
        options["cpu-bind"] = "none"  # else a process would be tied to one core
    else:
        options["cpus-per-task"] = str(flags.cpus_per_task)  # srun no longer asks sbatch for it
    options |= backend.read_pairs("--srun", flags.srun)
    words = [f"--{key}={value}" if value else f"--{key}" for key, value in options.items()]
    return _BODY.replace("@SRUN@", backend.quote(words)).replace("@RETRIES@", str(flags.retries))


def main(arguments: Sequence[str] | None = None) -> int:
    return backend.run(__doc__, arguments, add_flags, render, submit)


if __name__ == "__main__":
    exit_cleanly(main)
