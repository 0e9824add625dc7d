"""Texts as records of token ids, with an index of lengths so that packing reads no text."""

from __future__ import annotations

import dataclasses
import io
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from encoders.data import records
from encoders.data.sentences import split_sentences
from encoders.data.sources import CorruptExample, Source
from encoders.data.token_store import INDEX_SUFFIX, TOKENIZER
from encoders.data.tokenizer import Tokenizer
from encoders.data.tokenizer_training import Kind, train_tokenizer
from encoders.errors import DataError
from tools.preparing.shards import Recipe, make_directory, write_bytes

_PIECE = 8192  # tokens of a record: reading a row reads little more than that row
_TRAINING_TEXT = 2 << 30  # characters: more make no better tokenizer


@dataclasses.dataclass
class TextRecipe(Recipe):
    """Documents in the layout of `encoders.data.token_store`.

    Attributes:
      tokenizer: makes the ids; special tokens that a text spells out are text.
      sentences: keep where sentences end.
    """

    tokenizer: Tokenizer
    sentences: bool = False

    def __post_init__(self) -> None:
        self._literal = self.tokenizer.literal()
        self._dtype = np.uint16 if self.tokenizer.vocabulary.size <= 1 << 16 else np.uint32

    def make(self, index: int) -> tuple[list[bytes], tuple[np.ndarray, list[int]]]:
        """The records of a document; its ids, and the lengths of its sentences."""
        text = self.source[index]["text"]
        parts = split_sentences(text) if self.sentences else [text]
        try:
            found = self._literal.batch_ids(parts)
        except TypeError as error:
            raise CorruptExample(f"not a text ({error})") from error
        ids = np.concatenate(found).astype(self._dtype)
        if not len(ids):
            raise CorruptExample("no tokens")
        pieces = [ids[start : start + _PIECE] for start in range(0, len(ids), _PIECE)]
        lengths = [len(part) for part in found if len(part)]
        return [records.pack({"ids": piece}) for piece in pieces], (ids, lengths)

    def finish(self, path: pathlib.Path, notes: list[Any]) -> dict[str, Any]:
        """Writes the index of a shard."""
        size = self.tokenizer.vocabulary.size
        arrays = {
            "lengths": np.array([len(ids) for ids, _ in notes], np.uint32),
            "frequencies": sum(
                (np.bincount(ids, minlength=size) for ids, _ in notes), np.zeros(size, np.int64)
            ).astype(np.uint64),
        }
        if self.sentences:
            arrays["sentence_counts"] = np.array([len(parts) for _, parts in notes], np.uint32)
            arrays["sentence_lengths"] = np.array(
                list(itertools.chain.from_iterable(parts for _, parts in notes)), np.uint32
            )
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_bytes(path.with_name(path.name + INDEX_SUFFIX), buffer.getvalue())
        return {"documents": len(notes), "tokens": int(arrays["lengths"].sum())}

    def amount(self, shards: list[dict[str, Any]]) -> str:
        documents, tokens = (sum(shard[key] for shard in shards) for key in ("documents", "tokens"))
        return f"{documents} documents, {tokens} tokens"

    def describe(self) -> dict[str, Any]:
        return {
            "fields": {"ids": f"{np.dtype(self._dtype).name} [up to {_PIECE}]"},
            "piece": _PIECE,
            "tokenizer": {
                "file": TOKENIZER,
                "hash": self.tokenizer.hash,
                "size": self.tokenizer.vocabulary.size,
            },
        }

    def check(self, info: dict[str, Any], directory: pathlib.Path) -> None:
        """Raises a DataError where other splits have another tokenizer."""
        found = info.get("tokenizer", {}).get("hash", self.tokenizer.hash)
        if found != self.tokenizer.hash:
            raise DataError(
                f"--tokenizer: {directory} holds tokens of another tokenizer; use its own, "
                f"{directory / TOKENIZER}."
            )
        if info["splits"] and "tokenizer" not in info:
            raise DataError(f"--to: {directory} holds a data set that is no text.")


def find_tokenizer(
    directory: pathlib.Path,
    source: Source,
    given: str | None,
    kind: Kind | None,
    vocab_size: int,
    lowercase: bool,
) -> Tokenizer:
    """The tokenizer that was given, or one trained on the source; a copy lies in the directory.

    One that lies there already, of a run that was interrupted or of another split, is not trained
    again.
    """
    make_directory(directory)
    path = directory / TOKENIZER
    if given is None and path.is_file():
        print(f"using {path}")
        return Tokenizer.load(str(path))
    if given is not None:
        tokenizer = Tokenizer.load(given)
    else:
        tokenizer = train_tokenizer(_Texts(source), kind, vocab_size, lowercase=lowercase)
        print(f"trained {path}: {tokenizer.vocabulary.size} tokens")
    if not path.is_file():  # one that lies there is compared by its hash
        write_bytes(path, tokenizer.to_json().encode())
    return tokenizer


class _Texts:
    """The usable texts of a source, as often as they are asked for, up to a limit in all."""

    def __init__(self, source: Source):
        self._source = source

    def __iter__(self) -> Iterator[str]:
        characters = 0
        for index in range(len(self._source)):
            try:
                text = self._source[index]["text"]
            except CorruptExample:
                continue  # counted when it is tokenised
            characters += len(text)
            if characters > _TRAINING_TEXT:
                return
            yield text
