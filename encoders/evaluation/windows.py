"""Texts that are longer than an encoder's input, as windows that overlap (BERT's SQuAD recipe)."""

from __future__ import annotations

from typing import Any

from encoders.data import CorruptExample, Source
from encoders.data.transforms.tokenize_labels import around, longest_question


class Windows:
    """Questions about texts, one example for every window of a text.

    Windows are as long as the encoder's input leaves room for, and begin two thirds of that apart,
    so that an answer at the edge of one is inside another.

    Args:
      source: examples with 'text', the question, and 'other', the text.
      preprocessing: of the encoder.
    """

    def __init__(self, source: Source, preprocessing: Any):
        self.source = source
        tokenizer, length = preprocessing.opened, preprocessing.max_length
        most, room = longest_question(tokenizer, length), length - sum(around(tokenizer))
        self._places: list[tuple[int, int]] = []
        for row in range(len(source)):
            try:
                example = source[row]
            except CorruptExample:
                self._places.append((row, 0))  # met, and named, where it is read
                continue
            question, text = (len(tokenizer.ids(example[name])) for name in ("text", "other"))
            size = room - min(question, most)
            first, apart = 0, max(1, 2 * size // 3)
            self._places.append((row, 0))
            while first + size < text:
                first += apart
                self._places.append((row, first))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The example, 'question' (its number in the source) and 'first' (the window's token)."""
        row, first = self._places[index]
        return {**self.source[row], "question": row, "first": first}

    def describe(self, index: int) -> str:
        return self.source.describe(self._places[index][0])
