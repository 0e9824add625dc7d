"""Writes the small data sets that ship with the project into encoders/data/samples/.

    python -m tools.make_samples --fashion-mnist FOLDER    # its four IDX files, gzipped or not

The same input gives the same records: the first 1,000 training and 200 test images of each class,
in their order.
"""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence

import numpy as np
from array_record.python import array_record_module

from encoders.data import records
from encoders.data.sources.sample import SAMPLES
from encoders.errors import DataError, exit_cleanly
from launch.flags import Parser
from tools.idx import IdxSource

# Large groups and slow compression: it is read into memory once, and every byte is in every clone.
_WRITER_OPTIONS = "group_size:100,brotli:11"


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """[N] labels -> sorted indices of the first `count` examples of every class."""
    chosen = [np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def make_fashion_mnist(
    folder: pathlib.Path, directory: pathlib.Path, per_class: Mapping[str, int]
) -> None:
    """Writes a Fashion-MNIST subset of so many examples per split, its info.json and licence."""
    directory.mkdir(parents=True, exist_ok=True)
    splits = {}
    for split, count in per_class.items():
        source = IdxSource(path=str(folder), split=split)
        chosen = first_of_each_class(source.labels, count)
        name = f"{split}-00000-of-00001.array_record"
        writer = array_record_module.ArrayRecordWriter(str(directory / name), _WRITER_OPTIONS)
        for index in chosen:
            writer.write(records.pack(source[index]))
        writer.close()
        shard = {"file": name, "count": len(chosen)}
        splits[split] = {"count": len(chosen), "shards": [shard]}
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
    (directory / "info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    licence = folder / "LICENSE"
    if not licence.is_file():
        raise DataError(f"--fashion-mnist: {folder} has no LICENSE to ship beside the data.")
    shutil.copyfile(licence, directory / "LICENSE")


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the samples."""
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--fashion-mnist", type=pathlib.Path, required=True, metavar="FOLDER")
    flags = parser.parse(arguments)
    make_fashion_mnist(flags.fashion_mnist, SAMPLES / "fashion_mnist", {"train": 1000, "test": 200})
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
