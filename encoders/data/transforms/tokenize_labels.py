"""Texts with labels inside them: answers within a text, and tags of its words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from encoders.data.sources.base import CorruptExample


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizeAnswer:
    """A question and the text that its answer is a part of.

    Of a text that is too long, a window from its token `first` on is taken (see
    `evaluation.windows`); an answer that is not wholly in it counts as none. A question may take
    half of the room.

    Attributes:
      preprocessing: tokenizer and length (supplied).
    """

    preprocessing: Any

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """{'text', 'other', 'answers', 'starts', maybe 'first'} -> what encoders take, and places.

        'answer' [2] int32 is the place in the row of its first and last token, (0, 0) for none;
        'context' [2] int32 that of the text's first token, and one after its last.
        """
        del rng
        tokenizer, length = self.preprocessing.opened, self.preprocessing.max_length
        question = tokenizer.ids(example["text"])
        context = tokenizer.inner.encode(example["other"], add_special_tokens=False)
        question = question[: longest_question(tokenizer, length)]
        before, between, after = around(tokenizer)
        room = length - before - between - after - len(question)
        begin = int(example.get("first", 0))
        ids = np.asarray(context.ids, np.int32)[begin : begin + room]
        offsets = context.offsets[begin : begin + room]
        first = before + len(question) + between
        found = frame([question, ids], self.preprocessing)
        answer = (0, 0)
        if len(example["answers"]):
            start = int(example["starts"][0])
            stop = start + len(example["answers"][0])
            answer = token_span(offsets, start, stop)
            answer = (0, 0) if answer is None else tuple(first + place for place in answer)
        found["answer"] = np.array(answer, np.int32)
        found["context"] = np.array([first, first + len(ids)], np.int32)
        kept = {k: v for k, v in example.items() if k not in ("answers", "starts", "text", "other")}
        return {**kept, **found}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizeTags:
    """Words that stand between white space, and a tag for each.

    The text is tokenised as a whole, as in pretraining: tokenizers that mark spaces give other
    tokens for words on their own.

    Attributes:
      preprocessing: tokenizer and length (supplied).
      names: the tags, in the order of their numbers.
    """

    preprocessing: Any
    names: Sequence[str]

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """{'text', 'tags'} -> what encoders take, and 'tags' [T] int32.

        The tag of a word stands at its first token; all other tokens have -1.

        Raises:
          CorruptExample: there are not as many tags as words, or one is unknown.
        """
        del rng
        tokenizer, length = self.preprocessing.opened, self.preprocessing.max_length
        words, tags = example["text"].split(), tag_names(example["tags"])
        if len(words) != len(tags):
            raise CorruptExample(f"{len(words)} words, but {len(tags)} tags")
        unknown = [tag for tag in tags if tag not in self.names]
        if unknown:
            raise CorruptExample(f"unknown tag '{unknown[0]}'")
        encoded = tokenizer.inner.encode(" ".join(words), add_special_tokens=False)
        before, _, after = around(tokenizer, pair=False)
        room = length - before - after
        ids = np.asarray(encoded.ids, np.int32)[:room]
        numbers = np.full(length, -1, np.int32)
        for place, word in first_tokens(encoded.offsets[: len(ids)], words):
            numbers[before + place] = self.names.index(tags[word])
        kept = {k: v for k, v in example.items() if k not in ("text", "tags")}
        return {**kept, **frame([ids], self.preprocessing), "tags": numbers}


def tag_names(tags: str | Sequence[str]) -> list[str]:
    """Tags as a list, from one or from names between white space."""
    return tags.split() if isinstance(tags, str) else [str(tag) for tag in tags]


def frame(parts: Sequence[np.ndarray], preprocessing: Any) -> dict[str, np.ndarray]:
    """What encoders take of one text or two that fit, each [T]: ids, segments, token types."""
    tokenizer, length = preprocessing.opened, preprocessing.max_length
    fields = tokenizer.fields(parts, length, token_types=preprocessing.token_types)
    del fields["word_start"]
    return fields


def around(tokenizer: Any, pair: bool = True) -> tuple[int, int, int]:
    """How many special tokens stand before the first text, between the two, and at the end."""
    marks = [np.array([mark], np.int32) for mark in ((-1, -2) if pair else (-1,))]
    ids = tokenizer.assemble(marks, 64)[0].tolist()
    first, last = ids.index(-1), ids.index(-2 if pair else -1)
    return first, max(last - first - 1, 0), len(ids) - last - 1


def longest_question(tokenizer: Any, length: int) -> int:
    """Tokens that a question may have beside a text, half of the room in a row of `length`."""
    return (length - sum(around(tokenizer))) // 2


def first_tokens(offsets: Sequence[tuple[int, int]], words: Sequence[str]) -> list[tuple[int, int]]:
    """(token, word) for the first token of each word, of words that one space stands between.

    Args:
      offsets: characters of each token; a space before a word may count as the token's.
      words: the words.
    """
    found, place, start = [], 0, 0
    for number, word in enumerate(words):
        while place < len(offsets) and offsets[place][1] <= start:
            place += 1
        if place < len(offsets) and offsets[place][0] < start + len(word):
            found.append((place, number))
        start += len(word) + 1
    return found


def token_span(offsets: Sequence[tuple[int, int]], start: int, stop: int) -> tuple[int, int] | None:
    """First and last of the tokens, at characters `offsets`, that [start, stop) is in.

    None where some of it is beyond the tokens.
    """
    inside = [n for n, (a, b) in enumerate(offsets) if a < stop and b > start]
    if not inside or offsets[0][0] > start or offsets[-1][1] < stop:
        return None
    return inside[0], inside[-1]
