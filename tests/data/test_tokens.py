import json
import logging
import pickle
import shutil

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from encoders.config import build
from encoders.data import SOURCES, Pipeline, TextPreprocessing, tokenized_texts
from encoders.data.packing import best_fit, cut
from encoders.data.sources.base import CorruptExample
from encoders.data.sources.mixture import Mixture
from encoders.data.sources.sample import Sample
from encoders.data.sources.sentence_pairs import SentencePairs, _shorten
from encoders.data.sources.tokens import Tokens
from encoders.data.token_store import TokenStore, unigram_entropy
from encoders.data.tokenizer_training import train_tokenizer
from encoders.errors import ConfigError, DataError
from tools.prepare_data import main
from tools.preparing import texts as texts_of_tools

WORDS = ("the", "a", "cat", "dog", "bird", "sat", "ran", "flew", "on", "under", "mat", "rug", "and")
PIECE = 100
PACKINGS = ("best_fit", "none", "concatenated")


def document(rng, sentences):
    return " ".join(
        " ".join(rng.choice(WORDS, rng.integers(2, 9))).capitalize() + "." for _ in range(sentences)
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Twenty documents of 1 to 19 sentences and one of many records, in three shards."""
    directory = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    texts = [document(rng, int(n)) for n in rng.integers(1, 20, 20)] + [document(rng, 100)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (directory / "corpus.jsonl").write_text(lines)
    target = directory / "tokens"
    command = ["--from", "text", "--input", str(directory / "corpus.jsonl"), "--to", str(target)]
    command += ["--train-tokenizer", "wordpiece", "--vocab-size", "90", "--sentences"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts_of_tools, "_PIECE", PIECE)
        main([*command, "--shards", "3"])
    return target, texts


@pytest.fixture(scope="module")
def preprocessing(prepared):
    return TextPreprocessing(tokenizer=str(prepared[0]), max_length=32)


def tokens(prepared, preprocessing, **fields):
    section = {"name": "tokens", "path": str(prepared[0]), **fields}
    return build(SOURCES, section, "data.source", **preprocessing.for_sources)


# --- packing --------------------------------------------------------------------------------------


@hypothesis.given(
    strategies.lists(strategies.integers(0, 400), max_size=200), strategies.integers(1, 64)
)
def test_chunks_hold_every_token_once(lengths, room):
    chunks = cut(np.array(lengths, np.int64), room)
    assert all(0 < length <= room for length in chunks.length)
    found = [(d, s + i) for d, s, n in zip(chunks.document, chunks.start, chunks.length) for i in range(n)]  # fmt: skip  # noqa: E501, B905
    assert found == [(d, i) for d, length in enumerate(lengths) for i in range(length)]


@hypothesis.given(strategies.data(), strategies.integers(1, 40))
def test_rows_hold_every_item_once_and_no_more_than_fits(data, capacity):
    sizes = data.draw(strategies.lists(strategies.integers(1, capacity), min_size=1, max_size=300))
    order, ends = best_fit(np.array(sizes), capacity)
    assert sorted(order) == list(range(len(sizes)))
    rows = np.split(np.array(sizes)[order], ends[:-1])
    assert all(0 < row.sum() <= capacity for row in rows)
    # Best-fit decreasing needs at most 11/9 of the fewest rows, and four more (Johnson, 1973).
    assert len(rows) <= 11 / 9 * np.ceil(sum(sizes) / capacity * 2) + 4
    assert len(rows) == slow_best_fit(sizes, capacity)


def slow_best_fit(sizes, capacity):
    """The number of rows, one item at a time."""
    free = []
    for size in sorted(sizes, reverse=True):
        fitting = [place for place in free if place >= size]
        if fitting:
            free.remove(min(fitting))
        free.append((min(fitting) if fitting else capacity) - size)
    return len(free)


def test_packing_real_lengths_leaves_little_padding():
    lengths = np.random.default_rng(0).lognormal(5, 1, 20000).astype(int) + 1
    for capacity in (128, 512):
        order, ends = best_fit(cut(lengths, capacity).length, capacity)
        assert len(order) > len(ends)
        assert lengths.sum() / (len(ends) * capacity) > 0.995


# --- the store ------------------------------------------------------------------------------------


def test_documents_are_stored_as_they_were_tokenised(prepared, preprocessing):
    directory, texts = prepared
    store = TokenStore(str(directory), "train")
    assert len(store) == 21
    assert store.lengths[-1] > PIECE
    tokenizer = preprocessing.opened
    counts = np.zeros(store.vocabulary_size, int)
    for number, text in enumerate(texts):
        ids = tokenizer.ids(text)
        np.testing.assert_array_equal(store.read(number, 0, len(ids)), ids)
        assert store.sentences(number).sum() == len(ids)
        ends = np.cumsum(store.sentences(number)) - 1
        assert (ids[ends] == tokenizer.ids(".")[0]).all()
        counts += np.bincount(ids, minlength=len(counts))
    np.testing.assert_array_equal(store.frequencies, counts)
    long = tokenizer.ids(texts[-1])
    for start, stop in ((PIECE - 3, PIECE + 4), (PIECE, PIECE + 1), (0, PIECE), (5, len(long))):
        np.testing.assert_array_equal(store.read(20, start, stop), long[start:stop])


def test_unigram_entropy():
    assert unigram_entropy(np.array([0, 5, 5])) == pytest.approx(np.log(2))
    assert unigram_entropy(np.array([7, 0])) == 0
    assert TokenStore("sample:peps", "train").unigram_entropy == pytest.approx(6.255, abs=1e-3)


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("packing", PACKINGS)
def test_rows_hold_every_token_once(packing, wrap, prepared, preprocessing):
    source = tokens(prepared, preprocessing, packing=packing, wrap=wrap)
    tokenizer = preprocessing.opened
    special = tokenizer.vocabulary
    pieces, filled = [], 0
    for index in range(len(source)):
        row = source[index]
        assert [row[name].shape for name in ("ids", "segments", "word_start")] == [(32,)] * 3
        assert (row["ids"].dtype, row["segments"].dtype) == (np.int32, np.int32)
        count = row["segments"].max()
        assert count == 1 or packing == "best_fit"
        real = row["segments"] > 0
        filled += real.sum()
        assert (row["ids"][~real] == special.pad_id).all()
        assert (np.diff(row["segments"][real]) >= 0).all()
        for segment in range(1, count + 1):
            here = row["segments"] == segment
            ids, words = row["ids"][here], row["word_start"][here]
            if wrap:
                assert (ids[0], ids[-1]) == (special.cls_id, special.sep_id)
                assert words[0]
                assert words[-1]
                ids, words = ids[1:-1], words[1:-1]
            assert words[0]
            if packing != "concatenated":
                np.testing.assert_array_equal(words, tokenizer.word_starts(ids))
            pieces.append(ids)
    assert source.padding == pytest.approx(1 - filled / (len(source) * 32))
    if packing == "concatenated":
        stream = np.concatenate(pieces)
        breaks = np.flatnonzero(stream == special.sep_id)
        assert breaks[-1] == len(stream) - 1
        pieces = [part[part != special.sep_id] for part in np.split(stream, breaks + 1)[:-1]]
    texts = [tokenizer.ids(text) for text in prepared[1]]
    if packing != "concatenated":
        room = 30 if wrap else 32
        texts = [text[s : s + room] for text in texts for s in range(0, len(text), room)]
    assert sorted(map(tuple, pieces)) == sorted(map(tuple, texts))


def test_packing_is_denser_and_says_so(prepared, preprocessing, caplog):
    with caplog.at_level(logging.INFO):
        packed = tokens(prepared, preprocessing)
    assert "21 documents" in caplog.text
    assert f"{100 * packed.padding:.2f} % are padding" in caplog.text
    assert packed.padding < 0.02
    assert packed.padding < tokens(prepared, preprocessing, packing="none").padding / 4
    assert "record" in packed.describe(3)


def test_parts_share_no_document(prepared, preprocessing):
    first, second = (
        tokens(prepared, preprocessing, **part) for part in ({"stop": 0.7}, {"start": 0.7})
    )
    documents = [set(source._documents.tolist()) for source in (first, second)]
    assert not documents[0] & documents[1]
    assert documents[0] | documents[1] == set(range(21))


def pipelines(source, rows, **options):
    return [Pipeline(source, [], 8, 3, rows=part, threads=0, **options) for part in rows]


@pytest.mark.parametrize("processes", [2, 4])
def test_the_global_batch_is_the_same_for_any_number_of_processes(
    processes, prepared, preprocessing
):
    source = tokens(prepared, preprocessing)
    [whole] = pipelines(source, [None])
    parts = pipelines(source, np.arange(8).reshape(processes, -1))
    for step in (0, 7, 300):
        expected = whole.batch(step)
        found = [part.batch(step) for part in parts]
        for name in ("ids", "segments", "word_start", "row"):
            joined = np.concatenate([batch[name] for batch in found])
            np.testing.assert_array_equal(joined, expected[name])


def test_batches_go_on_from_any_step_in_threads_and_workers(prepared, preprocessing):
    source = tokens(prepared, preprocessing)
    expected = [Pipeline(source, [], 8, 0, threads=0).batch(step) for step in range(5, 8)]
    for options in ({"threads": 2}, {"processes": 2}):
        found = list(Pipeline(source, [], 8, 0, **options).iterate(5, 8))
        for one, other in zip(expected, found, strict=True):
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])


def test_evaluation_passes_over_rows(prepared, preprocessing):
    source = pickle.loads(pickle.dumps(tokens(prepared, preprocessing)))
    [transform] = preprocessing.eval_transforms()
    row = source[0]
    assert transform(row, None) is row


def test_data_that_does_not_fit(prepared, preprocessing, tmp_path):
    other = train_tokenizer(prepared[1], "wordpiece", 80)
    wrong = TextPreprocessing(tokenizer=other.to_json(), max_length=32)
    with pytest.raises(DataError, match=r"another tokenizer .* use its own, .*tokenizer\.json"):
        tokens(prepared, wrong)
    with pytest.raises(ConfigError, match=r"from 3 to preprocessing\.max_length, 32, got 33"):
        tokens(prepared, preprocessing, length=33)
    assert tokens(prepared, preprocessing, length=16)[0]["ids"].shape == (16,)
    with pytest.raises(DataError, match="holds no tokens"):
        Tokens(path="sample:fashion_mnist", preprocessing=preprocessing)
    with pytest.raises(DataError, match="Did you mean 'train'"):
        tokens(prepared, preprocessing, split="trian")
    copy = tmp_path / "copy"
    shutil.copytree(prepared[0], copy)
    [index, *_] = sorted(copy.glob("*.index.npz"))
    index.write_bytes(index.read_bytes()[:100])
    with pytest.raises(DataError, match=r"index .* is damaged"):
        TokenStore(str(copy), "train")
    index.unlink()
    with pytest.raises(DataError, match=r"index .* is missing"):
        TokenStore(str(copy), "train")


def test_a_small_data_set_of_texts_is_packed_without_being_prepared(monkeypatch):
    preprocessing = TextPreprocessing(
        tokenizer="sample:peps/tokenizer.json", max_length=64, token_types=False
    )
    source = Tokens(path="sample:banking77", split="test", preprocessing=preprocessing)
    texts = Sample(dataset="banking77", split="test")
    ids = [preprocessing.opened.ids(texts[i]["text"]) for i in range(40)]
    row = source[0]
    first = row["ids"][(row["segments"] == 1)][1:-1]
    found = map(preprocessing.opened.ids, _all(texts))
    assert any(np.array_equal(first, one[: len(first)]) for one in found)  # the longest is cut
    np.testing.assert_array_equal(source.store.lengths[:40], [len(one) for one in ids])
    assert len(source.store) == 3080
    assert source.padding < 0.02
    assert 3 < source.unigram_entropy < 7
    assert "banking77" in source.describe(0)
    monkeypatch.setattr(tokenized_texts, "_MOST", 3000)
    with pytest.raises(DataError, match="too many to be tokenised at every start"):
        Tokens(path="sample:banking77", split="test", preprocessing=preprocessing)


def _all(texts):
    return (texts[i]["text"] for i in range(len(texts)))


def test_ids_beyond_the_vocabulary_are_corrupt(prepared, preprocessing):
    source = tokens(prepared, preprocessing)
    source.store._tokenizer["size"] = 7
    with pytest.raises(CorruptExample, match="beyond the 7"):
        source[0]


# --- pairs ----------------------------------------------------------------------------------------


def pairs(prepared, preprocessing, **fields):
    section = {"name": "sentence_pairs", "path": str(prepared[0]), **fields}
    return build(SOURCES, section, "data.source", **preprocessing.for_sources)


def halves(row, special):
    ids = row["ids"][row["segments"] > 0]
    first, last = np.flatnonzero(ids == special.sep_id)
    assert ids[0] == special.cls_id
    assert last == len(ids) - 1
    assert row["token_types"][: len(ids)].tolist() == [0] * (first + 1) + [1] * (last - first)
    return ids[1:first], ids[first + 1 : last]


def places(part, text):
    """Where a run of tokens stands in a document."""
    starts = np.flatnonzero(text[: max(0, len(text) - len(part) + 1)] == part[0])
    return [s for s in starts.tolist() if (text[s : s + len(part)] == part).all()]


@pytest.mark.parametrize("task", ["nsp", "sop"])
def test_labels_say_where_the_second_text_is_from(task, prepared):
    preprocessing = TextPreprocessing(tokenizer=str(prepared[0]), max_length=64)
    source = pairs(prepared, preprocessing, task=task)
    texts = [preprocessing.opened.ids(text) for text in prepared[1]]
    rng = np.random.default_rng(1)
    labels = []
    for index in rng.integers(0, len(source), 150):
        row = source.draw(index, rng)
        a, b = halves(row, preprocessing.special)
        assert min(len(a), len(b)) > 0
        text = texts[source._chunks[index][0]]
        apart = [q - p - len(a) for p in places(a, text) for q in places(b, text)]
        in_order = any(0 <= gap < 12 for gap in apart)
        labels.append(row["label"])
        if len(a) > 4 and len(b) > 4:  # shorter runs are found anywhere
            assert in_order == (row["label"] == 0)
            if task == "sop":
                back = [p - q - len(b) for p in places(a, text) for q in places(b, text)]
                assert in_order or any(0 <= gap < 12 for gap in back)
    assert 0.35 < np.mean(labels) < (0.75 if task == "nsp" else 0.65)


def test_pairs_change_from_epoch_to_epoch_and_not_with_processes(prepared, preprocessing):
    source = pairs(prepared, preprocessing)
    [whole] = pipelines(source, [None])
    parts = pipelines(source, np.arange(8).reshape(2, -1))
    expected = whole.batch(3)
    np.testing.assert_array_equal(expected["ids"], whole.batch(3)["ids"])
    again = np.concatenate([part.batch(3)["ids"] for part in parts])
    np.testing.assert_array_equal(again, expected["ids"])
    [mixed] = pipelines(Mixture((source,)), [None])
    assert (mixed.batch(0)["ids"] != mixed.batch(40)["ids"]).any()
    drawn = [source.draw(0, np.random.default_rng(seed))["ids"].tolist() for seed in range(8)]
    assert len({tuple(ids) for ids in drawn}) > 1
    np.testing.assert_array_equal(source[0]["ids"], source[0]["ids"])


def test_short_pairs_are_as_many_as_asked_for(prepared):
    preprocessing = TextPreprocessing(tokenizer=str(prepared[0]), max_length=128)
    rng = np.random.default_rng(0)
    means = []
    for share in (0.0, 1.0):
        source = pairs(prepared, preprocessing, task="sop", short_seq_prob=share, start=0.0)
        filled = [source.draw(i, rng)["segments"].sum() for i in range(0, len(source), 2)]
        means.append(np.mean(filled))
    assert means[1] < 0.75 * means[0]


@pytest.mark.parametrize("lengths", [(9, 4), (4, 9), (9, 9), (8, 7), (3, 3)])
def test_the_longer_text_is_shortened_at_both_ends(lengths):
    a, b = (np.arange(n) for n in lengths)
    seen = set()
    for seed in range(20):
        short, other = _shorten(a, b, 10, np.random.default_rng(seed))
        # One token at a time from the longer, the second where both are as long.
        x, y = lengths
        while x + y > 10:
            x, y = (x - 1, y) if x > y else (x, y - 1)
        assert (len(short), len(other)) == (x, y)
        assert (np.diff(short) == 1).all()
        assert (np.diff(other) == 1).all()
        seen.add((short[0], other[0]))
    assert (len(seen) > 1) == (sum(lengths) > 10)


def test_pairs_need_sentences_and_documents(prepared, preprocessing, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the cat sat.\n\nthe dog ran. the bird flew.")
    command = ["--from", "text", "--input", str(corpus), "--tokenizer", str(prepared[0]), "--to"]
    main([*command, str(tmp_path / "plain")])
    with pytest.raises(DataError, match="does not say where sentences end"):
        SentencePairs(path=str(tmp_path / "plain"), preprocessing=preprocessing)
    with pytest.raises(DataError, match="need two documents, found one"):
        pairs(prepared, preprocessing, stop=0.05)
    with pytest.raises(ConfigError, match="short_seq_prob"):
        pairs(prepared, preprocessing, short_seq_prob=1.5)
    with pytest.raises(ConfigError, match="room for two texts"):
        pairs(prepared, preprocessing, length=4)


def test_sources_of_text_mix(prepared, preprocessing):
    section = {
        "name": "mixture",
        "sources": (
            {"name": "tokens", "path": str(prepared[0])},
            {"name": "tokens", "path": "sample:peps"},
        ),
    }
    with pytest.raises(DataError, match="another tokenizer"):
        build(SOURCES, section, "data.source", **preprocessing.for_sources)
    section["sources"] = (section["sources"][0], {"name": "tokens", "path": str(prepared[0])})
    source = build(SOURCES, section, "data.source", **preprocessing.for_sources)
    assert Pipeline(source, [], 4, 0, threads=0).batch(0)["ids"].shape == (4, 32)
