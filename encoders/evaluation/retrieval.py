"""Retrieval: which documents of a whole corpus a query finds, by cosine similarity."""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from encoders.data import Source
from encoders.errors import ConfigError, DataError
from encoders.evaluation.features import Labelled
from encoders.evaluation.knn import neighbours, unit
from encoders.evaluation.scores import ndcg
from encoders.evaluation.vectors import Column, VectorEvaluator

QUERIES, DOCUMENTS = 256, 4096  # similarities that exist at once where a rank is counted

Relevance = Mapping[int, Mapping[int, float]]  # row of a query -> row of a document -> gain


@dataclasses.dataclass(kw_only=True)
class Retrieval(VectorEvaluator):
    """Ranks the whole corpus for each query of `test`, not a sample of distractors.

    Metrics: 'ndcg@{k}', 'mrr' (the mean of 1 / rank of the first relevant document, over the whole
    corpus), and 'recall@{k}', the share of a query's relevant documents among the first k, for
    every k; means over the queries that have a relevant document. Of equally similar documents the
    first in the corpus comes first.

    Attributes:
      corpus: section of the source of documents; None takes `test` itself, for sources whose
        examples are pairs.
      query, document: the fields with their texts.
      relevance: file with a line for every relevant pair: '.jsonl' with 'query', 'document' and
        maybe 'relevance'; else tab-separated query, document and maybe relevance, as TREC and BEIR
        have it (a first line of names and TREC's second column of zeros are passed over). Without,
        a query's document is the one with the same `id`, or, where examples have none, the one of
        the same number.
      id: field with the ids that `relevance` names; it has to be among the source's `fields`.
      ndcg_at: k of nDCG.
      recall_at: ks of recall.
    """

    corpus: Mapping[str, Any] | None = None
    query: str = "text"
    document: str = "text"
    relevance: str | None = None
    id: str = "id"
    ndcg_at: int = 10
    recall_at: tuple[int, ...] = (1, 10, 100)

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"evaluators.{self.label}"
        if min(self.ndcg_at, *self.recall_at) < 1:
            raise ConfigError(f"{where}: k of nDCG and recall counts from 1.")
        if self.corpus is None and self.query == self.document:
            raise ConfigError(
                f"{where}: queries and documents are the same texts; set corpus, or another field "
                "as document."
            )
        self._corpus = self.test if self.corpus is None else self.corpus
        self.corpus_source = self.open(self._corpus, "corpus")
        self._queries = Column(self.test_source, self.query, f"{where}.test")
        self._documents = Column(self.corpus_source, self.document, f"{where}.corpus")
        self._relevant: Relevance | None = None

    @property
    def sizes(self) -> dict[str, int]:
        return {**super().sizes, "corpus": len(self.corpus_source)}

    def run(
        self, module: nn.Module, variables: Mapping[str, Any], *, step: int | None = None
    ) -> dict[str, float]:
        if self._relevant is None:
            self._relevant = self._find_relevant()
        queries = self.vectors(module, variables, self._queries, self.test)
        corpus = self.vectors(module, variables, self._documents, self._corpus)
        place = {row: place for place, row in enumerate(corpus.rows.tolist())}
        relevant = []  # per query that is kept: places in the corpus, and gains
        kept = []
        for number, row in enumerate(queries.rows.tolist()):
            gains = self._relevant.get(row, {})
            gains = {place[doc]: gain for doc, gain in gains.items() if doc in place}
            if gains:
                kept.append(number)
                relevant.append(gains)
        if not kept:
            raise DataError(
                f"evaluators.{self.label}: no query has a relevant document in the corpus."
            )
        return self._score(corpus.features, queries.features[kept], relevant)

    def _score(
        self, corpus: np.ndarray, queries: np.ndarray, relevant: list[dict[int, float]]
    ) -> dict[str, float]:
        count = min(max(self.ndcg_at, *self.recall_at), len(corpus))
        bank = Labelled(corpus, np.arange(len(corpus), dtype=np.int32))
        _, found = neighbours(bank, queries, count, self.mesh)
        first = first_ranks(corpus, queries, relevant, found)
        sums: dict[str, list[float]] = {f"ndcg@{self.ndcg_at}": [], "mrr": []}
        sums |= {f"recall@{k}": [] for k in self.recall_at}
        for places, gains, rank in zip(found, relevant, first, strict=True):
            ranked = np.array([gains.get(place, 0.0) for place in places.tolist()])
            everything = np.array(list(gains.values()))
            sums[f"ndcg@{self.ndcg_at}"].append(ndcg(ranked, everything, self.ndcg_at))
            sums["mrr"].append(1.0 / (rank + 1))
            for k in self.recall_at:
                sums[f"recall@{k}"].append((ranked[:k] > 0).sum() / len(everything))
        return {name: float(np.mean(values)) for name, values in sums.items()}

    # --- what is relevant -------------------------------------------------------------------------

    def _find_relevant(self) -> Relevance:
        where = f"evaluators.{self.label}"
        queries, documents = self._ids(self.test_source), self._ids(self.corpus_source)
        if self.relevance is not None:
            for name, ids in (("test", queries), ("corpus", documents)):
                if ids is None:
                    raise DataError(
                        f"{where}.{name}: its examples have no '{self.id}' that relevance could "
                        "name; add it to the source's fields."
                    )
            pairs = _read_pairs(self.relevance, f"{where}.relevance")
        elif queries is not None and documents is not None:
            pairs = [(name, name, 1.0) for name in queries if name in documents]
        elif len(self.test_source) == len(self.corpus_source):
            return {row: {row: 1.0} for row in range(len(self.test_source))}
        else:
            raise DataError(
                f"{where}: which documents are relevant? There is no file of relevance, no "
                f"'{self.id}', and {len(self.test_source)} queries are not as many as "
                f"{len(self.corpus_source)} documents."
            )
        found: dict[int, dict[int, float]] = {}
        for query, document, gain in pairs:
            if query in queries and document in documents and gain > 0:
                found.setdefault(queries[query], {})[documents[document]] = gain
        if not found:
            raise DataError(f"{where}: no pair of a query and a document is relevant.")
        return found

    def _ids(self, source: Source) -> dict[str, int] | None:
        """id -> row; None where the examples have no ids."""
        if self.id not in source[0]:
            return None
        return {str(source[row][self.id]): row for row in range(len(source))}


def first_ranks(
    corpus: np.ndarray,
    queries: np.ndarray,
    relevant: list[dict[int, float]],
    found: np.ndarray,
) -> np.ndarray:
    """The rank from 0, in the whole corpus, of each query's first relevant document.

    Args:
      corpus, queries: vectors [N, D] and [M, D].
      relevant: places in the corpus of each query's relevant documents, as keys.
      found: [M, K] places in the corpus of the nearest documents, nearest first.
    """
    rank = np.zeros(len(queries), np.int64)
    missing = []
    for number, (places, gains) in enumerate(zip(found, relevant, strict=True)):
        hits = np.flatnonzero(np.isin(places, list(gains)))
        if len(hits):
            rank[number] = hits[0]
        else:
            missing.append(number)
    corpus, queries = unit(corpus), unit(queries)
    size = min(DOCUMENTS, len(corpus))
    for start in range(0, len(missing), QUERIES):
        part = np.array(missing[start : start + QUERIES])
        best = [max(relevant[n], key=lambda p, n=n: (corpus[p] @ queries[n], -p)) for n in part]
        chosen = np.pad(queries[part], ((0, QUERIES - len(part)), (0, 0)))
        target = np.pad(np.array(best, np.int32), (0, QUERIES - len(part)))
        total = np.zeros(QUERIES, np.int64)
        for first in range(0, len(corpus), size):
            chunk = corpus[first : first + size]
            chunk = np.pad(chunk, ((0, size - len(chunk)), (0, 0)))
            ahead = _ahead(chunk, chosen, corpus[target], target, first, len(corpus))
            total += np.asarray(ahead)
        rank[part] = total[: len(part)]
    return rank


@jax.jit
def _ahead(
    chunk: jax.Array, queries: jax.Array, own: jax.Array, target: jax.Array, first: int, size: int
) -> jax.Array:
    """How many documents of a chunk [N, D], from place `first`, are ahead of each query's own."""
    similarity = jnp.matmul(queries, chunk.T, precision="highest")
    least = jnp.einsum("qd,qd->q", queries, own, precision="highest")[:, None]
    place = first + jnp.arange(chunk.shape[0])[None]
    ahead = (similarity > least) | ((similarity == least) & (place < target[:, None]))
    return (ahead & (place < size) & (place != target[:, None])).sum(1)


def _read_pairs(path: str, where: str) -> list[tuple[str, str, float]]:
    """(query, document, gain) of every line."""
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"{where}: no file '{path}'.")
    pairs = []
    with file.open(encoding="utf-8", newline="") as lines:
        if file.suffix == ".jsonl":
            try:
                rows = [json.loads(line) for line in lines if line.strip()]
                read = [(r["query"], r["document"], r.get("relevance", 1)) for r in rows]
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(
                    f"{where}: '{path}' has a line that is no JSON object with 'query' and "
                    f"'document' ({error})."
                ) from error
        else:
            read = [_columns(row) for row in csv.reader(lines, delimiter="\t") if row]
    for number, (query, document, gain) in enumerate(read):
        try:
            pairs.append((str(query), str(document), float(gain)))
        except ValueError as error:
            if number:  # the first line may hold names
                raise DataError(
                    f"{where}: pair {number + 1} of '{path}' has relevance '{gain}', no number."
                ) from error
    return pairs


def _columns(row: list[str]) -> tuple[str, str, Any]:
    if len(row) == 4:  # TREC: query, 0, document, relevance
        return row[0], row[2], row[3]
    return row[0], row[1] if len(row) > 1 else "", row[2] if len(row) > 2 else 1
