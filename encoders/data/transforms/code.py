"""From code and its documentation to the fields that encoders of code take."""

from __future__ import annotations

import bisect
import dataclasses
from typing import Any, Literal

import numpy as np

from encoders.data.data_flow import data_flow
from encoders.data.sources.base import CorruptExample
from encoders.errors import ConfigError

Mode = Literal["encoder-only", "decoder-only", "encoder-decoder"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bimodal:
    """[CLS] text [SEP] code [SEP], or [CLS] code [SEP] without a text (CodeBERT, arXiv 2002.08155).

    Attributes:
      max_text: tokens of the text that are kept; the code has the rest of the row.
      preprocessing: tokenizer and length (supplied).
    """

    max_text: int = 128
    preprocessing: Any

    def __post_init__(self) -> None:
        _check_room("bimodal.max_text", self.max_text + 4, self.preprocessing.max_length)

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """{'code', maybe 'text'} -> with 'ids' and 'segments', each [T] int32.

        Raises:
          CorruptExample: there is no code.
        """
        del rng
        tokenizer = self.preprocessing.opened
        text = tokenizer.ids(example.get("text", ""))[: self.max_text]
        ids, _ = _framed(tokenizer, text, _code_ids(tokenizer, example)[0], self._length)
        return {**example, **_padded(ids, self._length, tokenizer.vocabulary.pad_id)}

    @property
    def _length(self) -> int:
        return self.preprocessing.max_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFlow:
    """[CLS] text [SEP] code [SEP] and then the variables of the code (GraphCodeBERT, section 4.1).

    Variables whose tokens were cut off are left out, and so are those beyond `max_nodes`.

    Attributes:
      max_nodes: N, the last places of the row, which the variables have.
      max_text: tokens of the text that are kept; the code has the rest of the row.
      preprocessing: tokenizer and length of the row, nodes included (supplied).
    """

    max_nodes: int = 64
    max_text: int = 128
    preprocessing: Any

    def __post_init__(self) -> None:
        if self.max_nodes < 1:
            raise ConfigError(f"data_flow.max_nodes: expected 1 or more, got {self.max_nodes}.")
        room = self.max_text + self.max_nodes + 4
        _check_room("data_flow.max_text", room, self.preprocessing.max_length)

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Adds what `GraphCodeBERT` takes.

        Returns:
          'ids' and 'segments' [T] int32, 'sees_all' [T] bool, 'node_spans' [N, 2] int32 and
          'node_sources' [N, N] bool, rows without a node all zero.

        Raises:
          CorruptExample: there is no code, or Python cannot parse it.
        """
        del rng
        tokenizer, length = self.preprocessing.opened, self.preprocessing.max_length
        special = tokenizer.vocabulary
        code, offsets = _code_ids(tokenizer, example)
        text = tokenizer.ids(example.get("text", ""))[: self.max_text]
        ids, first = _framed(tokenizer, text, code, length - self.max_nodes)
        found = _padded(ids, length, special.pad_id)
        try:
            variables = data_flow(example["code"])
        except (SyntaxError, ValueError, RecursionError) as error:
            raise CorruptExample(f"its code cannot be parsed ({error})") from error

        kept = {}  # number of a variable -> its tokens in the row
        for number, variable in enumerate(variables):
            start, stop = _tokens_of(offsets, variable.start, variable.stop)
            if start < stop and first + stop < len(ids) and len(kept) < self.max_nodes:
                kept[number] = (first + start, first + stop)
        place = {number: index for index, number in enumerate(kept)}
        spans = np.zeros((self.max_nodes, 2), np.int32)
        sources = np.zeros((self.max_nodes, self.max_nodes), bool)
        for number, index in place.items():
            spans[index] = kept[number]
            sources[index, [place[s] for s in variables[number].sources if s in place]] = True
        nodes = slice(length - self.max_nodes, length - self.max_nodes + len(kept))
        found["ids"][nodes] = special.unk_id
        found["segments"][nodes] = 1
        frame = np.isin(found["ids"], (special.cls_id, special.sep_id)) & (found["segments"] > 0)
        return {
            **example,
            **found,
            "sees_all": frame,
            "node_spans": spans,
            "node_sources": sources,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixMode:
    """[CLS] <mode> [SEP] source [SEP], or source [SEP] target [SEP] (UniXcoder, section 3.1).

    Attributes:
      mode: 'encoder-only', every token sees every other; 'decoder-only', those before it; or
        'encoder-decoder', tokens of the target see the source and those before them.
      source: field with the text that is encoded.
      target: field with the text that is written, for 'encoder-decoder'.
      max_source: tokens of the source that are kept where there is a target.
      preprocessing: tokenizer, which must have <encoder-only> and so on, and length (supplied).
    """

    mode: Mode = "encoder-only"
    source: str = "code"
    target: str = "text"
    max_source: int = 256
    preprocessing: Any

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Adds 'ids' and 'segments', each [T] int32, and 'prefix', an int32.

        Raises:
          CorruptExample: there is no source, or no target.
          ConfigError: the tokenizer has no such mode.
        """
        del rng
        tokenizer, length = self.preprocessing.opened, self.preprocessing.max_length
        special, token = tokenizer.vocabulary, f"<{self.mode}>"
        mode_id = tokenizer.inner.token_to_id(token)
        if mode_id is None:
            raise ConfigError(f"prefix_mode.mode: the tokenizer has no token '{token}'; add it.")
        parts = [tokenizer.ids(_text(example, self.source))]
        if self.mode == "encoder-decoder":
            _check_room("prefix_mode.max_source", self.max_source + 6, length)
            parts = [parts[0][: self.max_source], tokenizer.ids(_text(example, self.target))]
        ids = [special.cls_id, mode_id, special.sep_id]
        prefix = {"encoder-only": length, "decoder-only": 0}.get(self.mode)
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            room = length - 1 - len(ids) if last else len(part)
            ids += [*part[:room], special.sep_id]
            if not last:
                prefix = len(ids)
        found = _padded(ids, length, special.pad_id)
        return {**example, **found, "prefix": np.int32(prefix)}


def _check_room(where: str, needed: int, length: int) -> None:
    if needed > length:
        raise ConfigError(
            f"{where}: with the special tokens and room for code it takes {needed} tokens, but "
            f"preprocessing.max_length is {length}."
        )


def _text(example: dict[str, Any], name: str) -> str:
    if not isinstance(example.get(name), str) or not example[name].strip():
        raise CorruptExample(f"no text in field '{name}'")
    return example[name]


def _code_ids(tokenizer: Any, example: dict[str, Any]) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of the code and the characters [start, stop) that each stands for."""
    encoded = tokenizer.inner.encode(_text(example, "code"), add_special_tokens=False)
    return encoded.ids, encoded.offsets


def _framed(tokenizer: Any, text: Any, code: list[int], length: int) -> tuple[list[int], int]:
    """Ids of the row, and where the code begins in it."""
    special = tokenizer.vocabulary
    ids = [special.cls_id]
    if len(text):
        ids += [*map(int, text), special.sep_id]
    first = len(ids)
    return [*ids, *code[: length - first - 1], special.sep_id], first


def _padded(ids: list[int], length: int, pad_id: int) -> dict[str, np.ndarray]:
    found = np.full(length, pad_id, np.int32)
    found[: len(ids)] = ids
    segments = np.zeros(length, np.int32)
    segments[: len(ids)] = 1
    return {"ids": found, "segments": segments}


def _tokens_of(offsets: list[tuple[int, int]], start: int, stop: int) -> tuple[int, int]:
    """The tokens [first, last) that have one of the characters [start, stop)."""
    first = bisect.bisect_right(offsets, start, key=lambda span: span[1])
    last = bisect.bisect_left(offsets, stop, key=lambda span: span[0])
    return first, last
