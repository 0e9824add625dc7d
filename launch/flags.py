"""Command lines: a mistake is one sentence and exit code 2; --config.a.b=value sets a field."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

import ml_collections

from encoders.config import load_config
from encoders.errors import ConfigError, nearest

_OVERRIDE = re.compile(r"--config\.([^=]+=.*|[^=]+)", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose mistakes are ConfigErrors that name the nearest flag."""

    def __init__(self, description: str | None):
        super().__init__(description=description, allow_abbrev=False)

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Parses a command line, by default the process's own.

        Raises:
          ConfigError: a flag is unknown, missing, or has no such value.
        """
        arguments = list(sys.argv[1:] if arguments is None else arguments)
        known = [option for action in self._actions for option in action.option_strings]
        for argument in arguments:  # before argparse, which would first ask for what is missing
            flag = argument.partition("=")[0]
            if re.fullmatch(r"--[a-z][\w-]*", flag) and flag not in known:
                raise ConfigError(f"unknown argument '{flag}'.{nearest(flag, known)}")
        return self.parse_args(arguments)

    def error(self, message: str) -> None:
        """Called by argparse for every mistake it finds."""
        raise ConfigError(f"{self.prog}: {message}.")


def parse(
    parser: Parser, arguments: Sequence[str] | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """Parses a command line with --config.a.b=value among its flags.

    Returns:
      The flags, and the overrides as 'a.b=value'.

    Raises:
      ConfigError: as `Parser.parse`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    overrides = [m[1] for m in map(_OVERRIDE.fullmatch, arguments) if m]
    return parser.parse([a for a in arguments if not _OVERRIDE.fullmatch(a)]), overrides


def parse_flags(
    description: str | None,
    arguments: Sequence[str] | None = None,
    *,
    extend: object = None,
    **required: str,
) -> tuple[argparse.Namespace, ml_collections.ConfigDict]:
    """Parses the command line of a command that has an experiment.

    Args:
      description: the command's one-line help.
      arguments: the command line, by default the process's own.
      extend: called with the parser to add the command's own flags.
      **required: name -> help of further required string flags.

    Returns:
      The flags, with the overrides as they were given in `overrides`, and the config with them
      applied.

    Raises:
      ConfigError: an unknown flag or a bad override.
    """
    parser = Parser(description)
    parser.add_argument("--config", required=True, help="path/to/config.py[:argument]")
    for name, text in required.items():
        parser.add_argument(f"--{name}", required=True, help=text)
    if extend is not None:
        extend(parser)
    flags, overrides = parse(parser, arguments)
    flags.overrides = overrides
    return flags, load_config(flags.config, overrides)
