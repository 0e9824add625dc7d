"""Clips of one speaker after another, such as rows of digits from single ones."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from encoders.config import build
from encoders.data import sound
from encoders.data.sources.base import CorruptExample, Corruption, Source, read
from encoders.data.transforms.audio import DecodeAudio
from encoders.errors import ConfigError

_TRIES = 4  # clips for one place of an example


@dataclasses.dataclass(kw_only=True, eq=False)
class Joined(Source):
    """Clips of another source side by side: words that are short alone make sentences.

    An example begins with a clip of the other source; others of the same speaker follow, and all
    are played at one speed, which moves pitch and formants along: a voice that is not in the data
    (Ko et al., Audio Augmentation for Speech Recognition, Interspeech 2015). Training draws them
    anew every time the example comes, and draws another for one that is corrupt, which is counted
    and named. Evaluation, and the source 'units' around this one, have the example as it always is,
    corrupt if one of its clips is: units belong to samples.

    It is {'waveform': int16 [samples], 'transcript': str, 'speaker': int}, the transcript only
    where every clip has one.

    Attributes:
      source: config section of the other, which knows speakers.
      count: clips of an example.
      copies: examples that begin with the same clip.
      speed: least and most, of which one is drawn, its logarithm uniformly; None for 1.
      preprocessing: of the run (supplied).

    `start` and `stop` are of the other source: copies of one clip would be in several parts.
    """

    source: Mapping[str, Any]
    count: int
    copies: int = 1
    speed: tuple[float, float] | None = None
    preprocessing: Any = dataclasses.field(repr=False)

    indivisible = (
        "parts of what 'joined' makes share clips; give them to the 'source' of 'joined', whose "
        "parts share none"
    )

    def __post_init__(self) -> None:
        from encoders.data.sources import SOURCES  # which holds this class too

        for name in ("count", "copies"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"source 'joined': {name}: expected a number from 1, got {getattr(self, name)}."
                )
        if self.speed is not None:
            sound.check_speeds(*self.speed, "source 'joined': speed")
        context = {"preprocessing": self.preprocessing}
        self.clips = build(SOURCES, dict(self.source), "data.source.source", **context)
        speakers = getattr(self.clips, "speakers_of", lambda: None)()
        if speakers is None or (speakers < 0).any():
            raise ConfigError(
                "source 'joined': puts clips of one speaker side by side, and the "
                f"speakers of this '{self.source.get('name')}' are not all known."
            )
        self._speakers = speakers
        numbers, counts = np.unique(speakers, return_counts=True)
        order = np.argsort(speakers, kind="stable")
        self._of = dict(zip(numbers, np.split(order, counts.cumsum()[:-1]), strict=True))
        self._decode = DecodeAudio(preprocessing=self.preprocessing)
        super().__post_init__()

    def draw(
        self, index: int, rng: np.random.Generator, met: list[Corruption] | None = None
    ) -> dict[str, Any]:
        """The example at an index with other clips behind the first, at another speed.

        Raises:
          CorruptExample: one of the clips is, and so are those in its place, or there is no list
            to name it in; or the whole is too short at its speed.
        """
        return self._join(self._locate(index), rng, met)

    def _join(
        self, index: int, rng: np.random.Generator, met: list[Corruption] | None = None
    ) -> dict[str, Any]:
        first = index % len(self.clips)
        same = self._of[self._speakers[first]]
        clips = [
            self._clip(number, same, rng, met)
            for number in (first, *rng.choice(same, self.count - 1).tolist())
        ]
        waveform = np.concatenate([clip["waveform"] for clip in clips])
        if self.speed is not None:
            speed = sound.draw_speed(*self.speed, rng)
            waveform = sound.resample(waveform, speed, 1.0)
        sound.check_length(waveform, self.preprocessing.min_samples)
        found = {"waveform": waveform, "speaker": int(self._speakers[first])}
        if all(isinstance(clip.get("transcript"), str) for clip in clips):
            found["transcript"] = " ".join(clip["transcript"] for clip in clips)
        return found

    def _clip(
        self,
        number: int,
        same: np.ndarray,
        rng: np.random.Generator,
        met: list[Corruption] | None,
        tries: int = _TRIES,
    ) -> dict[str, Any]:
        """The clip of that number, or another of the same speaker in its place."""
        try:
            return self._decode(read(self.clips, number, rng), rng)
        except CorruptExample as error:
            name, others = self.clips.describe(number), same[same != number]
            if met is None or tries == 1 or not others.size:
                raise CorruptExample(f"{name}: {error}") from error
            met.append(Corruption(name, str(error)))
        return self._clip(int(rng.choice(others)), others, rng, met, tries - 1)

    def _count(self) -> int:
        return self.copies * len(self.clips)

    def _read(self, index: int) -> dict[str, Any]:
        return self._join(index, np.random.default_rng(index))

    def _describe(self, index: int) -> str:
        copy, first = divmod(index, len(self.clips))
        # All that decides which samples it is: units of others are not to be found by its name.
        clips = f"{len(self.clips)} clips ({self._fingerprint})"
        of = f"{self.count} of {clips} from {self.clips.describe(first)} on"
        speed = "" if self.speed is None else f" at {self.speed[0]:g} to {self.speed[1]:g}"
        return f"{of}{speed}" + (f", copy {copy + 1}" if copy else "")

    @functools.cached_property
    def _fingerprint(self) -> str:
        """Of which clips there are, in which order, and who speaks them."""
        names = "\n".join(self.clips.describe(number) for number in range(len(self.clips)))
        of_names = zlib.crc32(names.encode(errors="backslashreplace"))
        return f"{zlib.crc32(self._speakers.astype('<i4').tobytes(), of_names):08x}"
