"""A real Slurm of two nodes on one machine: python tests/launch/slurm/cluster.py start|stop DIR

Needs root and Debian's slurm-wlm and munge. Everything is in DIR (keys, sockets, logs, state), but
for one line of /etc/hosts that names the nodes. `stop DIR` ends its daemons and takes the line out.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
HOSTS = pathlib.Path("/etc/hosts")
_LINE = f"127.0.0.1 {' '.join(NODES)} # tests/launch/slurm/cluster.py\n"

# cred_expire is also how long Slurm keeps a requeued job waiting: 120 s by default.
_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
KillWait=10
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8
PartitionName=test Nodes=ALL Default=YES MaxTime=60 State=UP
"""


def why_not() -> str | None:
    """Why there can be no cluster here, or None."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"no Slurm here ({', '.join(missing)} missing): apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "only root can start Slurm's daemons"
    return None


def start(directory: pathlib.Path) -> dict[str, str]:
    """Starts the cluster and waits until both nodes are idle.

    Returns:
      Environment variables that make Slurm's commands use it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "state").mkdir(exist_ok=True)
    for node in NODES:
        (directory / f"spool-{node}").mkdir(exist_ok=True)
    if _LINE not in HOSTS.read_text():
        with HOSTS.open("a") as file:
            file.write(_LINE)
    conf = directory / "slurm.conf"
    conf.write_text(
        _CONF.format(
            directory=directory, host=socket.gethostname(), ports=_free_ports(3), nodes=NODES
        )
    )
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    environment["PATH"] = f"{environment['PATH']}:/usr/sbin"
    key = directory / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    munged = [
        "munged", "--force", f"--key-file={key}", f"--socket={directory}/munge.socket",
        f"--pid-file={directory}/munged.pid", f"--log-file={directory}/munged.log",
        f"--seed-file={directory}/munge.seed",
    ]  # fmt: skip
    for command in (munged, ["slurmctld"], *(["slurmd", "-N", node] for node in NODES)):
        subprocess.run(command, env=environment, check=True, timeout=60)
    deadline = time.monotonic() + 60
    while True:
        states = subprocess.run(
            ["sinfo", "-h", "-N", "-o", "%T"], env=environment, capture_output=True, text=True
        ).stdout.split()
        if states == ["idle"] * len(NODES):
            return environment
        if time.monotonic() > deadline:
            logs = "".join(f"\n{p}:\n{p.read_text()[-2000:]}" for p in directory.glob("*.log"))
            stop(directory)
            raise RuntimeError(f"the nodes are {states} after a minute{logs}")
        time.sleep(0.5)


def stop(directory: pathlib.Path) -> None:
    """Ends the daemons that `start` left there, and only those."""
    pids = []
    for file in (*directory.glob("slurm*.pid"), directory / "munged.pid"):
        with contextlib.suppress(OSError, ValueError):
            pids.append(int(file.read_text()))
            os.kill(pids[-1], signal.SIGTERM)
    deadline = time.monotonic() + 15
    for pid in pids:
        while pathlib.Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
    text = HOSTS.read_text()
    if _LINE in text:
        HOSTS.write_text(text.replace(_LINE, ""))  # not replaced: in containers it is a mount


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


if __name__ == "__main__":
    action, where = sys.argv[1:]
    if action == "start":
        print(f"export SLURM_CONF={start(pathlib.Path(where).absolute())['SLURM_CONF']}")
    else:
        stop(pathlib.Path(where).absolute())
