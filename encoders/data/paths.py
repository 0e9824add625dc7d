"""Paths in configs: of a file system, or of what ships with the project."""

from __future__ import annotations

import pathlib

from encoders.errors import DataError, nearest

SAMPLES = pathlib.Path(__file__).resolve().parent / "samples"
_PREFIX = "sample:"


def locate(path: str) -> pathlib.Path:
    """The path that a config names: 'sample:peps' is a bundled folder, wherever it is installed.

    Raises:
      DataError: no such sample ships.
    """
    if not path.startswith(_PREFIX):
        return pathlib.Path(path).expanduser()
    name = path.removeprefix(_PREFIX)
    if not (SAMPLES / name).exists():
        known = [folder.name for folder in SAMPLES.iterdir() if folder.is_dir()]
        raise DataError(f"no sample '{name}' ships with the project.{nearest(name, known)}")
    return SAMPLES / name
