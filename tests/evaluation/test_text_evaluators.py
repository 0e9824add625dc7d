"""Evaluators of text encoders against their definitions."""

import flax.linen as nn
import jax
import numpy as np
import pytest
import scipy.stats
from text_toys import PREPROCESSING, WORDS, Words, init, make, write

from encoders.data.transforms.tokenize import Tokenize
from encoders.errors import ConfigError, DataError
from encoders.evaluation.bag_of_words import bag_of_words
from encoders.evaluation.features import Labelled
from encoders.evaluation.retrieval import first_ranks
from encoders.objectives.text import TextObjective
from encoders.parallel.mesh import make_mesh
from encoders.types import Outcome


def sentences(rng, count, words=6):
    return [" ".join(rng.choice(WORDS, rng.integers(1, words + 1))) for _ in range(count)]


# --- probes ---------------------------------------------------------------------------------------


def test_bag_of_words_is_that_of_scikit_learn():
    def of(*texts):
        ids = np.full((len(texts), 12), -1, np.int32)
        for row, text in zip(ids, texts, strict=True):
            found = PREPROCESSING.opened.ids(text)
            row[: len(found)] = found
        return Labelled(ids, np.zeros(len(texts), np.int32))

    train, test = bag_of_words(
        of("cat cat dog", "dog runs", "dog sleeps here here here"), of("cat bird dog", "bird")
    )
    # TfidfVectorizer(sublinear_tf=True) of the same texts: cat, dog, here, runs, sleeps. Here the
    # columns are in the order of how many texts have a word, then of ids.
    expected = [
        [0.94420307, 0.32936389, 0, 0, 0],
        [0, 0.50854232, 0, 0.861037, 0],
        [0, 0.2462397, 0.87495353, 0, 0.41692005],
    ]
    order = [1, 0, 4, 2, 3]
    np.testing.assert_allclose(train.features[:, order], expected, atol=1e-6)
    expected = [[0.861037, 0.50854232, 0, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_allclose(test.features[:, order], expected, atol=1e-6)
    assert train.one_scale


def test_probes_of_layers_and_baselines_on_a_mesh(tmp_path):
    rng = np.random.default_rng(1)
    rows = [{"text": text, "label": int("cat" in text.split())} for text in sentences(rng, 90)]
    train, test = write(tmp_path / "train.jsonl", rows[:60]), write(tmp_path / "t.jsonl", rows[60:])
    baselines = dict(baselines=("random", "bag_of_words"), layers=(0, 1), k=(5,), feature="mean")
    evaluator = make("knn", train=train, test=test, batch_size=16, **baselines)
    encoder = Words()
    found = evaluator.run(encoder, init(encoder))
    names = {"accuracy", "k5", "chance", "layer0", "layer1", "random", "bag_of_words"}
    assert set(found) == names
    assert found["layer0"] == found["layer1"]  # the toy's are the same
    assert found["random"] == found["accuracy"]  # key 0 made both
    mesh = make_mesh(data=4, fsdp=2, tensor=1)
    again = make("knn", mesh, train=train, test=test, batch_size=16, **baselines)
    assert again.run(encoder, init(encoder)) == found
    with pytest.raises(ConfigError, match="'pixels' needs 'image'"):
        make("knn", train=train, test=test, baselines=("pixels",), k=(5,)).run(
            encoder, init(encoder)
        )
    with pytest.raises(ConfigError, match="counted from 0, got -1"):
        make("knn", train=train, test=test, layers=(-1,), k=(5,))


def test_labels_that_are_missing_or_all_the_same_are_errors(tmp_path):
    encoder = Words()
    rows = [{"text": "red cat"}, {"text": "blue dog"}]
    section = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match="probes need labels"):
        make("knn", train=section, test=section, k=(1,)).run(encoder, init(encoder))
    section = write(tmp_path / "b.jsonl", [{**row, "label": 0} for row in rows])
    with pytest.raises(DataError, match=r"evaluators\.x\.train: all 2 examples are of one class"):
        make("knn", train=section, test=section, k=(1,)).run(encoder, init(encoder))


# --- similarity -----------------------------------------------------------------------------------


def test_similarity_is_the_correlation_of_cosines(tmp_path):
    rng = np.random.default_rng(2)
    encoder = Words()
    variables = init(encoder)
    table = np.asarray(variables["params"]["words"], np.float64)
    rows, cosines = [], []
    for left, right in zip(sentences(rng, 25), sentences(rng, 25), strict=True):
        a, b = (table[PREPROCESSING.opened.ids(text)].sum(0) for text in (left, right))
        cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        rows.append({"text": left, "other": right})
    noisy = np.round(np.array(cosines) + 0.3 * rng.normal(size=25), 1)  # with ties
    section = write(
        tmp_path / "a.jsonl", [{**row, "score": s} for row, s in zip(rows, noisy, strict=True)]
    )
    found = make("sts", test=section, batch_size=8).run(encoder, variables)
    assert found == pytest.approx(
        {
            "spearman": scipy.stats.spearmanr(cosines, noisy)[0],
            "pearson": scipy.stats.pearsonr(cosines, noisy)[0],
        },
        abs=1e-5,
    )
    for sign in (1.0, -1.0):
        scored = [{**row, "score": sign * c} for row, c in zip(rows, cosines, strict=True)]
        section = write(tmp_path / f"{sign}.jsonl", scored)
        mesh = make_mesh(data=8, fsdp=1, tensor=1) if sign < 0 else None
        perfect = make("sts", mesh, test=section, batch_size=8).run(encoder, variables)
        assert perfect == pytest.approx({"spearman": sign, "pearson": sign}, abs=1e-4)


def test_similarity_without_scores_or_pairs_says_so(tmp_path):
    encoder = Words()
    section = write(tmp_path / "a.jsonl", [{"text": "red cat", "other": "dog"}] * 3)
    with pytest.raises(DataError, match="pairs have no 'score'"):
        make("sts", test=section).run(encoder, init(encoder))
    section = write(tmp_path / "b.jsonl", [{"text": "red", "other": "dog", "score": 1}] * 3)
    with pytest.raises(DataError, match="needs two different scores"):
        make("sts", test=section).run(encoder, init(encoder))
    section = write(tmp_path / "c.jsonl", [{"text": "red cat"}])
    with pytest.raises(DataError, match="no text 'other'"):
        make("sts", test=section)


# --- retrieval ------------------------------------------------------------------------------------


def test_retrieval_by_hand_with_ties(tmp_path):
    encoder = Words()
    documents = ["red cat", "cat red", "dog", "blue bird sleeps", "dog"]  # 0 ties with 1, 2 with 4
    names = [{"text": text, "id": f"d{n}"} for n, text in enumerate(documents)]
    queries = ["red cat", "dog", "bird blue sleeps"]
    asked = [{"text": text, "id": f"q{n}"} for n, text in enumerate(queries)]
    corpus = {**write(tmp_path / "corpus.jsonl", names), "fields": ("id",)}
    test = {**write(tmp_path / "queries.jsonl", asked), "fields": ("id",)}
    relevance = tmp_path / "qrels.tsv"
    relevance.write_text("query-id\tcorpus-id\tscore\nq0\td1\t1\nq1\td2\t2\nq1\td4\t1\nq2\td9\t1\n")
    fields = dict(test=test, corpus=corpus, relevance=str(relevance), recall_at=(1, 2))
    found = make("retrieval", **fields).run(encoder, init(encoder))
    # q0: d0 is as similar as d1 and before it; q1: both; q2 has no document in the corpus.
    assert found == pytest.approx(
        {
            "ndcg@10": (1 / np.log2(3) + 1) / 2,
            "mrr": (1 / 2 + 1) / 2,
            "recall@1": (0 + 1 / 2) / 2,
            "recall@2": 1.0,
        }
    )
    relevance.write_text("q7\td1\t1\n")
    with pytest.raises(DataError, match="no pair of a query and a document is relevant"):
        make("retrieval", **fields).run(encoder, init(encoder))
    relevance.write_text("q0\td1\t1\nq1\td1\tmuch\n")
    with pytest.raises(DataError, match="relevance 'much', no number"):
        make("retrieval", **fields).run(encoder, init(encoder))


def test_pairs_in_one_source_are_each_others_answers(tmp_path):
    rng = np.random.default_rng(3)
    texts = list(dict.fromkeys(" ".join(sorted(t.split())) for t in sentences(rng, 40)))
    pairs = write(tmp_path / "a.jsonl", [{"text": t, "other": t} for t in texts])
    encoder = Words()
    mesh = make_mesh(data=2, fsdp=4, tensor=1)
    evaluator = make("retrieval", mesh, test=pairs, document="other", recall_at=(1,))
    found = evaluator.run(encoder, init(encoder))
    assert found["mrr"] > 0.9  # but for words that are one of twice, such as "cat" and "cat cat"
    assert evaluator.sizes == {"test": len(texts), "corpus": len(texts)}
    with pytest.raises(ConfigError, match="queries and documents are the same texts"):
        make("retrieval", test=pairs)
    other = write(tmp_path / "b.jsonl", [{"text": "cat"}])
    with pytest.raises(DataError, match="which documents are relevant"):
        make("retrieval", test=pairs, corpus=other).run(encoder, init(encoder))


def test_ranks_over_the_whole_corpus(monkeypatch):
    monkeypatch.setattr("encoders.evaluation.retrieval.DOCUMENTS", 16)
    rng = np.random.default_rng(4)
    corpus, queries = rng.normal(size=(50, 8)), rng.normal(size=(7, 8))
    corpus, queries = corpus.astype(np.float32), queries.astype(np.float32)
    relevant = [
        dict(zip(rng.choice(50, 3, replace=False).tolist(), (1.0, 2.0, 3.0), strict=True))
        for _ in queries
    ]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, corpus)]
    similarity = unit[0] @ unit[1].T
    order = np.argsort(-similarity, axis=1, kind="stable")
    expected = [
        min(np.flatnonzero(row == place)[0] for place in gains)
        for row, gains in zip(order, relevant, strict=True)
    ]
    assert max(expected) > 2
    found = first_ranks(corpus, queries, relevant, order[:, :2])
    np.testing.assert_array_equal(found, expected)


# --- masked tokens --------------------------------------------------------------------------------


class Guess(TextObjective):
    """Hides words at random, and always guesses as often as its table says."""

    @nn.compact
    def __call__(self, batch, *, train=False):
        scores = self.param("scores", nn.initializers.normal(1.0), (19,))
        losses = -nn.log_softmax(scores)[batch["ids"]]
        keys, shape = self.rng_per_example(batch), batch["ids"].shape[1:]
        drawn = jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)
        hidden = self.corruptible(batch) & (drawn < 0.3)
        right = hidden & (batch["ids"] == scores.argmax())
        metrics = {"accuracy": (right.sum() * 1.0, hidden.sum() * 1.0)}
        return Outcome((losses * hidden).sum(), hidden.sum() * 1.0, metrics)


def test_masked_accuracy_is_the_objectives_own_and_depends_on_no_batch(tmp_path):
    rng = np.random.default_rng(5)
    texts = sentences(rng, 21, 9)
    section = write(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    objective = Guess(Words(), vocabulary=PREPROCESSING.special)
    variables = {"params": {"scores": np.linspace(0, 1, 19, dtype=np.float32)}}
    found = make("masked_accuracy", test=section, batch_size=8).run(objective, variables)
    assert set(found) == {"accuracy", "loss", "perplexity", "unigram"}
    rows = [Tokenize(preprocessing=PREPROCESSING)({"text": text}, None) for text in texts]
    whole = {k: np.stack([row[k] for row in rows]) for k in ("ids", "segments")}
    outcome = objective.apply(variables, whole)
    assert found["loss"] == pytest.approx(float(outcome.loss / outcome.weight), rel=1e-6)
    right, hidden = outcome.metrics["accuracy"]
    assert found["accuracy"] == pytest.approx(float(right / hidden))
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))
    words = np.unique(whole["ids"][whole["ids"] > 4], return_counts=True)[1]
    assert found["unigram"] == pytest.approx(scipy.stats.entropy(words))
    mesh = make_mesh(data=2, fsdp=1, tensor=1, devices=jax.devices()[:2])
    again = make("masked_accuracy", mesh, test=section, batch_size=16).run(objective, variables)
    assert again == pytest.approx(found, rel=1e-5)
    with pytest.raises(ConfigError, match="Words guesses no hidden tokens"):
        make("masked_accuracy", test=section).run(Words(), init(Words()))
