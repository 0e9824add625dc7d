import json
import pathlib
import pickle

import numpy as np
import pytest
import tokenizers
from tokenizers import processors

from encoders.data import TextPreprocessing, Vocabulary
from encoders.data.sources.base import CorruptExample
from encoders.data.tokenizer import Tokenizer
from encoders.data.tokenizer_training import train_tokenizer
from encoders.errors import ConfigError, DataError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tokenizers"
CASES = ("bert_uncased", "bert_cased", "roberta", "unigram")
TEXTS = ["the cat sat on the mat", "the dog sat, too", "Cats and dogs", "unhappily unlike"] * 5


@pytest.fixture(scope="module")
def trained():
    sizes = {"wordpiece": 60, "bpe": 300, "unigram": 40}
    return {kind: train_tokenizer(TEXTS, kind, size) for kind, size in sizes.items()}


@pytest.mark.parametrize("case", CASES)
def test_ids_are_those_of_transformers(case):
    tokenizer = Tokenizer.load(str(GOLDEN / case))
    expected = json.loads((GOLDEN / case / "expected.json").read_text())
    for item in expected["inputs"]:
        parts = [tokenizer.ids(text) for text in item["texts"]]
        for name, length in (("whole", 512), ("cut", expected["max_length"])):
            ids, types, words = tokenizer.assemble(parts, length)
            assert [ids.tolist(), types.tolist()] == item[name], item["texts"]
            assert len(words) == len(ids)
    texts = [text for item in expected["inputs"] for text in item["texts"]]
    for text, ids in zip(texts, tokenizer.batch_ids(texts), strict=True):
        np.testing.assert_array_equal(ids, tokenizer.ids(text))


def test_every_way_to_open_a_tokenizer(tmp_path, trained):
    tokenizer = trained["wordpiece"]
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json())
    for source in (str(path), str(tmp_path), tokenizer.to_json()):
        assert Tokenizer.load(source).hash == tokenizer.hash
    assert Tokenizer.load("sample:peps").vocabulary.size == 6144


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_what_travels_to_workers_is_the_same(kind, trained):
    tokenizer = trained[kind]
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.hash == tokenizer.hash
    np.testing.assert_array_equal(copy.ids("the cats"), tokenizer.ids("the cats"))
    np.testing.assert_array_equal(copy.word_start, tokenizer.word_start)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_training_is_reproducible(kind, trained):
    size = trained[kind].vocabulary.size
    again = train_tokenizer(iter(TEXTS), kind, size)
    assert again.to_json() == trained[kind].to_json()


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_words_begin_where_white_space_was(kind, trained):
    tokenizer = trained[kind]
    text = "unlike dogs the happily catmat"
    encoded = tokenizer.inner.encode(text, add_special_tokens=False)
    # A token begins a word if it has the white space, or if that stands before it and has no token.
    ends = [0, *(stop for _, stop in encoded.offsets)]
    expected = [
        start == 0 or " " in text[end : start + 1]
        for end, (start, _) in zip(ends, encoded.offsets, strict=False)
    ]
    assert 5 == sum(expected) < len(expected)
    assert tokenizer.word_starts(np.array(encoded.ids)).tolist() == expected
    assert tokenizer.word_start[list(tokenizer.vocabulary.special_ids)].all()


def test_words_that_are_not_marked_are_an_error():
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    inner.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    with pytest.raises(DataError, match="whole words"):
        _ = Tokenizer.wrap(inner).word_start


def test_frames_follow_the_tokenizer(trained):
    inner = tokenizers.Tokenizer.from_str(trained["wordpiece"].to_json())
    inner.post_processor = processors.TemplateProcessing(
        single="$A:0 [SEP]:0 [CLS]:2",
        pair="$A:0 [SEP]:0 $B:1 [SEP]:1 [CLS]:2",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer = Tokenizer.wrap(inner)
    a, b = np.array([10, 11]), np.array([12])
    assert [x.tolist() for x in tokenizer.assemble([a, b], 9)[:2]] == [
        [10, 11, 3, 12, 3, 2],
        [0, 0, 0, 1, 1, 2],
    ]
    assert tokenizer.assemble([a], 9)[0].tolist() == [10, 11, 3, 2]
    inner.post_processor = None
    assert Tokenizer.wrap(inner).assemble([a, b], 9)[0].tolist() == [2, 10, 11, 3, 12, 3]


def test_special_tokens_that_a_text_spells_out(trained):
    tokenizer = trained["wordpiece"]
    assert 4 in tokenizer.ids("the [MASK] sat")
    assert 4 not in tokenizer.literal().ids("the [MASK] sat")
    assert tokenizer.literal().hash == tokenizer.hash


def test_tokenizers_that_differ_have_other_hashes(trained):
    cased = train_tokenizer(TEXTS, "bpe", 300)
    lower = train_tokenizer(TEXTS, "bpe", 300, lowercase=True)
    assert cased.hash == trained["bpe"].hash != lower.hash
    assert lower.ids("CAT").tolist() == lower.ids("cat").tolist()


def test_tokenizers_that_cannot_be_opened(tmp_path, trained):
    with pytest.raises(DataError, match="no file or directory"):
        Tokenizer.load(str(tmp_path / "none.json"))
    with pytest.raises(DataError, match=r"has no tokenizer\.json"):
        Tokenizer.load(str(tmp_path))
    (tmp_path / "spiece.model").write_bytes(b"")
    with pytest.raises(DataError, match=r"only spiece\.model; write a tokenizer\.json"):
        Tokenizer.load(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="no tokenizer"):
        Tokenizer.load(str(tmp_path))
    with pytest.raises(DataError, match=r"no sample 'pep' ships .* Did you mean 'peps'"):
        Tokenizer.load("sample:pep")
    bare = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(DataError, match="no token for pad_id"):
        Tokenizer.load(bare.to_str())
    with pytest.raises(ConfigError, match=r"preprocessing\.vocabulary: the config says"):
        Tokenizer.load(trained["bpe"].to_json(), Vocabulary(9, 0, 1, 2, 3, 4))


def test_training_without_room():
    with pytest.raises(ConfigError, match="leaves no room"):
        train_tokenizer(TEXTS, "bpe", 200)


# --- preprocessing and the transform ----------------------------------------------------------


def run(preprocessing, **example):
    [tokenize] = preprocessing.eval_transforms()
    return tokenize(example, np.random.default_rng(0))


def test_a_pair_becomes_padded_fields(trained):
    tokenizer = trained["wordpiece"]
    preprocessing = TextPreprocessing(tokenizer=tokenizer.to_json(), max_length=16)
    made = run(preprocessing, text="the cat", other="dogs", label=3)
    a, b = tokenizer.ids("the cat").tolist(), tokenizer.ids("dogs").tolist()
    ids = [2, *a, 3, *b, 3]
    assert made["label"] == 3
    assert made["ids"].tolist() == ids + [0] * (16 - len(ids))
    assert made["segments"].tolist() == [1] * len(ids) + [0] * (16 - len(ids))
    types = [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert made["token_types"].tolist() == types + [0] * (16 - len(ids))
    assert made["word_start"].dtype == bool
    assert made["word_start"][: len(a) + 1].tolist() == [True, *tokenizer.word_starts(np.array(a))]
    without = TextPreprocessing(tokenizer=tokenizer.to_json(), max_length=16, token_types=False)
    assert "token_types" not in run(without, text="the cat", other="dogs")


def test_tokens_pass_and_bad_text_is_corrupt(trained):
    preprocessing = TextPreprocessing(tokenizer=trained["bpe"].to_json(), max_length=16)
    assert run(preprocessing, ids=1) == {"ids": 1}
    for text in (b"bytes", None, "\udcff"):
        with pytest.raises(CorruptExample, match="not a text"):
            run(preprocessing, text=text)
    with pytest.raises(CorruptExample, match="no field 'text'"):
        run(preprocessing, words="the cat")


def test_lengths_without_room(trained):
    with pytest.raises(ConfigError, match="three tokens"):
        TextPreprocessing(tokenizer="x", max_length=2)
    preprocessing = TextPreprocessing(tokenizer=trained["bpe"].to_json(), max_length=5)
    assert run(preprocessing, text="the cat sat")["segments"].sum() == 5
    with pytest.raises(ConfigError, match="5 leaves no room between 4 special tokens"):
        run(preprocessing, text="the cat", other="dogs")


def test_preprocessing_carries_its_tokenizer(trained):
    preprocessing = TextPreprocessing(tokenizer=trained["bpe"].to_json(), max_length=16)
    fields = json.loads(json.dumps(preprocessing.to_json()))
    assert fields.pop("name") == "text"
    again = TextPreprocessing(**fields)
    assert again.opened.hash == preprocessing.opened.hash
