"""Clusters of frames on disk, and joined to clips."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from encoders.config import build
from encoders.data import SOURCES, AudioPreprocessing, CorruptExample
from encoders.data.sources.base import Source
from encoders.data.sources.buckets import in_buckets
from encoders.data.sources.mixture import Mixture
from encoders.data.sources.units import Units
from encoders.data.units import UnitStore, write_units
from encoders.errors import ConfigError, DataError


@dataclasses.dataclass(kw_only=True, eq=False)
class Clips(Source):
    """Clips that are numbered from `first` on."""

    number: int = 3
    first: int = 0

    def _count(self):
        return self.number

    def _read(self, index):
        return {"waveform": np.full(8, self.first + index, np.int16), "label": index}

    def _describe(self, index):
        return f"clip {self.first + index}"


@dataclasses.dataclass
class Expected:
    units_per_second: float = 50.0


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "clips", Clips)
    units = [np.array([5, 4, 4]), np.array([], int), np.array([0, 65535])]
    names = [f"clip {i}" for i in range(3)]
    write_units(tmp_path / "units", units, names, np.ones((6, 2)), {"units_per_second": 50.0})
    return str(tmp_path / "units")


def open_source(path: str, preprocessing: Any = None, **fields) -> Source:
    section = dict(name="units", path=path, source=dict(name="clips", **fields))
    given = {} if preprocessing is None else {"preprocessing": preprocessing}
    return build(SOURCES, section, "data.source", **given)


def test_units_come_back_with_their_clips(path):
    store = UnitStore(path)
    assert store.clusters == 6
    assert store.units_per_second == 50.0
    source = open_source(path, Expected())
    assert len(source) == 3
    np.testing.assert_array_equal(source[0]["units"], [5, 4, 4])
    assert source[0]["units"].dtype == np.int32
    np.testing.assert_array_equal(source[2]["units"], [0, 65535])
    assert source[2]["label"] == 2
    with pytest.raises(CorruptExample, match="no units in"):
        source[1]


def test_clips_are_found_by_name(path):
    source = open_source(path, number=2, first=2)
    np.testing.assert_array_equal(source[0]["units"], [0, 65535])
    with pytest.raises(CorruptExample, match="no units in"):
        source[1]


def test_mixtures_of_units(path, tmp_path):
    parts = (open_source(path, number=1), open_source(path, number=1, first=2))
    mixed = Mixture(parts)
    assert mixed.clusters == 6
    np.testing.assert_array_equal(mixed[1]["units"], [0, 65535])
    assert Mixture((parts[0], parts[0].clips)).clusters is None
    assert parts[0].starts == ()
    sections = (dict(name="clips", number=1), dict(name="clips", number=2, first=1))
    both = Units(source=dict(name="mixture", sources=sections), path=path)
    assert both.starts == both.clips.starts == (0, 1)
    other = str(tmp_path / "other")
    write_units(other, [np.zeros(1)], ["clip 0"], np.ones((5, 2)), {"units_per_second": 50.0})
    with pytest.raises(ConfigError, match="one clustering, got units of 5 and 6 clusters"):
        _ = Mixture((*parts, open_source(other, number=1))).clusters


def test_errors(path, tmp_path):
    short = AudioPreprocessing(bucket_samples=(8, 16), min_samples=8, max_samples=16)
    with pytest.raises(ConfigError, match=r"how long its clips are, .* got Clips"):
        in_buckets(open_source(path), short, 2)
    with pytest.raises(ConfigError, match=r"units_per_second: .* has 50, got 100"):
        open_source(path, Expected(100.0))
    with pytest.raises(DataError, match=r"none of the clips .* 'clip 0' there and 'clip 7' here"):
        open_source(path, first=7)
    with pytest.raises(DataError, match=r"expected a directory that tools\.cluster wrote"):
        UnitStore(tmp_path)
    with pytest.raises(ConfigError, match="exists; remove it"):
        write_units(path, [], [], np.ones((1, 2)), {})
    with pytest.raises(ConfigError, match="at most 65536 clusters"):
        write_units(tmp_path / "x", [], [], np.ones((65537, 1)), {})
    np.save(f"{path}/lengths.npy", np.array([1, 1, 1]))
    with pytest.raises(DataError, match="damaged"):
        UnitStore(path)
