"""Numbers of clusters, one for every frame of a clip, as tools.cluster writes them.

A directory holds

    units.npy      uint16 [F], of all clips one after the other
    lengths.npy    uint32 [N], how many of them each clip has; 0 where it could not be read
    names.json     N texts, where each clip was found (`Source.describe`)
    centroids.npy  float32 [K, D]
    info.json      'clusters' (K), 'units_per_second', and what they were made of
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from encoders.errors import ConfigError, DataError, StorageError

MAX_CLUSTERS = 2**16
_INFO, _NAMES = "info.json", "names.json"


def write_units(
    path: str | os.PathLike,
    units: Sequence[np.ndarray],
    names: Sequence[str],
    centroids: np.ndarray,
    info: Mapping[str, Any],
) -> None:
    """Writes a directory that is there only when it is complete.

    Args:
      path: of the directory, which must not exist.
      units: N arrays of integers below K.
      names: N, see the module.
      centroids: [K, D].
      info: 'units_per_second', and whatever else is worth knowing.

    Raises:
      ConfigError: there are more clusters than fit, or `path` exists.
      StorageError: it cannot be written.
    """
    path = pathlib.Path(path)
    if len(centroids) > MAX_CLUSTERS:
        raise ConfigError(f"units: expected at most {MAX_CLUSTERS} clusters, got {len(centroids)}.")
    if path.exists():
        raise ConfigError(f"units: {path} exists; remove it, or name another directory.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    arrays = {
        "units": np.concatenate(units).astype(np.uint16),
        "lengths": np.array([len(one) for one in units], np.uint32),
        "centroids": centroids.astype(np.float32),
    }
    try:
        temporary.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        (temporary / _NAMES).write_text(json.dumps(list(names)), encoding="utf-8")
        text = json.dumps({"clusters": len(centroids), **info}, indent=2) + "\n"
        (temporary / _INFO).write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(f"units: {path} cannot be written ({error}).") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class UnitStore:
    """Units of clips by the names of these.

    Args:
      path: a directory that `write_units` wrote.

    Raises:
      DataError: it is none, or damaged.
    """

    def __init__(self, path: str | os.PathLike):
        directory = self._directory = pathlib.Path(path).expanduser()
        try:
            self.info = json.loads((directory / _INFO).read_text(encoding="utf-8"))
            self.units_per_second = float(self.info["units_per_second"])
            self.clusters = int(self.info["clusters"])
            self.names = json.loads((directory / _NAMES).read_text(encoding="utf-8"))
            lengths = np.load(directory / "lengths.npy", allow_pickle=False)
            self._units = np.load(directory / "units.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"data source: units '{path}' cannot be read ({error}); expected a directory that "
                "tools.cluster wrote."
            ) from error
        self._ends = np.cumsum(lengths, dtype=np.int64)
        if len(self.names) != len(lengths) or len(self._units) != self._ends[-1:].sum():
            raise DataError(f"data source: units '{path}' are damaged: their lengths do not agree.")
        self._rows = dict(zip(self.names, range(len(self.names)), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        # Workers map the file themselves: pickle would copy all of it.
        return {key: value for key, value in self.__dict__.items() if key != "_units"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        units = np.load(state["_directory"] / "units.npy", mmap_mode="r", allow_pickle=False)
        self.__dict__.update(state, _units=units)

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def get(self, name: str) -> np.ndarray | None:
        """Units of a clip, int32 [F]; None where it is not there or could not be read."""
        row = self._rows.get(name)
        if row is None:
            return None
        first = int(self._ends[row - 1]) if row else 0
        units = np.asarray(self._units[first : self._ends[row]], np.int32)
        return units if len(units) else None
