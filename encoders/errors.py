"""Errors a user can act on: one sentence each, an exit code of its own, and no traceback."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable


class EncodersError(Exception):
    """Base of every error caused by input rather than by a bug; its message is one sentence.

    Attributes:
      exit_code: of a command that ends with it.
      agreed: whether every process of the run raises it, so that all can leave in order.
    """

    exit_code = 1
    agreed = False


class ConfigError(EncodersError):
    """A config field or command-line flag is unknown, missing, mistyped or contradictory."""

    exit_code = 2


class DataError(EncodersError):
    """A data set is missing, empty, or too corrupt to go on with."""

    exit_code = 3


class CheckpointError(EncodersError):
    """A checkpoint is missing, damaged, or belongs to another model."""

    exit_code = 4


class NonFiniteError(EncodersError):
    """The loss or a gradient stopped being a finite number."""

    exit_code = 5
    agreed = True  # both are of the global batch


class CollapseError(NonFiniteError):
    """What a run learns from became one and the same for all examples, see `Guard`.

    With the exit code of numbers that are not finite: another try would end no better either.
    """


class StorageError(EncodersError):
    """Results could not be written: disk full, quota reached, or no permission."""

    exit_code = 6


class StartupError(EncodersError):
    """The processes of a run did not find each other, or not the devices they should have."""

    exit_code = 7


class PeerError(EncodersError):
    """Another process of the run died or stopped answering."""

    exit_code = 8


class DeadlineError(EncodersError):
    """Start-up, a step or a barrier took longer than its deadline; the stacks were written."""

    exit_code = 9


# Not a failure: a signal asked the run to stop and its state is saved; the same command goes on.
# (sysexits' EX_TEMPFAIL. Slurm scripts, Kubernetes policies and start-up scripts test for it.)
STOPPED = 75


_LISTED = 40  # choices that a sentence has room for


def closest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that a name is most likely a slip of; None if none is close."""
    close = difflib.get_close_matches(str(name), sorted(map(str, choices)), n=1, cutoff=0.6)
    return close[0] if close else None


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the closest choice, or all choices if none is close.

    Of more choices than a sentence has room for, the ten that are least far.
    """
    choices = sorted(map(str, choices))
    if (close := closest(name, choices)) is not None:
        return f" Did you mean '{close}'?"
    if len(choices) > _LISTED:
        some = difflib.get_close_matches(str(name), choices, n=10, cutoff=0.0)
        return f" Some of the {len(choices)} known: {', '.join(sorted(some))}."
    return f" Known: {', '.join(choices)}." if choices else ""


def exit_cleanly(main: Callable[[], int | None]) -> None:
    """Runs a command's `main`, turning an `EncodersError` into one line on stderr and its code."""
    try:
        code = main()
    except EncodersError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    sys.exit(code or 0)
