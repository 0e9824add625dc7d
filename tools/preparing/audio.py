"""Clips as records: one channel, one rate, lossless, with an index of lengths and speakers."""

from __future__ import annotations

import dataclasses
import io
import pathlib
from typing import Any

import numpy as np

from encoders.data import records, sound
from encoders.data.sources import CorruptExample
from encoders.data.token_store import INDEX_SUFFIX
from encoders.errors import DataError
from tools.preparing.shards import Recipe, write_bytes

# What TensorFlow Datasets calls them (librispeech and others) -> what they are called here.
_NAMES = {"speech": "audio", "text": "transcript", "speaker_id": "speaker"}


@dataclasses.dataclass
class AudioRecipe(Recipe):
    """Clips in the layout of `encoders.data.clips`.

    Attributes:
      sample_rate: of the records; clips of another are resampled.
      mix: whether channels are averaged; else clips that have several are left out.
      source_rate: of clips that come as samples and do not say theirs; None is `sample_rate`.
    """

    sample_rate: int = 16000
    mix: bool = False
    source_rate: int | None = None

    def make(self, index: int) -> tuple[list[bytes], tuple[int, str | None]]:
        """The record of a clip; its samples and speaker."""
        given = self.source[index]
        names = getattr(self.source, "speaker_names", None)
        example = {_NAMES.get(name, name): value for name, value in given.items()}
        if "audio" not in example:
            raise CorruptExample(f"no field 'audio' or 'speech', only {sorted(given)}")
        waveform = sound.clip_of(
            example["audio"],
            example.get("sample_rate", self.source_rate),
            wanted=self.sample_rate,
            may_resample=True,
            mix=self.mix,
        )
        record: dict[str, Any] = {"audio": sound.encode_flac(waveform, self.sample_rate)}
        if "transcript" in example:
            record["transcript"] = _text(example["transcript"])
        if "label" in example:
            record["label"] = int(example["label"])
        speaker = example.get("speaker")
        if speaker is not None and names is not None:
            speaker = names[speaker] if speaker >= 0 else None
        if speaker is not None:
            speaker = record["speaker"] = _text(speaker)
        return [records.pack(record)], (len(waveform), speaker)

    def finish(self, path: pathlib.Path, notes: list[Any]) -> dict[str, Any]:
        """Writes the index of a shard."""
        arrays = {"lengths": np.array([length for length, _ in notes], np.uint32)}
        if any(speaker is not None for _, speaker in notes):
            arrays["speakers"] = np.array([speaker or "" for _, speaker in notes], str)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_bytes(path.with_name(path.name + INDEX_SUFFIX), buffer.getvalue())
        return {"samples": int(arrays["lengths"].sum())}

    def amount(self, shards: list[dict[str, Any]]) -> str:
        clips, samples = (sum(shard[key] for shard in shards) for key in ("count", "samples"))
        return f"{clips} clips, {samples / self.sample_rate / 3600:.2f} hours"

    def describe(self) -> dict[str, Any]:
        fields = {"audio": "a FLAC file, one channel"}
        return {**super().describe(), "fields": fields, "sample_rate": self.sample_rate}

    def check(self, info: dict[str, Any], directory: pathlib.Path) -> None:
        """Raises a DataError where other splits have another rate, or are no sound."""
        super().check(info, directory)
        found = info.get("sample_rate", self.sample_rate)
        if found != self.sample_rate:
            raise DataError(
                f"--rate: {directory} holds clips of {found} samples per second, got "
                f"{self.sample_rate}."
            )
        if info["splits"] and "sample_rate" not in info:
            raise DataError(f"--to: {directory} holds a data set that is no sound.")


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
