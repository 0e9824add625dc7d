"""What tools.embed does with clips of sound."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import numpy as np

from encoders.errors import ConfigError, DataError, StorageError
from tools.clips import frames_of, longest, open_clips, over_clips, preprocessing_of
from tools.files import write
from tools.texts import report_corrupt


def embed_clips(encoder: Any, flags: argparse.Namespace, output: pathlib.Path) -> int:
    """Writes one .npz file, or a folder with a file of frames for each clip."""
    if flags.map is not None:
        raise ConfigError("--map: is for images; clips have no pictures.")
    preprocessing = preprocessing_of(encoder, flags.model)
    clips = open_clips(
        flags.input,
        flags.split,
        preprocessing,
        least=encoder.module.receptive_field,
        most=longest(encoder.module, flags.max_seconds, preprocessing.sample_rate),
        flag="--input",
    )
    function = frames_of(encoder.module, preprocessing, flags.layer)
    folder = output.suffix != ".npz"
    means, frames, labels = {}, {}, {}
    written: dict[str, str] = {}
    for batch, (features, mask) in over_clips(function, encoder.variables, clips, flags.batch_size):
        for row, example, own, real in zip(
            batch.rows.tolist(), batch.examples, features, mask, strict=True
        ):
            if folder:
                _write_one(output, clips.source.describe(row), own[real], written)
                continue
            means[row] = own[real].mean(0)
            labels[row] = example.get("label", -1)
            if flags.tokens:
                frames[row] = own[real]
    if not (written or means):
        raise DataError(
            f"--input {flags.input}: holds no usable clip; the first: {clips.corrupt[0]}."
        )
    if folder:
        print(f"wrote {output}: {len(written)} files")
    else:
        rows = sorted(means)
        arrays = {
            "names": np.array([clips.source.describe(row) for row in rows], np.str_),
            "features": np.stack([means[row] for row in rows]),
            "corrupt": np.array([one.split(": ")[0] for one in clips.corrupt], np.str_),
        }
        if max(labels.values()) >= 0:
            arrays["labels"] = np.array([labels[row] for row in rows], np.int32)
            if clips.source.class_names is not None:
                arrays["class_names"] = np.asarray(clips.source.class_names)
        if flags.tokens:
            arrays["frames"] = np.concatenate([frames[row] for row in rows])
            arrays["lengths"] = np.array([len(frames[row]) for row in rows], np.int32)
        write(output, arrays)
        shapes = ", ".join(f"{k} {list(v.shape)}" for k, v in arrays.items() if v.ndim == 2)
        print(f"wrote {output}: {shapes}")
    report_corrupt(clips.corrupt, "clip")
    return 0


def _write_one(
    folder: pathlib.Path, name: str, frames: np.ndarray, written: dict[str, str]
) -> None:
    """One clip's frames [T, D], in a file of its name; `written` has those that there are."""
    place, _, record = name.partition(" record ")  # of a prepared set: a shard and a number in it
    stem = f"{pathlib.Path(place).stem}-{record}" if record else pathlib.Path(place).stem
    if stem in written:
        raise DataError(
            f"--output {folder}: {name} and {written[stem]} would both be {stem}.npy; embed their "
            "folders one by one, or into an .npz file."
        )
    written[stem] = name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{stem}.npy", frames, allow_pickle=False)
    except OSError as error:
        raise StorageError(f"--output {folder}: could not be written ({error}).") from error
