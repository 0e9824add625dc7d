"""Tar shards in the WebDataset layout, read at random through an index of byte offsets.

Neighbouring members whose names agree up to the first dot of the last component are one example:
0001.jpg, 0001.cls.
"""

from __future__ import annotations

import bisect
import dataclasses
import glob
import hashlib
import itertools
import json
import logging
import os
import pathlib
import re
import tarfile
import tempfile
from typing import Any

import numpy as np

from encoders.data import records
from encoders.data.sources.base import CorruptExample, Source, check_directory
from encoders.data.sources.captions import captions, one_or_all
from encoders.data.sources.folder import IMAGE_SUFFIXES
from encoders.errors import DataError

logger = logging.getLogger(__name__)

_VERSION = 1
_TEXT_SUFFIXES = (".cls", ".txt", ".json")


@dataclasses.dataclass(kw_only=True, eq=False)
class Tar(Source):
    """Examples in tar files: an image, its label from .cls or .json, its text from .txt or .json.

    Attributes:
      path: a folder of .tar files, a pattern ('/data/train-*.tar'), or a range
        ('/data/train-{0000..0146}.tar').
      label_key: the field of .json files that is the label.
      text_key: the field of .json files that is the text, or a list of texts; .txt goes before it.
    """

    path: str
    label_key: str = "label"
    text_key: str = "text"

    def __post_init__(self) -> None:
        self._shards = find_shards(self.path)
        self._indices = [load_index(shard) for shard in self._shards]
        self._ends = list(itertools.accumulate(len(index) for index in self._indices))
        self._open: dict[int, int] = {}
        super().__post_init__()

    def __getstate__(self) -> dict[str, Any]:
        # Open files do not travel; a worker process opens its own when it first reads.
        return {**self.__dict__, "_open": {}}

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_open", {}).values():
            os.close(descriptor)

    def _count(self) -> int:
        return self._ends[-1]

    def _read(self, index: int) -> dict[str, Any]:
        number, offset = self._find(index)
        example: dict[str, Any] = {}
        for suffix, (start, size) in self._indices[number].members(offset).items():
            data = os.pread(self._descriptor(number), size, start)
            if len(data) < size:
                raise CorruptExample(f"the shard ends inside its {suffix} file")
            if suffix in IMAGE_SUFFIXES:
                example["image"] = data
                continue
            try:
                if suffix == ".cls":
                    example["label"] = int(data)
                elif suffix == ".txt":
                    example["text"] = data.decode("utf-8")
                else:
                    fields = json.loads(data)
                    if self.label_key in fields:
                        example["label"] = int(fields[self.label_key])
                    if "text" not in example and (texts := captions(fields.get(self.text_key))):
                        example["text"] = one_or_all(texts)
            except (ValueError, TypeError, AttributeError) as error:
                raise CorruptExample(f"damaged {suffix} file ({error})") from error
        return example

    def _describe(self, index: int) -> str:
        number, offset = self._find(index)
        return f"{self._shards[number]}:{self._indices[number].key(offset)}"

    def _find(self, index: int) -> tuple[int, int]:
        number = bisect.bisect_right(self._ends, index)
        return number, index - self._ends[number] + len(self._indices[number])

    def _descriptor(self, number: int) -> int:
        descriptor = self._open.get(number)
        if descriptor is None:
            try:
                descriptor = os.open(self._shards[number], os.O_RDONLY)
            except OSError as error:
                raise DataError(
                    f"data source: shard {self._shards[number]} cannot be opened "
                    f"({error.strerror})."
                ) from error
            if self._open.setdefault(number, descriptor) != descriptor:
                os.close(descriptor)  # another thread was faster
        return self._open[number]


class TarIndex:
    """Where the members of each example of one shard lie.

    Args:
      suffixes: the suffixes that occur, S of them.
      keys: the examples' keys, N of them, joined by newlines.
      places: [N, S, 2] int64 byte offset and size; size -1 where an example lacks a suffix.
    """

    def __init__(self, suffixes: list[str], keys: str, places: np.ndarray):
        self.suffixes, self.keys, self.places = suffixes, keys, places

    def __len__(self) -> int:
        return len(self.places)

    def members(self, number: int) -> dict[str, tuple[int, int]]:
        """Suffix -> (offset, size) of one example."""
        places = self.places[number].tolist()
        return {s: (a, n) for s, (a, n) in zip(self.suffixes, places, strict=True) if n >= 0}

    def key(self, number: int) -> str:
        """The name that the files of one example share."""
        return self.keys.split("\n")[number]


def find_shards(path: str) -> list[str]:
    """The sorted tar files of a folder, a pattern or a {0000..0146} range.

    Raises:
      DataError: there are none, or one of a range is missing.
    """
    path = os.path.expanduser(path)
    ranged = re.search(r"\{(\d+)\.\.(\d+)\}", path)
    if ranged:
        first, last = ranged.groups()
        names = [
            path[: ranged.start()] + str(number).zfill(len(first)) + path[ranged.end() :]
            for number in range(int(first), int(last) + 1)
        ]
        missing = [name for name in names if not os.path.isfile(name)]
        if missing or not names:
            raise DataError(
                f"data source: {len(missing)} of the {len(names)} shards of '{path}' are missing, "
                f"first {missing[:1]}."
            )
        return names
    if glob.has_magic(path):
        names = sorted(glob.glob(path))
    elif path.endswith(".tar") and os.path.isfile(path):
        names = [path]
    else:
        check_directory(pathlib.Path(path), "a folder of .tar shards, or a pattern")
        names = sorted(glob.glob(os.path.join(glob.escape(path), "*.tar")))
    if not names:
        raise DataError(
            f"data source: no shards match '{path}'; expected uncompressed .tar files in the "
            "WebDataset layout."
        )
    return names


def load_index(shard: str) -> TarIndex:
    """The index of a shard, built at the first use and kept beside it, or in the user's cache.

    Raises:
      DataError: the file is no tar file, or holds no examples.
    """
    status = os.stat(shard)
    stamp = [_VERSION, status.st_size, status.st_mtime_ns]
    cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    digest = hashlib.sha256(os.path.abspath(shard).encode()).hexdigest()[:32]
    places = [f"{shard}.index", os.path.join(cache, "encoders", "tar", f"{digest}.index")]
    for place in places:
        try:
            with open(place, "rb") as file:
                fields = records.unpack(file.read())
            if fields["stamp"] == stamp:
                return TarIndex(fields["suffixes"], fields["keys"], fields["places"])
        except (OSError, ValueError, KeyError):
            continue  # absent, or of another version or shard: built anew
    index = build_index(shard)
    packed = records.pack(
        {
            "stamp": stamp,
            "suffixes": index.suffixes,
            "keys": index.keys,
            "places": index.places,
        }
    )
    for place in places:
        try:
            os.makedirs(os.path.dirname(place) or ".", exist_ok=True)
            with tempfile.NamedTemporaryFile(
                dir=os.path.dirname(place) or ".", delete=False
            ) as file:
                file.write(packed)
            os.replace(file.name, place)  # other processes may be doing the same
            break
        except OSError:
            continue  # shards often lie on a read-only file system
    return index


def build_index(shard: str) -> TarIndex:
    """Reads the headers of a tar file.

    Raises:
      DataError: the file is no tar file, or holds no examples.
    """
    examples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            try:
                for member in tar:
                    tar.members.clear()  # or it would keep a million headers
                    directory, _, name = member.name.rpartition("/")
                    stem, dot, rest = name.partition(".")
                    suffix = "." + rest.lower()
                    if member.isfile() and stem and dot and suffix in _SUFFIXES:
                        key = f"{directory}/{stem}" if directory else stem
                        examples.setdefault(key, {})[suffix] = (member.offset_data, member.size)
            except (tarfile.ReadError, EOFError) as error:
                logger.warning("%s is damaged after %d examples: %s", shard, len(examples), error)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"data source: {shard} is no uncompressed tar file ({error}).") from error
    if not examples:
        raise DataError(
            f"data source: {shard} holds no files ending in {', '.join(_SUFFIXES)}; expected the "
            "WebDataset layout: 0001.jpg, 0001.cls, ..."
        )
    suffixes = sorted({suffix for members in examples.values() for suffix in members})
    absent = (0, -1)
    places = [[members.get(s, absent) for s in suffixes] for members in examples.values()]
    return TarIndex(suffixes, "\n".join(examples), np.array(places, np.int64))


_SUFFIXES = (*IMAGE_SUFFIXES, *_TEXT_SUFFIXES)
