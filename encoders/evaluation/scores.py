"""Numbers that predictions are judged by, in float64 on the host."""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Iterable, Sequence

import numpy as np


def pearson(left: np.ndarray, right: np.ndarray) -> float:
    """Linear correlation of two arrays [N]; 0 where one is constant."""
    left, right = (np.asarray(x, np.float64) - np.mean(x, dtype=np.float64) for x in (left, right))
    scale = np.sqrt(np.square(left).sum() * np.square(right).sum())
    return float((left * right).sum() / scale) if scale > 1e-300 else 0.0


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Correlation of the ranks of two arrays [N]; equal values share their mean rank."""
    return pearson(ranks(left), ranks(right))


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, float64 [N]; equal values share their mean rank."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The share of equal entries."""
    return float((predicted == labels).mean())


def matthews(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Matthews' correlation of classes [N], of any number; 0 where only one is predicted.

    The multi-class form is Gorodkin's (2004), which for two classes is Matthews' (1975).
    """
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    classes = np.union1d(predicted, labels)
    p, t = (np.array([(x == c).sum() for c in classes], float) for x in (predicted, labels))
    total, right = float(len(labels)), float((predicted == labels).sum())
    scale = np.sqrt((total**2 - (p * p).sum()) * (total**2 - (t * t).sum()))
    return float((right * total - (p * t).sum()) / scale) if scale else 0.0


def f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """2 hits / (predicted + labelled) of class 1 among two classes; of more, the mean over those
    classes that occur.
    """
    classes = np.union1d(predicted, labels)
    classes = (1,) if classes.max(initial=0) <= 1 else classes
    found = []
    for label in classes:
        hits = ((predicted == label) & (labels == label)).sum()
        found.append(_f1(hits, (predicted == label).sum(), (labels == label).sum()))
    return float(np.mean(found))


def _f1(hits: float, predicted: float, labelled: float) -> float:
    return 2.0 * hits / (predicted + labelled) if predicted + labelled else 0.0


# --- spans of tagged words ------------------------------------------------------------------------


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, first, last) of every span in tags 'O', 'B-x' and 'I-x'.

    An I that goes on nothing of its type begins a span, as CoNLL's own script has it.
    """
    found, kind, first = set(), None, 0
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        goes_on = prefix == "I" and name == kind
        if kind is not None and not goes_on:
            found.add((kind, first, place - 1))
            kind = None
        if prefix in ("B", "I") and not goes_on:
            kind, first = name, place
    return found


def span_f1(predicted: Iterable[Sequence[str]], labels: Iterable[Sequence[str]]) -> float:
    """F1 over all sentences of spans with the right type, first and last word."""
    hits = guessed = there = 0
    for guess, truth in zip(predicted, labels, strict=True):
        guess, truth = entities(guess), entities(truth)
        hits, guessed, there = hits + len(guess & truth), guessed + len(guess), there + len(truth)
    return _f1(hits, guessed, there)


# --- answers to questions -------------------------------------------------------------------------

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def answer_words(text: str) -> list[str]:
    """The words that answers are compared by: no case, punctuation or articles (SQuAD)."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def answer_scores(predicted: str, answers: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 of words against the best of the accepted answers; none means ''."""
    guess = answer_words(predicted)
    best = 0.0, 0.0
    for answer in answers or ("",):
        truth = answer_words(answer)
        common = sum((collections.Counter(guess) & collections.Counter(truth)).values())
        # Where either is empty, there is no word to share: equal or wrong.
        overlap = _f1(common, len(guess), len(truth)) if guess and truth else float(guess == truth)
        best = max(best[0], float(guess == truth)), max(best[1], overlap)
    return best


# --- rankings -------------------------------------------------------------------------------------


def ndcg(gains: np.ndarray, all_gains: np.ndarray, k: int) -> float:
    """Normalised discounted cumulative gain of the first k, with gain / log2(place + 1).

    Args:
      gains: of what was ranked, best first.
      all_gains: of everything that is relevant.
      k: how many count.
    """
    ideal = np.sort(all_gains)[::-1][:k]
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    best = (ideal * discount[: len(ideal)]).sum()
    return float((gains[:k] * discount[: len(gains[:k])]).sum() / best) if best else 0.0


# --- clusters -------------------------------------------------------------------------------------


def contingency(clusters: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How often cluster and label come together: int64 [K, L] of two arrays [N] that count from 0.

    Several such tables add up where one of all points would be too large.
    """
    shape = [int(array.max()) + 1 if len(array) else 0 for array in (clusters, labels)]
    table = np.zeros(shape, np.int64)
    np.add.at(table, (clusters, labels), 1)
    return table


def purity(table: np.ndarray) -> float:
    """Accuracy of guessing in every cluster its most frequent label ("phone purity" of HuBERT,
    arXiv 2106.07447, section V.A); `table` is that of `contingency`.
    """
    return float(table.max(1).sum() / table.sum())


def label_information(table: np.ndarray) -> float:
    """The part of the labels' entropy that clusters tell, I(label; cluster) / H(label) ("PNMI" of
    HuBERT, arXiv 2106.07447, section V.A); 0 where all labels are one.
    """
    joint = table / table.sum()
    cluster, label = joint.sum(1, keepdims=True), joint.sum(0, keepdims=True)
    there = joint > 0
    shared = (joint[there] * np.log(joint[there] / (cluster * label)[there])).sum()
    entropy = -(label[label > 0] * np.log(label[label > 0])).sum()
    return float(shared / entropy) if entropy > 0 else 0.0
