"""Writes a data set as ArrayRecord shards that train at full speed from any disk.

    python -m tools.prepare_data --from folder --input PHOTOS --to DIR --split train
    python -m tools.prepare_data --from tfds --input imagenet2012 --to DIR --split train
    python -m tools.prepare_data --from pairs --input captions.csv --to DIR --text-field caption
    python -m tools.prepare_data --from idx --input FOLDER --to DIR --split test
    python -m tools.prepare_data --from text --input 'books/*.txt' --unit file --to DIR \\
        --train-tokenizer wordpiece --vocab-size 30522 --sentences
    python -m tools.prepare_data --from text --input wiki.jsonl --to DIR --tokenizer BERT_DIR
    python -m tools.prepare_data --from audio --input LibriSpeech/dev-clean --to DIR --split test

Read it with data.source = dict(name='array_record', path=DIR, split='train'), and texts, which
become token ids, with name='tokens' and preprocessing.tokenizer=DIR, and clips of sound, which come
to one rate, with name='audio'. Run once per split. An
interrupted run goes on where it stopped when the same command is run again: finished shards are
kept. Inputs that cannot be decoded are left out, counted and named, as are empty texts, texts that
are no UTF-8, and clips of several channels unless --mix is given.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence
from typing import Any, get_args

from encoders.data.pipeline import available_cores
from encoders.data.sources import Source
from encoders.data.sources.audio import Audio
from encoders.data.sources.folder import Folder
from encoders.data.sources.pairs import Pairs
from encoders.data.sources.tar import Tar
from encoders.data.sources.text import Text
from encoders.data.sources.tfds import Tfds, open_builder
from encoders.data.text_files import Unit
from encoders.data.tokenizer_training import Kind
from encoders.errors import ConfigError, DataError, exit_cleanly
from launch.flags import Parser
from tools.idx import IdxSource
from tools.preparing.audio import AudioRecipe
from tools.preparing.images import ImageRecipe
from tools.preparing.shards import Recipe, prepare, shard_count
from tools.preparing.texts import TextRecipe, find_tokenizer

_OF_IMAGES = ("image_size", "quality")
_OF_TEXTS = ("unit", "tokenizer", "train_tokenizer", "vocab_size", "lowercase", "sentences")
_OF_SOUND = ("rate", "mix")
_READ = {  # options that a kind of input reads; the others read those of images
    "text": (*_OF_TEXTS, "text_field"),
    "pairs": (*_OF_IMAGES, "text_field", "image_field", "folder"),
    "tfds": (*_OF_IMAGES, *_OF_SOUND, "text_field"),
    "audio": (*_OF_SOUND, "folder"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepares one split."""
    flags = _parser().parse(arguments)
    read = _READ.get(flags.kind, _OF_IMAGES)
    for name in sorted({name for names in _READ.values() for name in names} - {*read}):
        if getattr(flags, name):
            raise ConfigError(f"--{name.replace('_', '-')}: means nothing to --from {flags.kind}.")
    for name in ("shards", "image_size", "quality", "vocab_size", "threads", "rate"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: expected a number from 1, got {value}.")
    directory = pathlib.Path(flags.to)
    try:
        recipe = _texts(flags, directory) if flags.kind == "text" else _others(flags)
        return prepare(recipe, directory, flags.split, flags.threads)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last finished shard", file=sys.stderr)
        return 130


def _parser() -> Parser:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--from",
        dest="kind",
        required=True,
        choices=("folder", "tar", "tfds", "idx", "pairs", "text", "audio"),
        help="kind of input",
    )
    parser.add_argument(
        "--input",
        required=True,
        help="folder, tar pattern, name in TFDS, folder of IDX files, pattern of texts or pairs, "
        "folder or table of clips",
    )
    parser.add_argument("--to", required=True, metavar="DIR", help="directory to write")
    parser.add_argument("--split", default="train", help="its name in DIR; also the split to read")
    parser.add_argument("--shards", type=int, help="default: one per 8,192 examples")
    parser.add_argument("--threads", type=int, default=available_cores())
    images = parser.add_argument_group("images")
    images.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="shrink larger images to this longer side"
    )
    images.add_argument("--quality", type=int, help="of the JPEGs that are shrunk; default 95")
    images.add_argument("--data-dir", help="of TFDS; default ~/tensorflow_datasets")
    images.add_argument(
        "--download", action="store_true", help="of TFDS: download it first, which needs TensorFlow"
    )
    pairs = parser.add_argument_group("pairs of an image and its captions")
    pairs.add_argument("--image-field", help="column of the image's path; default 'image'")
    pairs.add_argument("--folder", help="of images or clips in a table; default: that of the table")
    sound = parser.add_argument_group("clips of sound")
    sound.add_argument("--rate", type=int, help="samples per second of the result; default 16,000")
    sound.add_argument("--mix", action="store_true", help="average channels")
    texts = parser.add_argument_group("texts")
    texts.add_argument(
        "--unit",
        choices=get_args(Unit),
        help="what one document of a txt file is; default: what stands between blank lines",
    )
    texts.add_argument("--text-field", help="column or field of the text; default 'text'")
    texts.add_argument("--tokenizer", metavar="PATH", help="tokenizer.json, or directory with one")
    texts.add_argument("--train-tokenizer", choices=get_args(Kind), help="or train one")
    texts.add_argument("--vocab-size", type=int, help="of the trained one; default 32,768")
    texts.add_argument("--lowercase", action="store_true", help="the trained one drops case")
    texts.add_argument("--sentences", action="store_true", help="keep where sentences end")
    return parser


def _others(flags: Any) -> Recipe:
    source = _open(flags)
    rate = source.audio_rate if isinstance(source, Tfds) else None
    if flags.kind != "audio" and rate is None:
        return _images(flags, source)
    job = {
        "kind": flags.kind,
        "input": flags.input,
        "count": len(source),
        "shards": shard_count(flags.shards, len(source)),
        "sample_rate": flags.rate or 16000,
        "mix": flags.mix,
    }
    return AudioRecipe(source, job, job["sample_rate"], flags.mix, rate or None)


def _images(flags: Any, source: Source) -> Recipe:
    for name in _OF_SOUND:
        if getattr(flags, name):
            raise ConfigError(f"--{name}: '{flags.input}' holds images, no sound.")
    quality = flags.quality or 95
    captions = {} if flags.text_field is None else {"text_field": flags.text_field}
    job = {
        "kind": flags.kind,
        "input": flags.input,
        **captions,
        "count": len(source),
        "shards": shard_count(flags.shards, len(source)),
        "image_size": flags.image_size,
        "quality": quality,
    }
    return ImageRecipe(source, job, flags.image_size, quality)


def _texts(flags: Any, directory: pathlib.Path) -> Recipe:
    if (flags.tokenizer is None) == (flags.train_tokenizer is None):
        raise ConfigError("--tokenizer: expected either it or --train-tokenizer.")
    names = {"other": None, "label": None, "score": None, "text": flags.text_field or "text"}
    source = Text(path=flags.input, unit=flags.unit or "blank_line", **names)
    size, lowercase = flags.vocab_size or 32768, flags.lowercase
    tokenizer = find_tokenizer(
        directory, source, flags.tokenizer, flags.train_tokenizer, size, lowercase
    )
    job = {
        "kind": "text",
        "input": flags.input,
        "count": len(source),
        "shards": shard_count(flags.shards, len(source)),
        "unit": source.unit,
        "text_field": source.text,
        "tokenizer": tokenizer.hash,
        "sentences": flags.sentences,
    }
    return TextRecipe(source, job, tokenizer, flags.sentences)


def _open(flags: Any) -> Source:
    if flags.kind == "folder":
        return Folder(path=flags.input)
    if flags.kind == "audio":
        return Audio(path=flags.input, folder=flags.folder)
    if flags.kind == "tar":
        return Tar(path=flags.input)
    if flags.kind == "pairs":
        columns = {"image": flags.image_field or "image", "text": flags.text_field or "text"}
        return Pairs(path=flags.input, folder=flags.folder, **columns)
    if flags.kind == "idx":
        return IdxSource(path=flags.input, split=flags.split)
    if flags.download:
        _download(flags.input, flags.data_dir)
    return Tfds(
        dataset=flags.input,
        split=flags.split,
        data_dir=flags.data_dir,
        text_field=flags.text_field,
    )


def _download(dataset: str, data_dir: str | None) -> None:
    try:
        open_builder(dataset, data_dir).download_and_prepare(file_format="array_record")
    except ImportError as error:
        raise DataError(
            f"--download: TFDS prepares '{dataset}' by TensorFlow ({error}); pip install "
            "tensorflow-cpu, on any machine: reading the result needs none."
        ) from error
    # No network, no space, or (AssertionError) files that TFDS wants to be downloaded by hand.
    except (OSError, AssertionError) as error:
        raise DataError(f"--download: TFDS cannot prepare '{dataset}' ({error}).") from error


if __name__ == "__main__":
    exit_cleanly(main)
