"""Clips of sound with what is known of them."""

from __future__ import annotations

import dataclasses
import functools
import logging
import pathlib
from typing import Any

import numpy as np

from encoders.data.paths import locate
from encoders.data.sources.base import Source, check_directory
from encoders.errors import ConfigError, DataError, nearest

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True, eq=False)
class Audio(Source):
    """Sound files, or clips that `tools.prepare_data --from audio` has prepared.

    An example is {'audio': a file, or int16 [samples], 'transcript': str, 'label': int, 'speaker':
    int}, of which all but the audio are there where they are known. Where speakers of some clips
    are known, those of the others are -1.

    Attributes:
      path: a prepared directory or 'sample:digits'; a folder of files, of one subfolder per class,
        of LibriSpeech, or of LJSpeech; a table (csv, tsv, jsonl, parquet) with the column 'path'
        and maybe 'text', 'label' and 'speaker'; or a manifest of fairseq. See
        `encoders.data.clips.find_clips`.
      split: of a prepared directory.
      folder: what paths in a table are relative to; None is the folder of the table, or the one
        that a manifest names.
      speakers: names of those whose clips are taken, and none of unknown speakers; None takes all.
      without_speakers: names of those whose clips are left out. Clips of unknown speakers stay, and
        a warning says how many there are.
    """

    path: str
    split: str = "train"
    folder: str | None = None
    speakers: tuple[str, ...] | None = None
    without_speakers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        from encoders.data.clips import PreparedClips, find_clips

        path = locate(self.path)
        if not path.is_file():
            check_directory(path, "a folder or a table of clips")
        if path.is_dir() and (path / "info.json").is_file():
            self.clips = PreparedClips(path, self.split)
        else:
            folder = None if self.folder is None else pathlib.Path(self.folder).expanduser()
            self.clips = find_clips(path, folder)
        self._speakers = self._numbered()
        self._chosen = self._choose()
        super().__post_init__()

    @functools.cached_property
    def speaker_names(self) -> tuple[str, ...] | None:
        """Names of speakers 0, 1, ..., of all splits and not only of those chosen; or None."""
        names = getattr(self.clips, "speaker_names", None)
        if names is None and self.clips.speakers is not None:
            names = tuple(sorted(set(self.clips.speakers.tolist()) - {""}))
        return names

    def _numbered(self) -> np.ndarray | None:
        """[N] numbers of all clips' speakers, -1 for unknown ones; None where all are unknown."""
        if not self.speaker_names:
            return None
        names, places = np.unique(self.clips.speakers, return_inverse=True)
        numbers = {name: number for number, name in enumerate(self.speaker_names)}
        return np.array([numbers.get(name, -1) for name in names.tolist()], np.int32)[places]

    def _choose(self) -> np.ndarray | None:
        """The clips of the speakers that are asked for; None for all."""
        if self.speakers is None and not self.without_speakers:
            return None
        if self._speakers is None:
            raise DataError(f"data source: the speakers of '{self.path}' are not known.")
        chosen = ~np.isin(self._speakers, self._numbers_of(self.without_speakers))
        if self.speakers is not None:
            chosen &= np.isin(self._speakers, self._numbers_of(self.speakers))
        unknown = int((chosen & (self._speakers < 0)).sum())
        if unknown:
            logger.warning(
                "%s: %d clips of unknown speakers, which may be those of without_speakers, stay",
                self.path, unknown,
            )  # fmt: skip
        return np.flatnonzero(chosen)

    def _numbers_of(self, speakers: tuple[str, ...]) -> list[int]:
        known = self.speaker_names
        for name in speakers:
            if name not in known:
                raise ConfigError(
                    f"data source: '{self.path}' has no speaker '{name}'." + nearest(name, known)
                )
        return [known.index(name) for name in speakers]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.clips.class_names

    def lengths(self, sample_rate: int) -> np.ndarray:
        """int64 [N] samples of each clip at a rate, without decoding it; 0 if it is unreadable."""
        indices = self._permuted(np.arange(len(self)))
        lengths = self.clips.lengths(sample_rate)
        return lengths[indices if self._chosen is None else self._chosen[indices]]

    def speakers_of(self) -> np.ndarray | None:
        """int32 [N] speaker of each clip, -1 for unknown ones; None where all are unknown."""
        if self._speakers is None:
            return None
        indices = self._permuted(np.arange(len(self)))
        return self._speakers[indices if self._chosen is None else self._chosen[indices]]

    def _count(self) -> int:
        return len(self.clips) if self._chosen is None else len(self._chosen)

    def _number(self, index: int) -> int:
        return index if self._chosen is None else int(self._chosen[index])

    def _read(self, index: int) -> dict[str, Any]:
        number = self._number(index)
        example = self.clips.read(number)
        example.pop("speaker", None)
        if self._speakers is not None:
            example["speaker"] = int(self._speakers[number])
        return example

    def _describe(self, index: int) -> str:
        return self.clips.describe(self._number(index))
