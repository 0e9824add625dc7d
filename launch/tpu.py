"""Runs on Cloud TPU VMs: python -m launch.tpu --config C --workdir W --type v5p-512 --zone Z

A queued resource whose start-up script fetches the code, mounts the shared directory and runs. A
preemption is no failure: --watch asks for the TPU again, and the run goes on. docs/launch/tpu.md.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from encoders.errors import STOPPED, ConfigError, exit_cleanly
from launch.clusters import backend, tpus
from launch.clusters.backend import Mount, SubmitError
from launch.job import Job

_NEEDED = "install the Google Cloud CLI and log in, or look at the commands with --dry-run"
_RESOURCES = ("gcloud", "compute", "tpus", "queued-resources")


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--type", required=True, metavar="v5p-512", help="accelerator type of a slice")
    add("--zone", required=True)
    add("--project", help="by default the one that gcloud is set to")
    add("--slices", type=int, default=1, metavar="N", help="slices of a run")
    capacity = parser.add_mutually_exclusive_group()
    capacity.add_argument("--spot", action="store_true", help="cheaper, and may be preempted")
    capacity.add_argument("--reserved", action="store_true", help="from a reservation")
    add("--source", required=True, help="the code: URL of a git repository, or gs://.../x.tar.gz")
    add("--revision", default="HEAD", help="commit, tag or branch of a git source")
    add("--mount", action="append", default=[], metavar="SOURCE:PATH",
        help="shared directory: gs://BUCKET:/PATH or HOST:/SHARE:/PATH (NFS)")  # fmt: skip
    add("--runtime-version", help="by default the one for the type")
    add(
        "--retries", type=int, default=3, metavar="R", help="how many failures to start again after"
    )
    add("--label", action="append", default=[], metavar="KEY=VALUE", help="label of the resource")
    add("--gcloud", action="append", default=[], metavar="KEY=VALUE", help="any option of create")
    add("--keep", action="store_true", help="keep the TPU after the run has ended")
    add("--watch", action="store_true", help="stay, and ask again for what is preempted")


def render(jobs: Sequence[Job], flags: argparse.Namespace) -> dict[str, str]:
    """The start-up script and the gcloud command of each run.

    Raises:
      ConfigError: a flag, config or workdir is wrong.
    """
    mounts = _check(jobs, flags)
    files = {}
    for name, job in zip(backend.names_of(jobs), jobs, strict=True):
        files[f"{name}.startup.sh"] = _startup(name, job, flags, mounts)
        files[f"{name}.command.sh"] = backend.quote(_create(name, flags)) + "\n"
    return files


def submit(jobs: Sequence[Job], flags: argparse.Namespace) -> list[str]:
    """Asks for the TPUs; returns the names of the queued resources. With --watch, stays.

    Raises:
      ConfigError: as `render`.
      SubmitError: gcloud is missing or refused.
    """
    files = render(jobs, flags)
    names = backend.names_of(jobs)
    for name, job in zip(names, jobs, strict=True):
        _request(name, files, flags)
        print(f"asked for {name} ({flags.type}): {job.workdir}")
    if flags.watch:
        watch(names, files, flags)
    return names


# --- asking ---------------------------------------------------------------------------------------


def _check(jobs: Sequence[Job], flags: argparse.Namespace) -> list[Mount]:
    backend.at_least("--slices", flags.slices, 1)
    backend.at_least("--retries", flags.retries, 0)
    tpus.from_type(flags.type)
    if flags.watch and flags.keep:
        raise ConfigError("--watch ends when the TPU is given back; leave out --keep.")
    if not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", flags.zone):
        raise ConfigError(f"--zone {flags.zone}: expected a zone such as us-east5-a.")
    archive = re.fullmatch(r"gs://\S+\.(tar\.gz|tgz)", flags.source)
    if not archive and not re.fullmatch(r"(https|ssh)://\S+|git@\S+", flags.source):
        raise ConfigError(
            f"--source {flags.source}: expected https://..., ssh://... or git@... of a git "
            f"repository, or gs://.../x.tar.gz; the TPU fetches the code from there."
        )
    for key, value in backend.read_pairs("--label", flags.label).items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", key) or not re.fullmatch(
            r"[a-z0-9_-]{0,63}", value
        ):
            raise ConfigError(
                f"--label {key}={value}: Google Cloud allows lower-case letters, digits, '-' and "
                f"'_', at most 63, beginning with a letter."
            )
    backend.check_jobs(jobs, copied=True)
    return backend.read_mounts(flags.mount, ("bucket", "nfs"), jobs)


def _create(name: str, flags: argparse.Namespace) -> list[str]:
    piece = tpus.from_type(flags.type)
    options: dict[str, object] = {
        "zone": flags.zone,
        "project": flags.project,
        "accelerator-type": piece.accelerator_type,
        "runtime-version": flags.runtime_version or tpus.GENERATIONS[piece.generation].runtime,
    }
    if flags.slices == 1:
        options["node-id"] = name
    else:
        options |= {"node-count": flags.slices, "node-prefix": name}
    labels = {"encoders-run": name} | backend.read_pairs("--label", flags.label)
    options["labels"] = ",".join(f"{key}={value}" for key, value in labels.items())
    options["metadata-from-file"] = f"startup-script={name}.startup.sh"
    options |= {flag: "" for flag in ("spot", "reserved") if getattr(flags, flag)}
    options |= backend.read_pairs("--gcloud", flags.gcloud)
    words = [f"--{k}={v}" if v != "" else f"--{k}" for k, v in options.items() if v is not None]
    return [*_RESOURCES, "create", name, *words]


def _where(flags: argparse.Namespace) -> list[str]:
    return [f"--zone={flags.zone}", *([f"--project={flags.project}"] if flags.project else [])]


def _request(name: str, files: dict[str, str], flags: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as directory:
        script = f"{name}.startup.sh"
        pathlib.Path(directory, script).write_text(files[script], encoding="utf-8")
        backend.call(_create(name, flags), needed=_NEEDED, directory=directory)


def watch(
    names: Sequence[str],
    files: dict[str, str],
    flags: argparse.Namespace,
    *,
    every: float = 60.0,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Asks again for what is preempted, until every run has ended and given its TPU back.

    Args:
      names: the queued resources.
      files: what `render` returned.
      flags: the command's.
      every: seconds between looks.
      sleep: waits so many seconds.

    Raises:
      SubmitError: a request failed more than --retries times.
    """
    preemptions, failures = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    left = list(names)
    while left:
        sleep(every)
        for name in list(left):
            state = _state(name, flags)
            if state is None:
                print(f"{name}: ended, after {preemptions[name]} preemptions", flush=True)
                left.remove(name)
                continue
            if state not in ("SUSPENDED", "FAILED"):
                continue
            counts = preemptions if state == "SUSPENDED" else failures
            counts[name] += 1
            if failures[name] > flags.retries:
                raise SubmitError(f"{name}: the request failed {failures[name]} times; see gcloud.")
            print(
                f"{name}: {state.lower()}; asked again (preemptions {preemptions[name]}, "
                f"failures {failures[name]})", flush=True,
            )  # fmt: skip
            delete = [*_RESOURCES, "delete", name, *_where(flags), "--force", "--quiet"]
            backend.call(delete, needed=_NEEDED)
            _request(name, files, flags)


def _state(name: str, flags: argparse.Namespace) -> str | None:
    """SUSPENDED, ACTIVE and so on; None where there is no such resource."""
    command = [*_RESOURCES, "describe", name, *_where(flags), "--format=json(state)"]
    try:
        described = json.loads(backend.call(command, needed=_NEEDED))
    except SubmitError as error:
        if "NOT_FOUND" in str(error):
            return None
        print(f"{name}: cannot look ({error})", file=sys.stderr, flush=True)
        return "UNKNOWN"
    return described["state"]["state"]


# --- the start-up script --------------------------------------------------------------------------

_SCRIPT = f"""\
#!/bin/bash
# Runs on every TPU VM at every boot: installs, then starts a service that trains.
set -u
home=/opt/encoders
workdir=@WORKDIR@
retries=@RETRIES@
worker=@WORKER@

# Ends this host's part, and with it the run's: the others look for this file.
end() {{
  echo "$1" >"$workdir/tpu/ended"
  rm -f "$workdir"/tpu/*.failures  # whoever starts it again means it
  if [ "$1" != finished ]; then
    JAX_PLATFORMS=cpu "$home/venv/bin/python" -c '
import sys
from encoders.training.metrics import write_status
write_status(sys.argv[1], "failed", message=sys.argv[2])' "$workdir" "$1"
  fi
}}

train() {{
  cd "$home/code" || exit
  mine=$workdir/tpu/$(hostname)
  told=
  trap 'told=1; woken=1; kill -TERM $! 2>/dev/null' TERM
  while [ ! -e "$workdir/tpu/ended" ] && [ ! "$told" ]; do
    woken=
    "${{worker[@]}}" &
    wait $!
    code=$?
    while [ "$woken" ]; do  # the signal, not the end, may be what ended the wait
      woken=
      wait $!
      code=$?
    done
    case $code in
      0) end finished ;;
      {STOPPED}) date -u +%FT%TZ >>"$mine.stops" ;;
      8) ;;  # another process was lost: not this host's failure
      [2-6]) end "exit code $code on $(hostname); another try would fail too" ;;
      *)
        [ "$told" ] && break
        echo "$(date -u +%FT%TZ) $code" >>"$mine.failures"
        if [ "$(grep -cs . "$mine.failures")" -gt "$retries" ]; then
          end "exit code $code on $(hostname), after $retries retries"
        fi
        ;;
    esac
    [ "$told" ] || sleep "${{PAUSE:-10}}"
  done
  [ "$told" ] || give_back
}}

give_back() {{
@GIVE_BACK@
}}

if [ "${{1:-}}" = train ]; then
  train
  exit
fi

set -e
export DEBIAN_FRONTEND=noninteractive
install -D -m 755 "$0" "$home/start"
@MOUNTS@
if [ ! -e "$home/installed" ]; then
  rm -rf "$home/code" "$workdir/tpu/ended"
@FETCH@
  python3 -m pip install -q uv
  python3 -m uv venv -q --clear --python 3.11 "$home/venv"
  cd "$home/code"
  export VIRTUAL_ENV="$home/venv"
  python3 -m uv pip install -q -c constraints/py311.txt -e '.[tpu]'
  touch "$home/installed"
fi
mkdir -p "$workdir/tpu"
# A service is told to stop while disk and network are still there; a start-up script is not.
systemd-run --unit=encoders --collect -p After=network-online.target -p TimeoutStopSec=300 \\
  -E HOME=/root -E PYTHONUNBUFFERED=1 "$home/start" train
"""

_GCSFUSE = """\
if ! command -v gcsfuse >/dev/null; then
  keys=https://packages.cloud.google.com/apt/doc/apt-key.gpg
  curl -fsSL "$keys" >/usr/share/keyrings/cloud.google.asc
  echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc]" \\
    "https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main" \\
    >/etc/apt/sources.list.d/gcsfuse.list
  apt-get update -qq
  apt-get install -y -qq gcsfuse
fi
"""


def _startup(name: str, job: Job, flags: argparse.Namespace, mounts: Sequence[Mount]) -> str:
    devices = tpus.from_type(flags.type).chips * flags.slices
    worker = job.worker(
        "--cluster", "tpu", "--expect-devices", str(devices), python="/opt/encoders/venv/bin/python"
    )
    filled = {
        "WORKDIR": shlex.quote(job.workdir),
        "RETRIES": str(flags.retries),
        "WORKER": backend.quote_array(worker),
        "MOUNTS": _mounting(mounts),
        "FETCH": _fetching(flags),
        "GIVE_BACK": _giving_back(name, flags),
    }
    return re.sub("@([A-Z_]+)@", lambda match: filled[match[1]], _SCRIPT)


def _mounting(mounts: Sequence[Mount]) -> str:
    text = _GCSFUSE if any(mount.kind == "bucket" for mount in mounts) else ""
    if any(mount.kind == "nfs" for mount in mounts):
        text += "command -v mount.nfs >/dev/null || apt-get install -y -qq nfs-common\n"
    for mount in mounts:
        source, path = shlex.quote(mount.source), shlex.quote(mount.path)
        if mount.kind == "bucket":  # no caches: hosts must see at once what others wrote
            command = (
                "gcsfuse --implicit-dirs --metadata-cache-ttl-secs 0 \\\n"
                f"  --metadata-cache-negative-ttl-secs 0 {source} {path}"
            )
        else:
            command = f"mount -t nfs {source} {path}"
        text += f"mkdir -p {path}\nmountpoint -q {path} || {command}\n"
    return text.rstrip("\n")


def _fetching(flags: argparse.Namespace) -> str:
    source = shlex.quote(flags.source)
    if flags.source.startswith("gs://"):
        return (
            '  mkdir -p "$home/code"\n'
            f'  gcloud storage cat {source} | tar -xz -C "$home/code" --strip-components=1'
        )
    return (
        f'  git clone -q {source} "$home/code"\n'
        f'  git -C "$home/code" checkout -q {shlex.quote(flags.revision)}'
    )


def _giving_back(name: str, flags: argparse.Namespace) -> str:
    if flags.keep:
        return "  :  # --keep"
    delete = [*_RESOURCES, "delete", name, *_where(flags), "--force", "--quiet", "--async"]
    return (
        '  sleep "${PAUSE:-60}"  # the other hosts have last words too\n'
        f"  {backend.quote(delete, '  ')}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    return backend.run(__doc__, arguments, add_flags, render, submit)


if __name__ == "__main__":
    exit_cleanly(main)
