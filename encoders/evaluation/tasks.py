"""Kinds of tasks that encoders of text are fine-tuned for: head, loss, prediction, scores."""

from __future__ import annotations

import abc
import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from encoders.data import CorruptExample, Source
from encoders.data.transforms.tokenize_labels import TokenizeAnswer, TokenizeTags, tag_names
from encoders.errors import DataError
from encoders.evaluation import scores
from encoders.evaluation.windows import Windows

MAX_ANSWER = 30  # tokens

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """What one kind of task needs of train and test.

    Attributes:
      outputs: numbers that the head gives for each example, or for each token.
      test: the source that is scored, for what is not in arrays.
      preprocessing: of the encoder.
    """

    outputs: int
    test: Source
    preprocessing: Any

    per_token: ClassVar[bool] = False  # whether the head looks at tokens, not at one vector
    label: ClassVar[str]  # the field of batches that says what is right

    @classmethod
    @abc.abstractmethod
    def of(cls, train: Source, test: Source, preprocessing: Any, where: str) -> Task:
        """The task of two sources.

        Raises:
          DataError: they do not have what the task needs.
        """

    def examples(self, source: Source) -> Any:
        """What is made arrays of: the examples of a source, or parts of them."""
        return source

    def transforms(self) -> list[Callable]:
        """From an example of the sources to arrays."""
        return self.preprocessing.eval_transforms()

    @abc.abstractmethod
    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The mean loss of float32 outputs [B, outputs], or [B, T, outputs] of tokens."""

    @abc.abstractmethod
    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        """What is kept of the outputs [B, ...] of test examples."""

    @abc.abstractmethod
    def score(self, predicted: np.ndarray, test: Arrays) -> dict[str, float]:
        """Metrics of the predictions for all test examples."""

    @abc.abstractmethod
    def chance(self, test: Arrays) -> tuple[str, float, float]:
        """A metric, what it is without looking at the input, and its standard error there."""


class Classes(Task):
    """One of several classes, for a text or a pair of texts.

    Metrics: 'accuracy', 'f1' (of class 1 among two; the mean over more) and 'mcc'.
    """

    label = "label"

    @classmethod
    def of(cls, train: Source, test: Source, preprocessing: Any, where: str) -> Task:
        labels = [_labels(train, f"{where}.train"), _labels(test, f"{where}.test")]
        low = min(map(min, labels))
        if low < 0:
            raise DataError(f"{where}: labels must count from 0, found {low}.")
        if len(set(labels[0])) < 2:
            raise DataError(f"{where}.train: all {len(labels[0])} examples are of one class.")
        return cls(max(map(max, labels)) + 1, test, preprocessing)

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(outputs, batch["label"])
        return losses.mean()

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        return outputs.argmax(-1)

    def score(self, predicted: np.ndarray, test: Arrays) -> dict[str, float]:
        judges = {"accuracy": scores.accuracy, "f1": scores.f1, "mcc": scores.matthews}
        return {name: judge(predicted, test["label"]) for name, judge in judges.items()}

    def chance(self, test: Arrays) -> tuple[str, float, float]:
        return "accuracy", *_most_frequent(test["label"].tolist())


@dataclasses.dataclass(frozen=True)
class Number(Task):
    """A number for a text or a pair of texts, such as a similarity: squared error.

    Metrics: 'pearson' and 'spearman'.

    Attributes:
      mean, std: of the scores of train, which are brought to 0 and 1.
    """

    mean: float = 0.0
    std: float = 1.0

    label = "score"

    @classmethod
    def of(cls, train: Source, test: Source, preprocessing: Any, where: str) -> Task:
        for source, name in ((test, "test"), (train, "train")):
            values = _values(source, "score", f"{where}.{name}")
            if len(set(values)) < 2:
                raise DataError(f"{where}.{name}: all scores are the same; there is no order.")
        return cls(1, test, preprocessing, float(np.mean(values)), float(np.std(values)))

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        return jnp.square(outputs[:, 0] - (batch["score"] - self.mean) / self.std).mean()

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        return outputs[:, 0]

    def score(self, predicted: np.ndarray, test: Arrays) -> dict[str, float]:
        predicted = np.nan_to_num(predicted)
        judges = {"pearson": scores.pearson, "spearman": scores.spearman}
        return {name: judge(predicted, test["score"]) for name, judge in judges.items()}

    def chance(self, test: Arrays) -> tuple[str, float, float]:
        return "pearson", 0.0, 1.0 / np.sqrt(len(test["score"]))


@dataclasses.dataclass(frozen=True)
class Answer(Task):
    """The part of a text that answers a question, or none, as in SQuAD.

    Metrics: 'f1' (of words) and 'exact' (match), both against the best of the accepted answers. A
    long text is read in windows, of which the one counts whose answer is ahead of none by most.

    Attributes:
      none: whether there may be no answer, because train has questions without one.
    """

    none: bool = False

    label = "answer"
    per_token = True

    @classmethod
    def of(cls, train: Source, test: Source, preprocessing: Any, where: str) -> Task:
        _values(test, "answers", f"{where}.test")
        answers = _values(train, "answers", f"{where}.train")
        if not any(answers):
            raise DataError(f"{where}.train: none of its questions has an answer.")
        return cls(2, test, preprocessing, not all(answers))

    def examples(self, source: Source) -> Any:
        return Windows(source, self.preprocessing)

    def transforms(self) -> list[Callable]:
        return [TokenizeAnswer(preprocessing=self.preprocessing)]

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        outputs = jnp.where(self._allowed(batch)[..., None], outputs, -1e9)
        ends = outputs.swapaxes(1, 2)  # [B, 2, T]
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(ends, batch["answer"])
        return losses.mean()

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        """float32 [B, 3]: first and last place of the best answer, and how far it is ahead of none,
        which the first token stands for.
        """
        outputs = jnp.where(self._allowed(batch)[..., None], outputs, -1e9)
        length = outputs.shape[1]
        place = jnp.arange(length)
        long = place[None, :] - place[:, None]
        inside = (place[:, None] > 0) & (long >= 0) & (long < MAX_ANSWER)
        joint = outputs[:, :, None, 0] + outputs[:, None, :, 1]
        joint = jnp.where(inside, joint, -jnp.inf).reshape(len(outputs), -1)
        best = joint.argmax(-1)
        ahead = joint.max(-1) - outputs[:, 0].sum(-1)
        return jnp.stack([best // length, best % length, ahead], -1).astype(jnp.float32)

    def score(self, predicted: np.ndarray, test: Arrays) -> dict[str, float]:
        best: dict[int, int] = {}  # question -> row of its best window
        for row, (number, ahead) in enumerate(zip(test["question"], predicted[:, 2], strict=True)):
            if number not in best or ahead > predicted[best[number], 2]:
                best[int(number)] = row
        found, inner = [], self.preprocessing.opened.inner
        for number, row in best.items():
            example, text = self.test[number], ""
            if not self.none or predicted[row, 2] > 0:
                encoded = inner.encode(example["other"], add_special_tokens=False)
                shift = int(test["first"][row] - test["context"][row, 0])
                first, last = (encoded.offsets[int(p) + shift] for p in predicted[row, :2])
                text = example["other"][first[0] : last[1]]
            found.append(scores.answer_scores(text, example["answers"]))
        exact, f1 = np.mean(found, axis=0)
        return {"f1": float(f1), "exact": float(exact)}

    def chance(self, test: Arrays) -> tuple[str, float, float]:
        numbers = np.unique(test["question"]).tolist()
        answers = [self.test[number]["answers"] for number in numbers]
        first = [" ".join(scores.answer_words(some[0])) if some else "" for some in answers]
        return "exact", *_most_frequent(first)

    def _allowed(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """[B, T] bool: the text, and the first token, which stands for no answer."""
        place = jnp.arange(batch["ids"].shape[1])[None]
        first, stop = batch["context"][:, :1], batch["context"][:, 1:]
        return ((place >= first) & (place < stop)) | (place == 0)


@dataclasses.dataclass(frozen=True)
class Tags(Task):
    """A tag for every word, such as B-PER, I-PER and O, as in CoNLL 2003.

    Metrics: 'f1' of whole spans, and 'accuracy' of tags. Words beyond the encoder's input are not
    scored.

    Attributes:
      names: the tags, by number.
    """

    names: tuple[str, ...] = ()

    label = "tags"
    per_token = True

    @classmethod
    def of(cls, train: Source, test: Source, preprocessing: Any, where: str) -> Task:
        names: set[str] = set()
        for source, name in ((train, "train"), (test, "test")):
            for tags in _values(source, "tags", f"{where}.{name}"):
                names.update(tag_names(tags))
        if len(names) < 2:
            raise DataError(f"{where}: two tags are the least to tell apart, found {len(names)}.")
        return cls(len(names), test, preprocessing, tuple(sorted(names)))

    def transforms(self) -> list[Callable]:
        return [TokenizeTags(preprocessing=self.preprocessing, names=self.names)]

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        tags = batch["tags"]
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(
            outputs, jnp.maximum(tags, 0)
        )
        return jnp.where(tags >= 0, losses, 0.0).sum() / jnp.maximum((tags >= 0).sum(), 1)

    def predict(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        return outputs.argmax(-1)

    def score(self, predicted: np.ndarray, test: Arrays) -> dict[str, float]:
        known = test["tags"] >= 0
        pairs = [
            [[self.names[tag] for tag in tags[real]] for tags, real in zip(of, known, strict=True)]
            for of in (predicted, test["tags"])
        ]
        right = scores.accuracy(predicted[known], test["tags"][known])
        return {"f1": scores.span_f1(*pairs), "accuracy": right}

    def chance(self, test: Arrays) -> tuple[str, float, float]:
        return "accuracy", *_most_frequent(test["tags"][test["tags"] >= 0].tolist())


TASKS: dict[str, type[Task]] = {
    "classification": Classes,
    "regression": Number,
    "span": Answer,
    "tags": Tags,
}


def _values(source: Source, field: str, where: str) -> list[Any]:
    """A field of all examples that can be read.

    Raises:
      DataError: they do not have it.
    """
    values = []
    for index in range(len(source)):
        try:
            example = source[index]
        except CorruptExample:
            continue  # logged when the text itself is read
        if field not in example:
            raise DataError(f"{where}: its examples have no '{field}', only {sorted(example)}.")
        values.append(example[field])
    if not values:
        raise DataError(f"{where}: none of its {len(source)} examples is usable.")
    return values


def _labels(source: Source, where: str) -> list[int]:
    return [int(label) for label in _values(source, "label", where)]


def _most_frequent(values: Sequence[Any]) -> tuple[float, float]:
    """The share of the most frequent value, and the standard error of a share like that."""
    share = collections.Counter(values).most_common(1)[0][1] / len(values)
    return share, float(np.sqrt(share * (1 - share) / len(values)))
