"""Sound: files to samples, samples to one length, transcripts to ids."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from encoders.data import sound
from encoders.data.sources.base import CorruptExample

Example = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeAudio:
    """'audio', a file or samples -> 'waveform' int16 [samples] of one channel.

    A source may have decoded its clips; they stay as they are.

    Attributes:
      preprocessing: says rate, and what may be resampled and mixed (supplied).
    """

    preprocessing: Any

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Raises a CorruptExample where the clip cannot be used."""
        del rng
        wanted = self.preprocessing
        if "waveform" in example:
            return example
        if "audio" not in example:
            raise CorruptExample(f"no field 'audio', only {sorted(example)}")
        rest = {k: v for k, v in example.items() if k not in ("audio", "sample_rate")}
        waveform = sound.clip_of(
            example["audio"],
            example.get("sample_rate"),
            wanted=wanted.sample_rate,
            may_resample=wanted.resample,
            mix=wanted.mix,
            least=wanted.min_samples,
        )
        return {**rest, "waveform": waveform}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChangeSpeed:
    """'waveform' played faster or slower, which moves its pitch and formants along.

    Ko et al., Audio Augmentation for Speech Recognition, Interspeech 2015: voices that a small data
    set does not have. Comes after 'decode_audio' and before transcripts are spelt.

    Attributes:
      least, most: speeds; one between them is drawn for each clip, its logarithm uniformly. No clip
        gets shorter than the preprocessing's `min_samples`, or too long for its bucket.
      preprocessing: of the run (supplied).
    """

    preprocessing: Any
    least: float = 0.9
    most: float = 1.1

    def __post_init__(self) -> None:
        sound.check_speeds(self.least, self.most, "change_speed")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Raises a CorruptExample where the clip has 'units', which would no longer fit."""
        if "units" in example:
            raise CorruptExample("change_speed: its units belong to the samples as they are")
        speed = sound.draw_speed(self.least, self.most, rng)
        waveform = example["waveform"]
        room = max(len(waveform), example.get("bucket_samples", self.preprocessing.max_samples))
        speed = max(speed, len(waveform) / room)
        speed = min(speed, len(waveform) / self.preprocessing.min_samples)
        return {**example, "waveform": sound.resample(waveform, speed, 1.0)[:room]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpellTranscript:
    """'transcript' -> 'targets' int32 [max_targets] and 'target_length'; after 'decode_audio'.

    CTC needs a frame for every character, and one more between two that are equal. A clip has at
    most ceil(samples / samples_per_frame) frames: encoders whose windows reach beyond their stride
    make one or two fewer of it, and a transcript that misses only these is left to the objective
    'ctc', which counts it as 'infeasible'.

    Attributes:
      preprocessing: has the vocabulary, and the stride of frames (supplied).
    """

    preprocessing: Any

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Raises a CorruptExample where there is no transcript, or the clip cannot have it."""
        del rng
        wanted, text = self.preprocessing, example.get("transcript")
        if not isinstance(text, str) or not text.strip():
            raise CorruptExample("no transcript")
        try:
            ids = wanted.opened.encode(text, strip_punctuation=wanted.strip_punctuation)
        except ValueError as error:
            raise CorruptExample(str(error)) from error
        if not len(ids):
            raise CorruptExample("no transcript but punctuation")
        if len(ids) > wanted.max_targets:
            raise CorruptExample(
                f"its transcript has {len(ids)} characters, more than max_targets="
                f"{wanted.max_targets}"
            )
        samples = len(example["waveform"])
        frames = -(-samples // wanted.samples_per_frame)
        needed = len(ids) + int((ids[1:] == ids[:-1]).sum())
        if needed > frames:
            raise CorruptExample(
                f"its transcript needs {needed} frames, and it has at most {frames} ({samples} "
                f"samples)"
            )
        targets = np.full(wanted.max_targets, wanted.opened.blank, np.int32)
        targets[: len(ids)] = ids
        return {**example, "targets": targets, "target_length": len(ids)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropAudio:
    """'waveform' int16 [samples] -> [S], cropped or with zeros after 'length' samples.

    S is the preprocessing's `max_samples`, or the bucket's, see `encoders.data.sources.buckets`.
    'units', targets of frames, are cropped along and padded by -1.

    Attributes:
      preprocessing: says S, and the rates of samples and units (supplied).
      random: whether crops begin anywhere; else at the start.
    """

    preprocessing: Any
    random: bool = True

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Raises a CorruptExample where a clip that has a transcript is too long."""
        wanted, waveform = self.preprocessing, example["waveform"]
        example = dict(example)
        size = example.pop("bucket_samples", wanted.max_samples)
        spare = len(waveform) - size
        if spare > 0 and "targets" in example:
            raise CorruptExample(
                f"{len(waveform)} samples, of which its transcript needs all, and only {size} fit"
            )
        units = example.pop("units", None)
        start = 0
        if spare > 0 and self.random:
            # Where there are units, whole units are cut off: the others stay where they were.
            step = (
                1 if units is None else max(1, round(wanted.sample_rate / wanted.units_per_second))
            )
            start = step * int(rng.integers(0, spare // step, endpoint=True))
        waveform = waveform[start : start + size]
        padded = np.zeros(size, np.int16)
        padded[: len(waveform)] = waveform
        found = {**example, "waveform": padded, "length": len(waveform)}
        if units is not None:
            first = round(start * wanted.units_per_second / wanted.sample_rate)
            kept = np.asarray(units)[first:][: wanted.num_units(len(waveform))]
            found["units"] = np.full(wanted.num_units(size), -1, np.int32)
            found["units"][: len(kept)] = kept
        return found
