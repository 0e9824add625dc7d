"""Files that commands write."""

from __future__ import annotations

import os
import pathlib
import zipfile

import numpy as np

from encoders.errors import StorageError


def write(path: pathlib.Path, arrays: dict[str, np.ndarray], flag: str = "--output") -> None:
    """Writes an .npz file that is there only when it is complete.

    Raises:
      StorageError: it could not be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, **arrays)
        os.replace(temporary, path)
    except (OSError, zipfile.BadZipFile) as error:
        raise StorageError(f"{flag} {path}: could not be written ({error}).") from error
    finally:
        temporary.unlink(missing_ok=True)
