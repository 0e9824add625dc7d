"""The file that makes a directory a finished checkpoint, and shows whether it still is one.

It lists size and CRC-32 of every file. Nothing below has such checksums: a flipped bit in an
uncompressible float passes through zstd and TensorStore unnoticed.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 1


def finish(path: pathlib.Path, step: int, metrics: Mapping, arrays: Mapping) -> None:
    """Writes the manifest of the files below `path`, by an atomic rename.

    Args:
      path: the checkpoint's directory, otherwise complete.
      step: number of the checkpoint.
      metrics: name -> number.
      arrays: path -> [shape, dtype].
    """
    names = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
    manifest = {
        "format": FORMAT,
        "step": step,
        "metrics": dict(metrics),
        "arrays": dict(arrays),
        "files": fingerprints(path, names),
    }
    manifest["checksum"] = _checksum(manifest)
    temporary = path / f"{MANIFEST}.tmp"
    # Without spaces every byte says something, so that the loss of any one is found.
    write_durably(temporary, json.dumps(manifest, sort_keys=True, separators=(",", ":")))
    temporary.rename(path / MANIFEST)


def read(path: pathlib.Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint's directory, or None if it is not as it was written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        sound = manifest.pop("checksum") == _checksum(manifest)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return manifest if sound else None


def damaged_files(path: pathlib.Path, manifest: Mapping, names: Iterable[str]) -> list[str]:
    """Which of the files are missing or have changed since the manifest was written."""
    actual = fingerprints(path, names)
    return [name for name in actual if actual[name] != manifest["files"][name]]


def is_intact(path: pathlib.Path) -> bool:
    """Whether every byte of a checkpoint is as it was written."""
    manifest = read(path)
    return manifest is not None and not damaged_files(path, manifest, manifest["files"])


def fingerprints(path: pathlib.Path, names: Iterable[str]) -> dict[str, list[int] | None]:
    """name -> [size in bytes, CRC-32] of files below `path`; None for one that cannot be read."""
    names = list(names)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # reads and crc32 release the GIL
        return dict(
            zip(names, pool.map(lambda name: _fingerprint(path / name), names), strict=True)
        )


def write_durably(path: pathlib.Path, text: str) -> None:
    """Writes a text that has reached the disk when this returns."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _fingerprint(path: pathlib.Path) -> list[int] | None:
    size = checksum = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(2**22):
                checksum = zlib.crc32(chunk, checksum)
                size += len(chunk)
    except OSError:
        return None
    return [size, checksum]


def _checksum(manifest: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())
