"""Reads IDX files, the format of MNIST and its relatives."""

from __future__ import annotations

import dataclasses
import gzip
import math
import pathlib
from typing import Any

import numpy as np

from encoders.data.sources.base import Source, check_directory
from encoders.errors import DataError, nearest

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: pathlib.Path) -> np.ndarray:
    """Reads `path`, or `path`.gz beside it, as an array of the shape in its header.

    Raises:
      DataError: missing, truncated, or not IDX.
    """
    candidates = [path, path.with_name(path.name + ".gz")]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise DataError(
            f"no file {path}, and no {candidates[1].name} beside it; expected an IDX file."
        )
    try:
        opener = gzip.open if found.suffix == ".gz" else open
        with opener(found, "rb") as file:
            data = file.read()
    except (OSError, EOFError) as error:
        raise DataError(f"{found} cannot be read ({error}).") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _DTYPES:
        raise DataError(f"{found} is not an IDX file: its first bytes are {data[:4]!r}.")
    start = 4 + 4 * data[3]
    shape = tuple(np.frombuffer(data[4:start], ">u4").tolist())
    dtype = np.dtype(_DTYPES[data[2]])
    if len(data) - start != dtype.itemsize * math.prod(shape):
        raise DataError(f"{found} is truncated: {len(data) - start} bytes for shape {shape}.")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


_PREFIXES = {"train": "train", "test": "t10k"}


@dataclasses.dataclass(kw_only=True, eq=False)
class IdxSource(Source):
    """Images and labels of an MNIST-like folder of IDX files.

    `labels` [N] and the images are read when it is built.

    Attributes:
      path: folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-..., gzipped or not.
      split: 'train' or 'test'.
    """

    path: str
    split: str = "train"

    def __post_init__(self) -> None:
        folder = pathlib.Path(self.path).expanduser()
        check_directory(folder, "a folder of IDX files")
        if self.split not in _PREFIXES:
            raise DataError(
                f"IDX files have no split '{self.split}'.{nearest(self.split, _PREFIXES)}"
            )
        prefix = _PREFIXES[self.split]
        self._images = read_idx(folder / f"{prefix}-images-idx3-ubyte")
        self.labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte")
        if len(self._images) != len(self.labels):
            raise DataError(
                f"{folder}: {len(self._images)} images but {len(self.labels)} labels in split "
                f"'{self.split}'."
            )
        super().__post_init__()

    def _count(self) -> int:
        return len(self._images)

    def _read(self, index: int) -> dict[str, Any]:
        return {"image": self._images[index][:, :, None], "label": int(self.labels[index])}
