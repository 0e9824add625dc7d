"""Writes the small data sets that ship with the project into encoders/data/samples/.

    python -m tools.make_samples --fashion-mnist FOLDER    # its four IDX files, gzipped or not
    python -m tools.make_samples --banking77 FOLDER        # train.csv, test.csv, LICENSE
    python -m tools.make_samples --peps FOLDER             # pep-*.rst, once BANKING77 is there
    python -m tools.make_samples --noto-emoji FOLDER       # captions.jsonl, its images, licences
    python -m tools.make_samples --fsdd FOLDER             # recordings/*.wav
    python -m tools.make_samples --ljspeech FOLDER         # metadata.csv, wavs/

The same input gives the same records: the first 1,000 training and 200 test images of each class,
in their order; all of BANKING77; every fifth of the public-domain PEPs as tokens, of a tokenizer
trained on them and on BANKING77; all emoji without a skin tone, and a tokenizer of their captions;
the first 17 recordings of each spoken digit by each speaker; the shortest clips of LJSpeech.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module
from PIL import Image

from encoders.data import records, sound
from encoders.data.images import decode
from encoders.data.paths import SAMPLES
from encoders.data.sources.audio import Audio
from encoders.data.sources.base import Source
from encoders.data.sources.sample import Sample
from encoders.data.sources.text import Text
from encoders.data.tokenizer_training import train_tokenizer
from encoders.errors import ConfigError, DataError, exit_cleanly
from launch.flags import Parser
from tools.idx import IdxSource
from tools.preparing.audio import AudioRecipe
from tools.preparing.shards import prepare, write_bytes
from tools.preparing.texts import TextRecipe

# Large groups and slow compression: it is read into memory once, and every byte is in every clone.
_IMAGES = "group_size:100,brotli:11"
_TEXTS = "group_size:20000,brotli:11"

_EVERY_PEP, _EVERY_TEST = 5, 10  # of the documents; of those
_VOCAB_SIZE = 6144
_EVERY_TEST_EMOJI, _EMOJI_VOCAB_SIZE = 5, 2048
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEST_DIGITS, _ALL_DIGITS = 5, 17  # recordings of each digit by each speaker, of 50
_BITS = 7
_SHORTEST = 2
# Lines of one repeated sign, such as rules below headings, would be most of the frequent tokens.
_RULE = re.compile(r"^[ \t]*(?:[^\w\s]{3,}[ \t]*)+$\n?", re.MULTILINE)

_PEPS_LICENCE = """\
Each of these documents says of itself:

  This document is placed in the public domain or under the CC0-1.0-Universal license, whichever is
  more permissive.

or, where it is older, that it has been placed in the public domain. The text of CC0 1.0 Universal
is at https://creativecommons.org/publicdomain/zero/1.0/legalcode.
"""


_DIGITS_LICENCE = """\
The Free Spoken Digit Dataset is licensed under the Creative Commons Attribution-ShareAlike 4.0
International licence: https://creativecommons.org/licenses/by-sa/4.0/legalcode. What is in this
directory is an adaptation of it under the same licence; info.json says what was changed.
"""
_LJSPEECH_LICENCE = """\
The texts, the recordings and the annotations of LJSpeech are in the public domain.
"""


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """[N] labels -> sorted indices of the first `count` examples of every class."""
    chosen = [np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def write_split(
    directory: pathlib.Path, split: str, examples: Iterable[Mapping[str, Any]], options: str
) -> dict[str, Any]:
    """Writes examples as the one shard of a split; returns its entry in info.json."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{split}-00000-of-00001.array_record"
    writer = array_record_module.ArrayRecordWriter(str(directory / name), options)
    count = 0
    for example in examples:
        writer.write(records.pack(example))
        count += 1
    writer.close()
    return {"count": count, "shards": [{"file": name, "count": count}]}


def write_info(directory: pathlib.Path, info: Mapping[str, Any]) -> None:
    """Writes info.json."""
    (directory / "info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


def copy_licence(folder: pathlib.Path, directory: pathlib.Path) -> None:
    """Copies LICENSE beside the data.

    Raises:
      DataError: there is none.
    """
    licence = folder / "LICENSE"
    if not licence.is_file():
        raise DataError(f"{folder} has no LICENSE to ship beside the data.")
    shutil.copyfile(licence, directory / "LICENSE")


def make_fashion_mnist(
    folder: pathlib.Path, directory: pathlib.Path, per_class: Mapping[str, int]
) -> None:
    """Writes a Fashion-MNIST subset of so many examples per split, its info.json and licence."""
    splits = {}
    for split, count in per_class.items():
        source = IdxSource(path=str(folder), split=split)
        chosen = first_of_each_class(source.labels, count)
        examples = (source[index] for index in chosen)
        splits[split] = write_split(directory, split, examples, _IMAGES)
    info = {
        "name": "fashion_mnist",
        "fields": {"image": "uint8 [28, 28, 1]", "label": "int"},
        "class_names": [
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ],
        "splits": splits,
        "source": "https://github.com/zalandoresearch/fashion-mnist",
        "licence": "MIT, see LICENSE",
        "attribution": "Fashion-MNIST, (c) 2017 Zalando SE. Han Xiao, Kashif Rasul, Roland "
        "Vollgraf, arXiv 1708.07747.",
        "subset": "the first examples of each class, in their original order",
        "examples_per_class": dict(per_class),
    }
    write_info(directory, info)
    copy_licence(folder, directory)


def make_banking77(folder: pathlib.Path, directory: pathlib.Path) -> None:
    """Writes all of BANKING77, its info.json and licence."""
    splits, names = {}, None
    for split in ("train", "test"):
        source = Text(path=str(folder / f"{split}.csv"), label="category", classes=names)
        names = source.class_names
        examples = (source[index] for index in range(len(source)))
        splits[split] = write_split(directory, split, examples, _TEXTS)
    info = {
        "name": "banking77",
        "fields": {"text": "str", "label": "int"},
        "class_names": list(names),
        "splits": splits,
        "source": "https://github.com/PolyAI-LDN/task-specific-datasets",
        "licence": "CC BY 4.0, see LICENSE",
        "attribution": "BANKING77, (c) 2020 PolyAI Limited. Iñigo Casanueva, Tadas Temčinas, "
        "Daniela Gerz, Matthew Henderson, Ivan Vulić, arXiv 2003.04807. Changed: stored as "
        "records, intents numbered in the order of their names.",
    }
    write_info(directory, info)
    copy_licence(folder, directory)


@dataclasses.dataclass(kw_only=True, eq=False)
class _Documents(Source):
    """Texts in memory."""

    texts: Sequence[str]

    def _count(self) -> int:
        return len(self.texts)

    def _read(self, index: int) -> dict[str, Any]:
        return {"text": self.texts[index]}


def make_peps(folder: pathlib.Path, directory: pathlib.Path) -> None:
    """Writes a slice of the PEPs as tokens, and the tokenizer.

    Raises:
      DataError: there are no PEPs in the folder.
    """
    files = sorted(folder.glob("pep-*.rst"))[::_EVERY_PEP]
    if len(files) < _EVERY_TEST:
        raise DataError(f"--peps: {len(files)} documents in {folder}; expected pep-*.rst files.")
    texts = [_RULE.sub("", file.read_text(encoding="utf-8")) for file in files]
    splits = {
        "train": [text for i, text in enumerate(texts) if i % _EVERY_TEST],
        "test": texts[::_EVERY_TEST],
    }
    questions = Sample(dataset="banking77", split="train")
    learned = [*splits["train"], *(questions[i]["text"] for i in range(len(questions)))]
    tokenizer = train_tokenizer(learned, "wordpiece", _VOCAB_SIZE, lowercase=True)
    shutil.rmtree(directory, ignore_errors=True)
    for split, documents in splits.items():
        source = _Documents(texts=documents)
        job = {"kind": "text", "count": len(source), "shards": 1, "sentences": True}
        recipe = TextRecipe(source, job, tokenizer, sentences=True)
        recipe.options = _TEXTS
        prepare(recipe, directory, split, threads=1)
    write_bytes(directory / "tokenizer.json", tokenizer.to_json().encode())
    write_bytes(directory / "LICENSE", _PEPS_LICENCE.encode())
    info = json.loads((directory / "info.json").read_text(encoding="utf-8"))
    info |= {
        "source": "https://github.com/python/peps",
        "licence": "public domain or CC0-1.0, see LICENSE",
        "attribution": "Python Enhancement Proposals, by their authors. Changed: lines of one "
        "repeated sign are left out; stored as tokens of tokenizer.json.",
        "subset": "every fifth document whose text states this licence; of those every tenth "
        "is in 'test'",
        "documents": [file.stem for file in files],
    }
    write_info(directory, info)


def make_emoji(folder: pathlib.Path, directory: pathlib.Path) -> None:
    """Writes the emoji without a skin tone with their captions, and a tokenizer of these.

    Args:
      folder: captions.jsonl with 'file', 'emoji', 'name' and 'keywords' in every line, the files,
        LICENSE-APACHE-2.0 of the images and cldr/LICENSE of the names.
      directory: where to write.

    Raises:
      DataError: there are no captions or no licence.
    """
    captions = folder / "captions.jsonl"
    if not captions.is_file():
        raise DataError(f"--noto-emoji: {folder} has no captions.jsonl.")
    lines = map(json.loads, captions.read_text(encoding="utf-8").splitlines())
    rows = [row for row in lines if "skin tone" not in row["name"]]
    test = rows[::_EVERY_TEST_EMOJI]
    train = [row for i, row in enumerate(rows) if i % _EVERY_TEST_EMOJI]
    splits = {}
    for split, chosen in (("train", train), ("test", test)):
        examples = (_emoji(folder, row) for row in chosen)
        splits[split] = write_split(directory, split, examples, _IMAGES)
    learned = [text for row in train for text in _captions(row)]
    tokenizer = train_tokenizer(learned, "wordpiece", _EMOJI_VOCAB_SIZE, lowercase=True)
    write_bytes(directory / "tokenizer.json", tokenizer.to_json().encode())
    info = {
        "name": "emoji",
        "fields": {
            "image": "an encoded file, RGB 72x72",
            "text": "list of str: the name; the name and keywords",
            "name": "str",
            "emoji": "str",
        },
        "splits": splits,
        "source": "https://github.com/googlefonts/noto-emoji, rasterised by "
        "https://github.com/emoj-info/noto; https://github.com/unicode-org/cldr-json",
        "licence": "images Apache-2.0, see LICENSE; names and keywords Unicode-3.0, see "
        "LICENSE-UNICODE",
        "attribution": "Noto Emoji, (c) Google LLC. Names and keywords: Unicode CLDR, (c) Unicode, "
        "Inc. Changed: images are composed over white.",
        "subset": "the emoji without a skin tone; every fifth is in 'test'",
    }
    write_info(directory, info)
    for name, copy in (("LICENSE-APACHE-2.0", "LICENSE"), ("cldr/LICENSE", "LICENSE-UNICODE")):
        if not (folder / name).is_file():
            raise DataError(f"{folder} has no {name} to ship beside the data.")
        shutil.copyfile(folder / name, directory / copy)


def _captions(row: Mapping[str, Any]) -> list[str]:
    return [row["name"], f"{row['name']}: {', '.join(row['keywords'])}"]


def _emoji(folder: pathlib.Path, row: Mapping[str, Any]) -> dict[str, Any]:
    pixels = decode((folder / row["file"]).read_bytes(), 3)
    text = _captions(row)
    file = _small_png(pixels)
    return {"image": file, "text": text, "name": row["name"], "emoji": row["emoji"]}


def _small_png(pixels: np.ndarray) -> bytes:
    """A PNG of the same pixels, with a palette where they have no more than 256 colours."""
    image = Image.fromarray(pixels)
    colours, where = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    if len(colours) <= 256:
        image = Image.fromarray(where.reshape(pixels.shape[:2]).astype(np.uint8), "P")
        image.putpalette(colours.tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


@dataclasses.dataclass(kw_only=True, eq=False)
class _Clips(Source):
    """Clips in memory: {'audio': int16 [samples], 'transcript', and maybe 'label', 'speaker'}."""

    clips: Sequence[Mapping[str, Any]]
    names: tuple[str, ...] | None = None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.names

    def _count(self) -> int:
        return len(self.clips)

    def _read(self, index: int) -> dict[str, Any]:
        return dict(self.clips[index])


def _write_clips(
    directory: pathlib.Path,
    splits: Mapping[str, Source],
    sample_rate: int,
    licence: str,
    more: Mapping[str, Any],
) -> None:
    """Writes clips of one rate as `tools.prepare_data --from audio` does, and their licence."""
    shutil.rmtree(directory, ignore_errors=True)
    for split, source in splits.items():
        job = {"kind": "audio", "count": len(source), "shards": 1, "sample_rate": sample_rate}
        recipe = AudioRecipe(source, job, sample_rate)
        recipe.options = _IMAGES
        prepare(recipe, directory, split, threads=1)
    write_bytes(directory / "LICENSE", licence.encode())
    info = json.loads((directory / "info.json").read_text(encoding="utf-8"))
    write_info(directory, {**info, **more})


def make_digits(folder: pathlib.Path, directory: pathlib.Path) -> None:
    """Writes recordings of the Free Spoken Digit Dataset, its official test split as 'test'.

    Raises:
      DataError: there are none in the folder.
    """
    splits: dict[str, list[Any]] = {"train": [], "test": []}
    for path in sorted(folder.glob("recordings/*_*_*.wav")):
        digit, speaker, number = path.stem.split("_")
        if int(number) >= _ALL_DIGITS:
            continue
        samples, rate = sound.decode(path.read_bytes())
        clip = {
            "audio": _rounded(sound.one_channel(samples, mix=False), _BITS),
            "sample_rate": rate,
            "transcript": _DIGITS[int(digit)],
            "label": int(digit),
            "speaker": speaker,
        }
        splits["test" if int(number) < _TEST_DIGITS else "train"].append(clip)
    if not all(splits.values()):
        raise DataError(f"--fsdd: {folder} has no recordings/DIGIT_SPEAKER_NUMBER.wav.")
    sources = {split: _Clips(clips=clips, names=_DIGITS) for split, clips in splits.items()}
    more = {
        "source": "https://github.com/Jakobovski/free-spoken-digit-dataset",
        "licence": "CC BY-SA 4.0, see LICENSE",
        "attribution": "Free Spoken Digit Dataset (FSDD), by Zohar Jackson (Jakobovski) and its "
        f"contributors. Changed: samples are rounded to {_BITS} bits below the peak of their clip, "
        "an error some 36 dB below the speech, and stored as FLAC.",
        "subset": f"the first {_ALL_DIGITS} recordings of each digit by each speaker; of those the "
        f"first {_TEST_DIGITS}, the official test split, are in 'test'",
    }
    _write_clips(directory, sources, 8000, _DIGITS_LICENCE, more)


def _rounded(waveform: np.ndarray, bits: int) -> np.ndarray:
    """int16 samples as multiples of a power of two, of which the largest has so many bits."""
    step = 1 << max(0, int(np.abs(waveform.astype(np.int32)).max()).bit_length() - bits)
    rounded = np.rint(waveform / step) * step
    return np.clip(rounded, -32768, 32768 - step).astype(np.int16)


def make_ljspeech(folder: pathlib.Path, directory: pathlib.Path) -> None:
    """Writes the shortest clips of LJSpeech at 16 kHz."""
    source = Audio(path=str(folder))
    chosen = np.sort(np.argsort(source.lengths(16000), kind="stable")[:_SHORTEST])
    clips = [source[index] for index in chosen]
    more = {
        "source": "https://keithito.com/LJ-Speech-Dataset",
        "licence": "public domain, see LICENSE",
        "attribution": "The LJ Speech Dataset, Keith Ito. Changed: resampled to "
        "16 kHz and stored as FLAC.",
        "subset": f"the {_SHORTEST} shortest clips of {len(source)}",
    }
    _write_clips(directory, {"test": _Clips(clips=clips)}, 16000, _LJSPEECH_LICENCE, more)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the samples that are asked for."""
    parser = Parser(__doc__.splitlines()[0])
    images, texts = ("--fashion-mnist", "--noto-emoji"), ("--banking77", "--peps")
    for flag in (*images, *texts, "--fsdd", "--ljspeech"):
        parser.add_argument(flag, type=pathlib.Path, metavar="FOLDER")
    flags = parser.parse(arguments)
    if not any(vars(flags).values()):
        raise ConfigError("make_samples: expected the folder of at least one data set.")
    if flags.fashion_mnist:
        each = {"train": 1000, "test": 200}
        make_fashion_mnist(flags.fashion_mnist, SAMPLES / "fashion_mnist", each)
    if flags.banking77:
        make_banking77(flags.banking77, SAMPLES / "banking77")
    if flags.peps:
        make_peps(flags.peps, SAMPLES / "peps")
    if flags.noto_emoji:
        make_emoji(flags.noto_emoji, SAMPLES / "emoji")
    if flags.fsdd:
        make_digits(flags.fsdd, SAMPLES / "digits")
    if flags.ljspeech:
        make_ljspeech(flags.ljspeech, SAMPLES / "ljspeech")
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
