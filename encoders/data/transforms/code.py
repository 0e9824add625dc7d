"""From code and its documentation to the fields that encoders of code take."""

from __future__ import annotations

import bisect
import dataclasses
import functools
from typing import Any, Literal

import numpy as np

from encoders.data.data_flow import Variable, data_flow
from encoders.data.sources.base import CorruptExample
from encoders.data.tokenizer import Tokenizer, padded
from encoders.errors import ConfigError

GRAPH = ("sees_all", "node_spans", "node_sources")  # fields of a row that GraphCodeBERT takes
Mode = Literal["encoder-only", "decoder-only", "encoder-decoder"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Code:
    preprocessing: Any

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Code may well spell special tokens, which then are text like any other."""
        return self.preprocessing.opened.literal()

    def check_room(self, field: str, needed: int) -> None:
        """Raises a ConfigError if the rows are too short."""
        if needed > self.preprocessing.max_length:
            raise ConfigError(
                f"{field}: with the special tokens and one of the code it makes {needed} tokens, "
                f"but preprocessing.max_length is {self.preprocessing.max_length}."
            )

    def encode(self, example: dict[str, Any], name: str) -> Any:
        """The library's encoding of a field, without special tokens.

        Raises:
          CorruptExample: there is no text in it.
        """
        text = example.get(name)
        try:
            found = self.tokenizer.inner.encode(text, add_special_tokens=False)
        except TypeError as error:  # None, bytes, or the half of a surrogate pair
            raise CorruptExample(f"field '{name}' is not a text ({error})") from error
        if not found.ids:
            raise CorruptExample(f"no text in field '{name}'")
        return found

    def framed(
        self, example: dict[str, Any], code: list[int], max_text: int, length: int
    ) -> tuple[list[int], int]:
        """Ids of [CLS] text [SEP] code [SEP], cut to a length, and where the code begins."""
        special = self.tokenizer.vocabulary
        ids = [special.cls_id]
        if example.get("text"):
            ids += [*self.encode(example, "text").ids[:max_text], special.sep_id]
        first = len(ids)
        return [*ids, *code[: length - first - 1], special.sep_id], first

    def fields(self, ids: list[int]) -> dict[str, np.ndarray]:
        """'ids' and 'segments' [T] int32, 'word_start' [T] bool."""
        length, row = self.preprocessing.max_length, np.asarray(ids, np.int32)
        return {
            "ids": padded(row, length, self.tokenizer.vocabulary.pad_id),
            "segments": padded(np.ones_like(row), length),
            "word_start": padded(self.tokenizer.word_starts(row), length),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bimodal(_Code):
    """[CLS] text [SEP] code [SEP], or [CLS] code [SEP] without a text (CodeBERT, arXiv 2002.08155).

    Attributes:
      max_text: tokens of the text that are kept; the code has the rest of the row.
      preprocessing: tokenizer and length (supplied).
    """

    max_text: int = 128

    def __post_init__(self) -> None:
        self.check_room("bimodal.max_text", self.max_text + 4)

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """{'code', maybe 'text'} -> with 'ids' and 'segments' [T] int32, 'word_start' [T] bool.

        Raises:
          CorruptExample: there is no code.
        """
        del rng
        code, length = self.encode(example, "code").ids, self.preprocessing.max_length
        ids, _ = self.framed(example, code, self.max_text, length)
        return {**example, **self.fields(ids)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFlow(_Code):
    """[CLS] text [SEP] code [SEP], and the variables of the code (GraphCodeBERT, arXiv 2009.08366).

    Variables whose tokens were cut off are left out, and so are those beyond `max_nodes`.

    Attributes:
      max_nodes: N, the last places of the row, which the variables have.
      max_text: tokens of the text that are kept; the code has the rest of the row.
      preprocessing: tokenizer and length of the row, nodes included (supplied).
    """

    max_nodes: int = 64
    max_text: int = 128

    def __post_init__(self) -> None:
        if self.max_nodes < 1:
            raise ConfigError(f"data_flow.max_nodes: expected 1 or more, got {self.max_nodes}.")
        self.check_room("data_flow.max_text and max_nodes", self.max_text + self.max_nodes + 4)

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """{'code', maybe 'text'} -> with what `GraphCodeBERT` takes.

        Returns:
          'ids' and 'segments' [T] int32, 'word_start' and 'sees_all' [T] bool, 'node_spans' [N, 2]
          int32 and 'node_sources' [N, N] bool; all zero where there is no node.

        Raises:
          CorruptExample: there is no code, or Python cannot parse it.
        """
        del rng
        special, length = self.tokenizer.vocabulary, self.preprocessing.max_length
        code = self.encode(example, "code")
        ids, first = self.framed(example, code.ids, self.max_text, length - self.max_nodes)
        found = self.fields(ids)
        variables = self.variables(example["code"])
        kept, offsets = {}, code.offsets  # number of a variable -> its tokens in the row
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
        frame = np.zeros(length, bool)
        frame[[0, first - 1, len(ids) - 1]] = True
        return {
            **example,
            **found,
            "sees_all": frame,
            "node_spans": spans,
            "node_sources": sources,
        }

    def variables(self, code: str) -> list[Variable]:
        """The graph of a piece of code."""
        try:
            return data_flow(code)
        except (SyntaxError, ValueError, RecursionError) as error:
            raise CorruptExample(f"its code cannot be parsed ({error})") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextOrCode(DataFlow):
    """[CLS] text or code [SEP], or [CLS] text [SEP] other [SEP]; variables where it is Python.

    A sentence is hardly ever Python, and a word is but has no variables.
    """

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """{'text', maybe 'other'} -> as of `DataFlow`."""
        if "other" in example:
            row = {"text": example.get("text"), "code": example["other"]}
        else:
            row = {"code": example.get("text")}
        found = super().__call__(row, rng)
        return {**example, **{name: found[name] for name in found if name not in row}}

    def variables(self, code: str) -> list[Variable]:
        try:
            return super().variables(code)
        except CorruptExample:
            return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixMode(_Code):
    """[CLS] <mode> [SEP] source [SEP], and maybe target [SEP] (UniXcoder, arXiv 2203.03850).

    Attributes:
      mode: 'encoder-only', every token sees every other; 'decoder-only', those before it; or
        'encoder-decoder', tokens of the target see the source and those before them.
      source: field with the text that is encoded, or written where there is no encoder.
      target: field with the text that is written, for 'encoder-decoder'.
      max_source: tokens of the source that are kept where there is a target.
      preprocessing: tokenizer, which must have <encoder-only> and so on, and length (supplied).
    """

    mode: Mode = "encoder-only"
    source: str = "code"
    target: str = "text"
    max_source: int = 256

    def __post_init__(self) -> None:
        if self.mode == "encoder-decoder":
            self.check_room("prefix_mode.max_source", self.max_source + 6)

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Adds 'ids' and 'segments' [T] int32, 'word_start' [T] bool and 'prefix', an int32.

        Raises:
          CorruptExample: there is no source, or no target.
          ConfigError: the tokenizer has no such mode.
        """
        del rng
        special, length = self.tokenizer.vocabulary, self.preprocessing.max_length
        mode_id = self.tokenizer.inner.token_to_id(f"<{self.mode}>")
        if mode_id is None:
            raise ConfigError(f"prefix_mode.mode: the tokenizer has no token '<{self.mode}>'.")
        ids = [special.cls_id, mode_id, special.sep_id]
        prefix = 0 if self.mode == "decoder-only" else length
        source = self.encode(example, self.source).ids
        if self.mode == "encoder-decoder":
            ids += [*source[: self.max_source], special.sep_id]
            prefix, source = len(ids), self.encode(example, self.target).ids
        ids += [*source[: length - len(ids) - 1], special.sep_id]
        return {**example, **self.fields(ids), "prefix": np.int32(prefix)}


def _tokens_of(offsets: list[tuple[int, int]], start: int, stop: int) -> tuple[int, int]:
    """The tokens [first, last) that have one of the characters [start, stop)."""
    first = bisect.bisect_right(offsets, start, key=lambda span: span[1])
    last = bisect.bisect_left(offsets, stop, key=lambda span: span[0])
    return first, last
