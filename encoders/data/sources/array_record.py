"""ArrayRecord shards in the project's own layout, as tools/prepare_data.py writes them.

A directory holds info.json and <split>-00000-of-00008.array_record, ...; a record is one example
(encoders.data.records).
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
import pathlib
from typing import Any

from array_record.python import array_record_module

from encoders.data import records
from encoders.data.sources.base import CorruptExample, Source, check_directory
from encoders.data.sources.captions import captioned
from encoders.errors import DataError, nearest

SUFFIX = ".array_record"
_READER_OPTIONS = (
    "readahead_buffer_size:0,max_parallelism:0"  # what the format advises for random access
)
_SMALL = 64 << 20  # bytes


@dataclasses.dataclass(kw_only=True, eq=False)
class ArrayRecord(Source):
    """A prepared data set on disk.

    Attributes:
      path: directory with info.json and the shards.
      split: which split of info.json.
      in_memory: read all records at once at first use; None does so below 64 MiB, where it costs
        nothing and lets the shards be compressed in large groups.
      text_field: the field with captions, which becomes 'text'; None leaves all as it is.
    """

    path: str
    split: str = "train"
    in_memory: bool | None = None
    text_field: str | None = None

    def __post_init__(self) -> None:
        self._directory = pathlib.Path(self.path).expanduser()
        self.info = read_info(self._directory)
        splits = self.info["splits"]
        if self.split not in splits:
            raise DataError(
                f"data source: {self.path} has no split '{self.split}'."
                + nearest(self.split, splits)
            )
        self._shards = splits[self.split]["shards"]
        self._ends = list(itertools.accumulate(shard["count"] for shard in self._shards))
        for shard in self._shards:
            if not (self._directory / shard["file"]).is_file():
                raise DataError(
                    f"data source: shard {self._directory / shard['file']} is missing, though "
                    f"info.json lists it."
                )
        self._open: dict[int, Any] = {}
        if self.in_memory is None:
            size = sum((self._directory / shard["file"]).stat().st_size for shard in self._shards)
            self._keep = size < _SMALL
        else:
            self._keep = self.in_memory
        super().__post_init__()

    def __getstate__(self) -> dict[str, Any]:
        # Open files do not travel; a worker process opens its own when it first reads.
        return {**self.__dict__, "_open": {}}

    @property
    def class_names(self) -> tuple[str, ...] | None:
        names = self.info.get("class_names")
        return tuple(names) if names else None

    def _count(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _read(self, index: int) -> dict[str, Any]:
        number = bisect.bisect_right(self._ends, index)
        offset = index - (self._ends[number] - self._shards[number]["count"])
        shard = self._shard(number)
        try:
            record = shard[offset] if isinstance(shard, list) else shard.read([offset])[0]
            example = records.unpack(record)
        except (ValueError, IndexError, RuntimeError) as error:
            raise CorruptExample(f"unreadable record ({error})") from error
        return captioned(example, self.text_field)

    def _describe(self, index: int) -> str:
        number = bisect.bisect_right(self._ends, index)
        offset = index - (self._ends[number] - self._shards[number]["count"])
        return f"{self._directory / self._shards[number]['file']} record {offset}"

    def _shard(self, number: int) -> Any:
        """A reader of a shard, or the list of its records."""
        # Two threads may both open a shard the first time; the second one simply wins.
        shard = self._open.get(number)
        if shard is None:
            path = self._directory / self._shards[number]["file"]
            try:
                shard = array_record_module.ArrayRecordReader(str(path), _READER_OPTIONS)
                found = shard.num_records()
            except (RuntimeError, ValueError) as error:
                raise DataError(f"data source: {path} is no ArrayRecord file ({error}).") from error
            if found != self._shards[number]["count"]:
                raise DataError(
                    f"data source: {path} holds {found} records, but info.json lists "
                    f"{self._shards[number]['count']}; the file is damaged or of another data set."
                )
            if self._keep:
                shard = _read_all(shard)
            self._open[number] = shard
        return shard


def _read_all(reader: Any) -> Any:
    try:
        records_of_shard = reader.read_all()
    except RuntimeError:
        return reader  # damaged somewhere: read one by one, only some records are lost
    reader.close()
    return records_of_shard


def read_info(directory: pathlib.Path) -> dict[str, Any]:
    """info.json of a prepared data set.

    Raises:
      DataError: no such directory, no info.json in it, or not one that prepare_data wrote.
    """
    check_directory(directory, "a directory written by tools.prepare_data")
    path = directory / "info.json"
    if not path.is_file():
        raise DataError(
            f"data source: {directory} has no info.json; expected a directory written by "
            f"tools.prepare_data."
        )
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"data source: {path} is not valid JSON ({error}).") from error
    if not isinstance(info, dict) or "splits" not in info:
        raise DataError(
            f"data source: {path} lists no splits; was it written by tools.prepare_data?"
        )
    return info
