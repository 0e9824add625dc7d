"""Image files in folders: one subfolder per class, or all in one place without labels."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import os
import pathlib
from typing import Any

from encoders.data.sources.base import CorruptExample, Source, check_directory
from encoders.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")


@dataclasses.dataclass(kw_only=True, eq=False)
class Folder(Source):
    """A folder of images, sorted by name.

    Where the folder has subfolders with images, each is a class, numbered in the order of their
    names, with all images below it; else the images lie in the folder itself and have no label.

    Attributes:
      path: the folder.
    """

    path: str

    def __post_init__(self) -> None:
        root = pathlib.Path(self.path).expanduser()
        check_directory(root, "a folder of images, or of one subfolder per class")
        with os.scandir(root) as entries:
            folders = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        by_class = {name: list_images(root / name) for name in folders}
        by_class = {name: files for name, files in by_class.items() if files}
        self._names = tuple(by_class) or None
        self._files = list(by_class.values()) or [list_images(root)]
        self._folders = [root / name for name in by_class] or [root]
        self._ends = list(itertools.accumulate(map(len, self._files)))
        if not self._ends[-1]:
            raise DataError(
                f"data source: no images in '{root}'; expected files ending in "
                f"{', '.join(IMAGE_SUFFIXES)}, or one subfolder of them per class."
            )
        super().__post_init__()

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self._names

    def _count(self) -> int:
        return self._ends[-1]

    def _find(self, index: int) -> tuple[int, pathlib.Path]:
        label = bisect.bisect_right(self._ends, index)
        files = self._files[label]
        return label, self._folders[label] / files[index - self._ends[label] + len(files)]

    def _read(self, index: int) -> dict[str, Any]:
        label, path = self._find(index)
        try:
            example = {"image": path.read_bytes()}
        except OSError as error:
            raise CorruptExample(f"cannot be read ({error.strerror})") from error
        return example if self._names is None else {**example, "label": label}

    def _describe(self, index: int) -> str:
        return str(self._find(index)[1])


def list_images(folder: pathlib.Path) -> list[str]:
    """Sorted paths, relative to `folder`, of the images in it and below."""
    return list_below(folder, IMAGE_SUFFIXES)


def list_below(folder: pathlib.Path, suffixes: tuple[str, ...]) -> list[str]:
    """Sorted paths, relative to `folder`, of the files in it and below that end so."""
    found = []
    for directory, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(suffixes) and not name.startswith("."):
                found.append(os.path.relpath(os.path.join(directory, name), folder))
    return sorted(found)
