"""Features of images, texts or clips: python -m tools.embed --model M --input IN --output X.npz

Images are prepared as the weights expect. The file holds:

  features     [N, D] float32, the encoder's pooled output, if it pools, or of two towers the vector
               that is compared with those of texts; of --layer, that block's class token, or the
               mean of its patches where the encoder pools in another way
  tokens       [N, T, D] float32, with --tokens: all tokens, of the last layer or of --layer
  names        [N] file names, or shards and record numbers
  labels       [N] int32, and class_names, where the input has them
  corrupt      [K] names of images that could not be read; they are in no other array

With --map their thumbnails are laid out on a page by the first two principal components.

Texts (of txt, jsonl, csv, tsv and parquet) are read with the tokenizer that travels with the
weights, and pooled and normalised as they say. The file holds:

  vectors      [N, D] float32
  names        [N] the column 'id', or the number of the row, from 0
  corrupt      [K] where a text was empty or not valid UTF-8, and left out

Clips of sound (a folder, a table, a prepared data set, or one file) are resampled to the rate that
the weights expect, and several channels averaged. The file holds what it does of images, but that
`features` are means over the real frames, of the last layer or of --layer, and with --tokens

  frames       [F, D] float32, of all clips one after the other
  lengths      [N] int32, how many of them each clip has

Where --output is no .npz file, it is a folder of one .npy file [T, D] for each clip, named as the
clip is: what ABX tests of frames (ZeroSpeech) read.
"""

from __future__ import annotations

import argparse
import collections
import logging
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from encoders.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    exit_cleanly,
)
from launch.flags import Parser
from tools.clips import limit_seconds
from tools.embed_clips import embed_clips
from tools.embedding_map import write_map
from tools.files import write
from tools.texts import read_texts, report_corrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Embeds every image, text or clip of the input and writes one .npz file."""
    parser = Parser(__doc__)
    parser.add_argument("--model", required=True, help="a run, a checkpoint, or other weights")
    parser.add_argument(
        "--input", required=True, help="a folder, tar shards, ArrayRecord; texts; clips"
    )
    parser.add_argument("--output", required=True, help="the .npz file to write")
    parser.add_argument("--map", help="also an .html file: a map of the images by their features")
    parser.add_argument("--layer", type=int, help="the block to read, negative from the end")
    parser.add_argument("--tokens", action="store_true", help="also write all tokens")
    parser.add_argument(
        "--batch-size", type=int, default=64, help="images, texts or clips per step"
    )
    parser.add_argument("--split", default="train", help="of ArrayRecord")
    parser.add_argument("--field", default="text", help="column of the text")
    limit_seconds(parser)
    flags = parser.parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    output = pathlib.Path(flags.output)
    if output.suffix not in (".npz", ""):
        raise ConfigError(f"--output {output}: expected a name that ends in .npz.")
    if flags.batch_size < 1:
        raise ConfigError(f"--batch-size: expected a number from 1, got {flags.batch_size}.")
    if flags.map is not None and pathlib.Path(flags.map).suffix != ".html":
        raise ConfigError(f"--map {flags.map}: expected a name that ends in .html.")
    # Imported late: a misspelt flag should not wait for jax.
    import encoders
    from encoders.training.progress import Progress

    encoder = encoders.load(flags.model)
    if encoder.module.modality == "audio":
        return embed_clips(encoder, flags, output)
    if output.suffix != ".npz":
        raise ConfigError(f"--output {output}: expected a name that ends in .npz.")
    if encoder.module.modality == "text":
        return _embed_texts(encoder.embed, flags, output)
    pair = encoder.module.modality == "image_text"
    if pair and pathlib.Path(flags.input).suffix in (".txt", ".jsonl", ".csv", ".tsv", ".parquet"):
        return _embed_texts(encoder.embed_text, flags, output)
    source = open_input(flags.input, flags.split)
    if encoder.preprocessing is None:
        why = encoder.metadata.get("no_preprocessing") or "they came without any"
        raise CheckpointError(f"--model {flags.model}: its weights say no preprocessing: {why}.")
    if pair and (flags.tokens or flags.layer is not None):
        raise ConfigError("--tokens and --layer: two towers give one vector for an image.")
    if not pair and not flags.tokens and flags.layer is None and encoder.module.pool == "none":
        raise ConfigError("--model does not pool; add --tokens, or --layer to read a block.")
    found = collections.defaultdict(list)
    done, began = 0, time.monotonic()
    rows = min(flags.batch_size, len(source))
    with Progress(-(-len(source) // rows), stream=sys.stderr) as progress:
        parts = embed(encoder, source, rows, flags.layer, flags.tokens)
        for step, part in enumerate(parts, start=1):
            for name, values in part.items():
                found[name].append(values)
            done += len(part["names"])
            speed = done / (time.monotonic() - began)
            progress.update(step, {"train/examples_per_second": speed})
    arrays = {name: np.concatenate(parts) for name, parts in found.items()}
    if "labels" in arrays and source.class_names is not None:
        arrays["class_names"] = np.asarray(source.class_names)
    write(output, arrays)
    shapes = ", ".join(
        f"{k} {list(v.shape)}" for k, v in arrays.items() if k in ("features", "tokens")
    )
    print(f"wrote {output}: {shapes}")
    if flags.map is not None:
        if "features" not in arrays:
            raise ConfigError("--map: needs features, and --model does not pool.")
        title = f"{flags.input} by {flags.model}"
        shown = write_map(
            pathlib.Path(flags.map), title, source, arrays["names"], arrays["features"]
        )
        print(f"wrote {flags.map}: {shown} images")
    if len(arrays["corrupt"]):
        print(f"{len(arrays['corrupt'])} corrupt images left out, such as {arrays['corrupt'][0]}")
    return 0


def _embed_texts(make: Callable, flags: argparse.Namespace, output: pathlib.Path) -> int:
    if flags.map is not None:
        raise ConfigError("--map: is for images; texts have no pictures.")
    if flags.tokens or flags.layer is not None:
        raise ConfigError("--tokens and --layer: are for images; a text has one vector.")
    found = read_texts(flags.input, flags.field, "--input")
    vectors = make(found.texts, batch_size=flags.batch_size)
    arrays = {"vectors": vectors, "names": found.names, "corrupt": found.corrupt}
    write(output, {k: np.asarray(v, np.str_) if k != "vectors" else v for k, v in arrays.items()})
    print(f"wrote {output}: vectors {list(vectors.shape)}")
    report_corrupt(found.corrupt)
    return 0


def open_input(path: str, split: str, flag: str = "--input") -> Any:
    """A source for a path: ArrayRecord with its info.json, tar files, or a folder of images.

    Args:
      path: of the files.
      split: of ArrayRecord.
      flag: of the command line that the path comes from, named in errors.

    Raises:
      DataError: nothing there that can be read.
    """
    from encoders.data import SOURCES

    directory = pathlib.Path(path).expanduser()
    if directory.is_file() and directory.suffix != ".tar":
        raise DataError(f"{flag} {path}: is a file; give the folder it is in.")
    if (directory / "info.json").is_file():
        return SOURCES["array_record"](path=path, split=split)
    if directory.suffix == ".tar" or (directory.is_dir() and any(directory.glob("*.tar"))):
        return SOURCES["tar"](path=path)
    return SOURCES["folder"](path=path)


def embed(
    encoder: Any, source: Any, batch_size: int, layer: int | None = None, tokens: bool = False
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the arrays of the output file, one batch after the other, in the source's order."""
    from encoders.data import eval_batches
    from encoders.types import Encoded

    previous = None
    layers = () if layer is None else (layer,)
    pair = encoder.module.modality == "image_text"
    for batch in eval_batches(source, image_preprocessing(encoder).eval_transforms(), batch_size):
        shapes = batch.get("shapes")
        if pair:
            out = Encoded(None, None, encoder.embed_image(batch["image"], shapes=shapes))
        else:
            out = encoder(batch["image"], layers=layers, shapes=shapes)
        if previous is not None:  # the device computes this batch while the host copies the last
            yield _collect(*previous, encoder, source, tokens)
        previous = out, batch
    yield _collect(*previous, encoder, source, tokens)


def image_preprocessing(encoder: Any) -> Any:
    """What an encoder of images, or the image tower of two, expects."""
    both = encoder.module.modality == "image_text"
    return encoder.preprocessing.image if both else encoder.preprocessing


def _collect(
    out: Any, batch: dict[str, np.ndarray], encoder: Any, source: Any, tokens: bool
) -> dict[str, np.ndarray]:
    """One batch's arrays on the host, without padding and corrupt images."""
    valid, rows = batch["valid"], batch["row"]
    features, read = out.pooled, out.tokens
    if out.hidden:
        [read] = out.hidden.values()
        by_class_token = encoder.module.pool == "cls"
        features = read[:, 0] if by_class_token else read[:, out.num_prefix :].mean(1)
    arrays = {"names": np.array([source.describe(row) for row in rows[valid]], np.str_)}
    if features is not None:
        arrays["features"] = np.asarray(features, np.float32)[valid]
    if tokens:
        arrays["tokens"] = np.asarray(read, np.float32)[valid]
    if "label" in batch:
        arrays["labels"] = batch["label"][valid].astype(np.int32)
    broken = rows[~valid & (rows < len(source))]
    arrays["corrupt"] = np.array([source.describe(row) for row in broken], np.str_)
    return arrays


if __name__ == "__main__":
    exit_cleanly(main)
