"""What the launchers for schedulers share: their main, their checks, and how they call programs."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from encoders.config import load_config
from encoders.errors import CheckpointError, ConfigError, DataError, EncodersError
from launch.flags import Parser, parse
from launch.job import Job

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]

# Directories that every machine has for itself, on any sane installation.
_LOCAL = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/proc", "/sys")

Render = Callable[[Sequence[Job], argparse.Namespace], Mapping[str, str]]
Submit = Callable[[Sequence[Job], argparse.Namespace], list[str]]


class SubmitError(EncodersError):
    """A scheduler's command is missing, or refused what it was given."""


def run(
    doc: str | None,
    arguments: Sequence[str] | None,
    add_flags: Callable[[argparse.ArgumentParser], None],
    render: Render,
    submit: Submit,
) -> int:
    """The main of a launcher: one run, shown with --dry-run and submitted without.

    Its experiment is built first, as the run will build it, so that no mistake in the config waits
    in a queue to be found.

    Raises:
      EncodersError: a flag, the config or the workdir is wrong, or the scheduler refused.
    """
    parser = Parser((doc or "").splitlines()[0])
    parser.add_argument("--config", required=True, help="path/to/config.py[:argument]")
    parser.add_argument("--workdir", required=True, help="the run's directory, on a shared disk")
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted")
    add_flags(parser)
    flags, overrides = parse(parser, arguments)
    jobs = [Job(flags.config, flags.workdir, tuple(overrides))]
    files = render(jobs, flags)
    # Imported late: a wrong flag should not wait for jax.
    from launch.sweeping.check import built

    # A teacher or a tokenizer may be where only the machines see it.
    with contextlib.suppress(CheckpointError, DataError):
        built(flags.config, overrides)
    if flags.dry_run:
        show(files)
    else:
        submit(jobs, flags)
    return 0


def show(files: Mapping[str, str]) -> None:
    """Prints what `render` returned."""
    for name, text in files.items():
        print(f"--- {name} ---\n{text}", end="")


# --- checks ---------------------------------------------------------------------------------------


def check_jobs(jobs: Sequence[Job], *, copied: bool = False) -> None:
    """Refuses what would fail only after hours in a queue.

    Args:
      jobs: the runs.
      copied: whether the machines have a copy of this project, and no other files from here.

    Raises:
      ConfigError: a config or override is wrong, a config is where the machines will not find it, a
        workdir is not absolute, is on a disk that only this machine sees, or is given twice.
    """
    if not jobs:
        raise ConfigError("nothing to submit: there are no runs.")
    seen = set()
    for job in jobs:
        load_config(job.config, job.overrides)
        path = pathlib.Path(job.config.partition(":")[0])
        if copied if path.is_absolute() else path.resolve() != (CHECKOUT / path).resolve():
            raise ConfigError(
                f"--config {job.config}: the machines look for it in their checkout; give its path "
                f"in this project, relative to {CHECKOUT}."
            )
        check_shared("--workdir", job.workdir)
        if job.workdir in seen:
            raise ConfigError(f"--workdir {job.workdir} is given to two runs; each needs its own.")
        seen.add(job.workdir)


def check_shared(flag: str, path: str) -> None:
    """Refuses a path that cannot be the same on all machines of a run.

    Raises:
      ConfigError: it is relative, has characters that no path needs, or is local to a machine.
    """
    if not path.startswith("/"):
        raise ConfigError(
            f"{flag} {path} must be absolute, on a file system that all machines of the run share; "
            f"here it would be {pathlib.Path(path).absolute()}."
        )
    if any(ord(character) < 32 for character in path):
        raise ConfigError(f"{flag} {path!r} has a control character in it.")
    local = [root for root in _LOCAL if path == root or path.startswith(root + "/")]
    if local:
        raise ConfigError(
            f"{flag} {path} is under {local[0]}, which every machine has for itself; choose a "
            f"directory that all machines of the run share."
        )


@dataclasses.dataclass(frozen=True)
class Mount:
    """A shared directory that every machine of a run mounts.

    Attributes:
      kind: 'bucket' (of Google Cloud Storage), 'nfs', or 'claim' (a PersistentVolumeClaim).
      source: the bucket's name, 'host:/share', or the claim's name.
      path: where it is mounted.
    """

    kind: str
    source: str
    path: str


def read_mounts(values: Sequence[str], kinds: Sequence[str], jobs: Sequence[Job]) -> list[Mount]:
    """Reads gs://BUCKET:/PATH, HOST:/SHARE:/PATH and claim://NAME:/PATH.

    Raises:
      ConfigError: one is of another form, or a run's workdir is in none of them.
    """
    forms = {
        "bucket": ("gs://BUCKET:/PATH", r"gs://([a-z0-9][a-z0-9._-]+):(/.+)"),
        "claim": ("claim://NAME:/PATH", r"claim://([a-z0-9][a-z0-9.-]*):(/.+)"),
        "nfs": ("HOST:/SHARE:/PATH", r"([A-Za-z0-9][A-Za-z0-9.-]*:/[^:]*):(/.+)"),
    }
    wanted = " or ".join(forms[kind][0] for kind in kinds)
    mounts = []
    for value in values:
        matches = ((kind, re.fullmatch(forms[kind][1], value)) for kind in kinds)
        found = next(((kind, match) for kind, match in matches if match), None)
        if found is None:
            raise ConfigError(f"--mount {value}: expected {wanted}.")
        check_shared("--mount", found[1][2])
        mounts.append(Mount(found[0], found[1][1], found[1][2].rstrip("/")))
    for job in jobs:
        if not any(job.workdir.startswith(mount.path + "/") for mount in mounts):
            raise ConfigError(
                f"--workdir {job.workdir} is in no --mount, and the machines share nothing else; "
                f"add --mount {wanted}."
            )
    return mounts


def make_workdir(path: str) -> None:
    """Makes a run's directory, so that what cannot be written is known before the queue.

    Raises:
      ConfigError: it cannot be written from here.
    """
    try:
        pathlib.Path(path).mkdir(parents=True, exist_ok=True)
        probe = pathlib.Path(path, ".writable")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"--workdir {path} cannot be written from here ({error.strerror})."
        ) from error


def names_of(jobs: Sequence[Job]) -> list[str]:
    """A name for each run that starts with a letter and that no other has; the same every time."""
    names: list[str] = []
    for index, job in enumerate(jobs):
        name = job.name if job.name[0].isalpha() else f"run-{job.name}"
        names.append(f"{name}-{index}" if name in names else name)
    return names


def at_least(name: str, value: int, least: int) -> None:
    """Raises ConfigError where a flag is too small."""
    if value < least:
        raise ConfigError(f"{name} {value}: expected {least} or more.")


def read_pairs(flag: str, values: Sequence[str]) -> dict[str, str]:
    """'key=value' strings as a mapping.

    Raises:
      ConfigError: one has no '=' or a line break.
    """
    pairs = {}
    for value in values:
        key, equals, rest = value.partition("=")
        if not key.strip("-") or not equals or any(ord(c) < 32 for c in value):
            raise ConfigError(f"{flag} {value!r}: expected KEY=VALUE on one line.")
        pairs[key.lstrip("-")] = rest
    return pairs


# --- programs and shell ---------------------------------------------------------------------------


def call(
    command: Sequence[str],
    *,
    needed: str,
    text: str | None = None,
    directory: str | pathlib.Path | None = None,
) -> str:
    """Runs a scheduler's command and returns what it printed.

    Args:
      command: the program and its arguments; no shell is involved.
      needed: where the program comes from, said when it is not there.
      text: what it reads from its standard input.
      directory: where it runs.

    Raises:
      SubmitError: it is not on PATH, or it failed.
    """
    if shutil.which(command[0]) is None:
        raise SubmitError(f"{command[0]} is not on PATH here; {needed}.")
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, check=False, cwd=directory
    )
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()) or "no message"
        raise SubmitError(f"{command[0]} failed with exit code {done.returncode}: {said}")
    sys.stderr.write(done.stderr)
    return done.stdout


def quote(words: Sequence[Any], indent: str = "", width: int = 96) -> str:
    """Words quoted for a shell, cut into lines that end in a backslash."""
    lines, line = [], ""
    for word in (shlex.quote(str(word)) for word in words):
        if line and len(indent) + len(line) + len(word) + 1 > width:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
    return f" \\\n{indent}  ".join([*lines, line])


def quote_array(words: Sequence[Any], indent: str = "") -> str:
    """Words quoted for a bash array, a flag with its value on each line."""
    lines: list[list[str]] = []
    for word in map(str, words):
        command = len(lines) == 1 and not word.startswith("--")
        value = lines and len(lines[-1]) == 1 and _takes_value(lines[-1][0]) and word[:2] != "--"
        if command or value:
            lines[-1].append(word)
        else:
            lines.append([word])
    inner = "".join(f"{indent}  {' '.join(map(shlex.quote, line))}\n" for line in lines)
    return f"(\n{inner}{indent})"


def _takes_value(word: str) -> bool:
    return word.startswith("--") and "=" not in word
