"""Functions with their documentation from a tree of Python files."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import os
import pathlib
import sysconfig
import tokenize
from typing import Any, NamedTuple

from encoders.data.code import Function, documented_functions
from encoders.data.sources.base import Source, check_directory
from encoders.errors import DataError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True, eq=False)
class PythonCode(Source):
    """Pairs of documentation and code, from every Python file below a folder.

    All are read when the source is opened and held in memory, sorted by file and line. Functions
    whose code was seen before, but for white space, are left out, and so is what
    `documented_functions` leaves out. Examples are {'text': first paragraph of the docstring,
    'code': the function without it, 'name', 'path'}.

    Attributes:
      path: the folder; None for the standard library of the running Python, whose version decides
        what is in it.
      exclude: names of folders that are not entered.
    """

    path: str | None = None
    exclude: tuple[str, ...] = ("site-packages", "dist-packages", "__pycache__")

    def __post_init__(self) -> None:
        self._root = pathlib.Path(self.path or sysconfig.get_path("stdlib")).expanduser()
        check_directory(self._root, "a folder of Python files")
        self._tree = _read_tree(self._root, tuple(self.exclude))
        if not self._tree.functions:
            raise DataError(
                f"data source: no documented functions in '{self._root}'; expected files ending in "
                f".py with functions that have a docstring ({len(self.skipped)} of them cannot be "
                "parsed)."
            )
        super().__post_init__()

    @property
    def skipped(self) -> dict[str, str]:
        """Files that could not be parsed -> why."""
        return dict(self._tree.skipped)

    def _count(self) -> int:
        return len(self._tree.functions)

    def _read(self, index: int) -> dict[str, Any]:
        path, function = self._tree.functions[index]
        fields = {"text": function.text, "code": function.code, "name": function.name}
        return {**fields, "path": path}

    def _describe(self, index: int) -> str:
        path, function = self._tree.functions[index]
        return f"{self._root / path}:{function.line}"


class _Tree(NamedTuple):
    """What is in a folder: (path, function) in order, and (path, why) of what cannot be parsed."""

    functions: tuple[tuple[str, Function], ...]
    skipped: tuple[tuple[str, str], ...]


@functools.lru_cache(maxsize=1)  # training and evaluation open parts of one tree
def _read_tree(root: pathlib.Path, exclude: tuple[str, ...]) -> _Tree:
    found, skipped, seen = [], [], set()
    for path in list_python(root, exclude):
        try:
            with tokenize.open(root / path) as file:
                functions = documented_functions(file.read())
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            skipped.append((path, f"{type(error).__name__}: {error}"))
            continue
        for function in functions:
            key = hashlib.sha256("".join(function.code.split()).encode()).digest()
            if key not in seen:
                seen.add(key)
                found.append((path, function))
    if skipped:
        logger.warning(
            "%d files of %s cannot be parsed, such as %s",
            len(skipped),
            root,
            "; ".join(f"{path} ({why})" for path, why in skipped[:3]),
        )
    return _Tree(tuple(found), tuple(skipped))


def list_python(root: pathlib.Path, exclude: tuple[str, ...] = ()) -> list[str]:
    """Sorted paths, relative to `root` and with '/', of the Python files in it and below."""
    found = []
    for directory, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in exclude and name[0] != "."]
        found += [pathlib.Path(directory, name) for name in files if name.endswith(".py")]
    return sorted(path.relative_to(root).as_posix() for path in found)
