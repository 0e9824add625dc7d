"""Questions about texts, in the JSON format of SQuAD (arXiv 1606.05250, 1806.03822)."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from encoders.data.sources.base import CorruptExample, Source
from encoders.errors import DataError


@dataclasses.dataclass(kw_only=True, eq=False)
class Squad(Source):
    """One example per question, in the file's order.

    An example is {'text': question, 'other': the text it is about, 'answers': tuple of str,
    'starts': tuple of int, the character in the text at which each answer begins}; questions
    without an answer have none.

    Attributes:
      path: a file such as dev-v2.0.json.
    """

    path: str

    def __post_init__(self) -> None:
        file = pathlib.Path(self.path).expanduser()
        if not file.is_file():
            raise DataError(f"data source: no file '{self.path}'.")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            self._questions = [
                (paragraph["context"], question)
                for article in content["data"]
                for paragraph in article["paragraphs"]
                for question in paragraph["qas"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"data source: '{self.path}' is not in the format of SQuAD ({error!r})."
            ) from error
        super().__post_init__()

    def _count(self) -> int:
        return len(self._questions)

    def _read(self, index: int) -> dict[str, Any]:
        context, question = self._questions[index]
        answers = question.get("answers", [])
        texts = tuple(answer["text"] for answer in answers)
        starts = tuple(int(answer["answer_start"]) for answer in answers)
        for text, start in zip(texts, starts, strict=True):
            if context[start : start + len(text)] != text:
                raise CorruptExample(f"the answer '{text}' is not at character {start}")
        return {"text": question["question"], "other": context, "answers": texts, "starts": starts}

    def _describe(self, index: int) -> str:
        return f"question {self._questions[index][1].get('id', index)} of {self.path}"
