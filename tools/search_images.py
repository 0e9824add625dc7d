"""Search across images and texts, for tools.search: either finds either, with a contact sheet."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import numpy as np

from encoders.errors import CheckpointError, ConfigError, DataError, StorageError
from tools.embed import embed, image_preprocessing, open_input
from tools.texts import read_texts

_OF_TEXTS = ("pairs", "rerank", "vectors", "time_cross_encoder")


def holds_images(path: str) -> bool:
    """Whether a corpus is of images: tar files, prepared records, or a folder with images."""
    from encoders.data.sources.folder import list_images

    directory = pathlib.Path(path).expanduser()
    if path.endswith(".tar"):
        return True
    if not directory.is_dir():
        return False
    marks = (directory / "info.json").is_file() or any(directory.glob("*.tar"))
    return marks or bool(list_images(directory))


def search(encoder: Any, flags: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """What every query finds in the corpus, and what of the corpus could not be read.

    Raises:
      ConfigError, CheckpointError, DataError: a flag does not fit, the weights encode no such
        input, or a file cannot be read.
      StorageError: the contact sheet could not be written.
    """
    from encoders.evaluation.features import Labelled
    from encoders.evaluation.knn import neighbours

    for name in _OF_TEXTS:
        if getattr(flags, name):
            raise ConfigError(f"--{name.replace('_', '-')}: is for encoders of texts.")
    if encoder.preprocessing is None:
        why = encoder.metadata.get("no_preprocessing") or "they came without any"
        raise CheckpointError(f"--model {flags.model}: its weights say no preprocessing: {why}.")
    queries = [_Query(encoder, query) for query in flags.query]
    source = None
    if holds_images(flags.corpus):
        source = open_input(flags.corpus, flags.split, "--corpus")
        vectors, names, corrupt = _images(encoder, source, flags.batch_size)
        entries = [{"name": name} for name in names]
    else:
        texts = read_texts(flags.corpus, flags.field, "--corpus")
        _needs_pair(encoder, f"--corpus {flags.corpus}")
        vectors, corrupt = (
            encoder.embed_text(texts.texts, batch_size=flags.batch_size),
            texts.corrupt,
        )
        pairs = zip(texts.names, texts.texts, strict=True)
        entries = [{"name": name, "text": text} for name, text in pairs]
    bank = Labelled(vectors, np.arange(len(vectors), dtype=np.int32))
    count = min(flags.top, len(vectors))
    similarity, rows = neighbours(bank, np.stack([query.vector for query in queries]), count)
    results = [
        {
            "query": query.text,
            "found": [
                {"similarity": float(value), **entries[row]}
                for value, row in zip(values, numbers, strict=True)
            ],
        }
        for query, values, numbers in zip(queries, similarity, rows, strict=True)
    ]
    found = {"results": results}
    if source is not None:
        found["sheet"] = _show(flags.sheet, queries, results, source)
    return found, corrupt


class _One(list):
    """A list as a source."""

    def describe(self, index: int) -> str:
        return f"image {index}"


class _Query:
    """A text, or an image file."""

    def __init__(self, encoder: Any, query: str):
        from encoders.data import CorruptExample
        from encoders.data.sources.folder import IMAGE_SUFFIXES

        self.text = self.left = query
        if not query.lower().endswith(IMAGE_SUFFIXES):
            _needs_pair(encoder, f"--query '{query}'")
            self.vector = encoder.embed_text([query])[0]
            return
        try:
            example = {"image": pathlib.Path(query).expanduser().read_bytes()}
            self.left = _prepared(example, encoder)
        except OSError as error:
            raise DataError(f"--query {query}: cannot be read ({error.strerror}).") from error
        except CorruptExample as error:
            raise DataError(f"--query {query}: {error}.") from error
        [part] = embed(encoder, _One([example]), 1)
        if "features" not in part:
            raise CheckpointError("--model: does not pool, so images have no vector.")
        self.vector = part["features"][0]


def _needs_pair(encoder: Any, what: str) -> None:
    if encoder.module.modality != "image_text":
        kind = type(encoder.module).__name__
        raise CheckpointError(f"{what}: is text, and a {kind} encodes images only.")


def _prepared(example: dict[str, Any], encoder: Any) -> np.ndarray:
    """uint8 [H, W, C] as the encoder sees it, or whole where it gets patches."""
    for transform in image_preprocessing(encoder).picture_transforms():
        example = transform(example, np.random.default_rng(0))
    return example["image"]


def _images(encoder: Any, source: Any, batch_size: int) -> tuple[np.ndarray, list[str], list[str]]:
    """Vectors [N, E] and names of the images that can be read, and the names of the others."""
    parts = list(embed(encoder, source, min(batch_size, len(source))))
    if "features" not in parts[0]:
        raise CheckpointError("--model: does not pool, so images have no vector.")
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return joined["features"], joined["names"].tolist(), joined["corrupt"].tolist()


def _show(path: str, queries: list[_Query], results: list[dict[str, Any]], source: Any) -> str:
    """Writes the contact sheet, and adds captions to what was found where it has some.

    The sheet shows whole images, not what the encoder cuts out of them.
    """
    from PIL import Image

    from encoders.data.transforms.geometry import Decode
    from encoders.evaluation.contact_sheet import contact_sheet

    rows = {source.describe(row): row for row in range(len(source))}
    decode = Decode(channels=3)
    lines = []
    for query, result in zip(queries, results, strict=True):
        shown = [source[rows[entry["name"]]] for entry in result["found"]]
        for entry, example in zip(result["found"], shown, strict=True):
            if texts := example.get("text"):
                entry["text"] = texts if isinstance(texts, str) else texts[0]
        lines.append((query.left, [(decode(example, None)["image"], False) for example in shown]))
    try:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(contact_sheet(lines)).save(path, format="PNG")
    except OSError as error:
        raise StorageError(f"--sheet {path}: could not be written ({error}).") from error
    return path
