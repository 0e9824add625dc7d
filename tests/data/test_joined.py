"""Clips of one speaker after another: samples and transcripts of the whole."""

import dataclasses
import pickle
import re

import numpy as np
import pytest

from encoders.config import build
from encoders.data import SOURCES, AudioPreprocessing, CorruptExample
from encoders.data.sources.base import Source, read
from encoders.errors import ConfigError

LENGTHS = (400, 250, 170, 330, 90, 210)
SPEAKERS = (0, 0, 1, 1, 1, 0)
PREPROCESSING = AudioPreprocessing(sample_rate=1000, min_samples=80)


@dataclasses.dataclass(kw_only=True, eq=False)
class Words(Source):
    """Clips of their own number."""

    speakers: tuple[int, ...] = SPEAKERS
    spelt: tuple[int, ...] = tuple(range(6))

    def _count(self):
        return len(LENGTHS)

    def speakers_of(self):
        return np.array(self.speakers, np.int32)

    def _read(self, index):
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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 0}, "source 'joined': count: expected a number from 1, got 0"),
        ({"speed": (2.0, 0.5)}, "source 'joined': speed: expected 0 < least <= most"),
        ({"stop": 0.5}, "source 'joined': start, stop: parts of it share clips"),
        ({"speakers": (0, 0, -1, 1, 1, 0)}, "speakers of this 'words' are not all known"),
    ],
)
def test_what_cannot_be_joined(fields, message):
    with pytest.raises(ConfigError, match=message):
        joined(**fields)
