"""Files that other projects keep weights in: safetensors, whole or in shards, and JSON beside them.

Pickles (pytorch_model.bin, *.pth) are never opened: reading one runs whatever code it holds.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  (gives numpy the name 'bfloat16', which safetensors looks up)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from encoders.errors import CheckpointError, StorageError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      CheckpointError: the file is missing, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent}: has no {path.name}.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: is not readable JSON ({error}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}.")
    return value


def write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Writes stable, indented JSON."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_tensors(directory: pathlib.Path, weights: str = WEIGHTS) -> dict[str, np.ndarray]:
    """Reads a file, model.safetensors, or the shards that model.safetensors.index.json lists.

    Raises:
      CheckpointError: there is no such file, only a pickle, or a file is damaged or incomplete.
    """
    if (directory / weights).is_file():
        return _read_file(directory / weights)
    if (directory / INDEX).is_file():
        return _read_shards(directory)
    others = sorted(directory.glob("*.safetensors"))
    if len(others) == 1:
        return _read_file(others[0])
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise CheckpointError(
            f"{directory}: holds its weights in '{pickles[0]}', a pickle, which is not opened "
            f"because it can run any code; save them again as {WEIGHTS} "
            "(model.save_pretrained(..., safe_serialization=True))."
        )
    found = f"{len(others)} other .safetensors files and no index" if others else "no weights"
    raise CheckpointError(f"{directory}: expected {weights} or {INDEX}, found {found}.")


def _read_shards(directory: pathlib.Path) -> dict[str, np.ndarray]:
    where = read_json(directory / INDEX).get("weight_map")
    if not isinstance(where, dict):
        raise CheckpointError(f"{directory / INDEX}: has no 'weight_map'.")
    tensors: dict[str, np.ndarray] = {}
    for shard in sorted(set(where.values())):
        if pathlib.Path(shard).name != shard:
            raise CheckpointError(f"{directory / INDEX}: '{shard}' is not a file beside it.")
        tensors.update(_read_file(directory / shard))
    if set(tensors) != set(where):
        odd = sorted(set(tensors) ^ set(where))
        raise CheckpointError(
            f"{directory / INDEX}: the index and the shards disagree about {len(odd)} tensors, "
            f"such as '{odd[0]}'."
        )
    return tensors


def _read_file(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent}: lacks '{path.name}', which it refers to.") from error
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: is not a readable safetensors file ({error}).") from error


def write_tensors(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one safetensors file, marked as PyTorch's layout, which transformers insists on.

    Raises:
      OSError: it could not be written.
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:  # how it reports a full disk
        raise OSError(str(error)) from error
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors lets nobody else read its files


@contextlib.contextmanager
def new_directory(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A directory that appears under its name only when all of it has been written.

    Yields:
      A temporary directory beside `path`, renamed to it at the end and removed after an error.

    Raises:
      StorageError: `path` exists and is not an empty directory, or cannot be written.
    """
    path = pathlib.Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise StorageError(f"{path}: exists already; choose another name or remove it first.")
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}"
        temporary.mkdir()
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(f"{path}: could not be written ({error}).") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
