"""Clips of one speaker after another: samples and transcripts of the whole."""

import dataclasses
import pickle
import re

import numpy as np
import pytest

from encoders.config import build
from encoders.data import (
    SOURCES,
    AudioPreprocessing,
    CorruptExample,
    Pipeline,
    build_transforms,
)
from encoders.data.sources.base import Source, read
from encoders.data.units import write_units
from encoders.errors import ConfigError

LENGTHS = (400, 250, 170, 330, 90, 210)
SPEAKERS = (0, 0, 1, 1, 1, 0)
PREPROCESSING = AudioPreprocessing(sample_rate=1000, min_samples=80)


@dataclasses.dataclass(kw_only=True, eq=False)
class Words(Source):
    """Clips of their own number."""

    speakers: tuple[int, ...] = SPEAKERS
    spelt: tuple[int, ...] = tuple(range(6))
    broken: tuple[int, ...] = ()

    def _count(self):
        return len(LENGTHS)

    def speakers_of(self):
        return np.array(self.speakers, np.int32)

    def _read(self, index):
        if index in self.broken:
            raise CorruptExample("broken")
        found = {
            "audio": np.full(LENGTHS[index], index, np.int16),
            "label": index,
            "speaker": self.speakers[index],
        }
        return {**found, "transcript": f"word {index}"} if index in self.spelt else found


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    monkeypatch.setitem(SOURCES, "words", Words)


def joined(count=3, *, copies=1, speed=None, stop=1.0, **fields):
    source = dict(name="words", **fields)
    section = dict(name="joined", count=count, copies=copies, speed=speed, stop=stop, source=source)
    return build(SOURCES, section, "data.source", preprocessing=PREPROCESSING)


def test_an_example_is_clips_of_one_speaker():
    source, rng, partners = joined(), np.random.default_rng(0), set()
    for index in range(len(source)):
        for _ in range(20):
            found = read(source, index, rng)
            waveform = found["waveform"]
            words = [int(word) for word in found["transcript"].replace("word ", "").split()]
            assert words[0] == index
            assert {SPEAKERS[word] for word in words} == {found["speaker"]} == {SPEAKERS[index]}
            expected = np.concatenate([np.full(LENGTHS[word], word) for word in words])
            np.testing.assert_array_equal(waveform, expected)
            assert "label" not in found
            partners.add(tuple(words))
    assert len(partners) > 40
    one = joined(count=1)
    np.testing.assert_array_equal(one[4]["waveform"], np.full(90, 4))
    again = [source[2]["transcript"] for _ in range(5)]
    assert len(set(again)) == 1  # as evaluation reads it
    sent = pickle.loads(pickle.dumps(source))  # to a worker
    drawn = [read(one, 2, np.random.default_rng(7))["transcript"] for one in (source, sent, source)]
    assert len(set(drawn)) == 1


def test_copies_differ_and_have_a_speed_each():
    source = joined(count=2, copies=3, speed=(0.5, 2.0))
    assert len(source) == 18
    lengths = {len(source[index]["waveform"]) for index in (1, 7, 13)}
    assert len(lengths) == 3
    assert all(250 + 210 <= 2 * length <= 4 * (250 + 400) for length in lengths)
    assert source.describe(13) == f"{source.describe(1)}, copy 3"


def test_units_of_other_samples_are_not_found_by_name(monkeypatch):
    name = joined(speed=(0.5, 2.0)).describe(1)
    assert re.fullmatch(r"3 of 6 clips \(\w{8}\) from example 1 of Words on at 0.5 to 2", name)
    assert joined(speed=(0.5, 2.0)).describe(1) == name
    others = [joined(speed=(0.5, 2.0), speakers=(0, 0, 1, 1, 1, 1)).describe(1)]
    own = Words._describe
    monkeypatch.setattr(Words, "_describe", lambda self, i: "other" if i == 5 else own(self, i))
    others.append(joined(speed=(0.5, 2.0)).describe(1))
    assert len({name, *others}) == 3


def test_what_not_every_clip_has_is_left_out():
    assert "transcript" not in joined(count=40, spelt=(0, 1, 2))[0]


def test_a_clip_that_cannot_be_used_is_named(monkeypatch):
    with pytest.raises(CorruptExample, match=r"^45 samples, expected at least 80"):
        joined(count=1, speed=(2.0, 2.0))[4]
    monkeypatch.setattr(Words, "_describe", lambda self, index: f"clip {index}", raising=False)
    monkeypatch.setattr(
        joined().clips.__class__, "_read", lambda self, index: {"audio": np.zeros(40, np.int16)}
    )
    with pytest.raises(CorruptExample, match="clip 3: 40 samples"):
        joined(count=1)[3]


def test_another_clip_is_drawn_for_a_corrupt_one():
    preprocessing = dataclasses.replace(PREPROCESSING, max_samples=1200)

    def pipeline(**options):
        source = joined(broken=(3,))
        transforms = build_transforms([{"name": "crop_audio"}], preprocessing)
        return Pipeline(source, transforms, batch_size=6, seed=0, threads=0, **options)

    every = pipeline()
    batches = [every.batch(step)["waveform"] for step in range(4)]
    assert every.stats.names == {"example 3 of Words": "broken"}
    assert every.stats.corrupt >= 4
    for epoch in batches:
        assert not (epoch == 3).any()
        assert {0, 1, 2, 4, 5} == {*epoch[:, 0].tolist()}
    part = pipeline(rows=np.array([1, 4])).batch(3)["waveform"]
    np.testing.assert_array_equal(part, batches[3][[1, 4]])
    met = []
    with pytest.raises(CorruptExample, match=r"example [234] of Words: broken"):
        joined(broken=(2, 3, 4)).draw(2, np.random.default_rng(0), met)
    assert len({one.name for one in met}) == len(met) == 2


def test_units_of_joined_clips_are_whole_too(tmp_path):
    section = dict(name="joined", count=3, copies=2, source=dict(name="words"))
    source = build(SOURCES, section, "data.source", preprocessing=PREPROCESSING)
    names = [source.describe(index) for index in range(len(source))]
    info = {"units_per_second": 50.0}
    write_units(tmp_path / "units", [np.zeros(1, int)] * len(names), names, np.ones((1, 2)), info)
    for inner in (section, dict(name="mixture", sources=(section,))):
        units = dict(name="units", path=str(tmp_path / "units"), source=inner)
        assert len(build(SOURCES, units, "data.source", preprocessing=PREPROCESSING)) == 12
        with pytest.raises(ConfigError, match="start, stop: parts of what 'joined' makes share"):
            build(SOURCES, {**units, "stop": 0.5}, "data.source", preprocessing=PREPROCESSING)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 0}, "source 'joined': count: expected a number from 1, got 0"),
        ({"speed": (2.0, 0.5)}, "source 'joined': speed: expected 0 < least <= most"),
        ({"stop": 0.5}, "start, stop: parts of what 'joined' makes share clips; give them to"),
        ({"speakers": (0, 0, -1, 1, 1, 0)}, "speakers of this 'words' are not all known"),
    ],
)
def test_what_cannot_be_joined(fields, message):
    with pytest.raises(ConfigError, match=message):
        joined(**fields)
