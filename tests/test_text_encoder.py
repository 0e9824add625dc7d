"""TextEncoder: texts to vectors in buckets, scores of pairs, packed rows, mistakes."""

import dataclasses
import pathlib

import numpy as np
import pytest

import encoders
from encoders.data.buckets import length_batches
from encoders.encoder import TextEncoder
from encoders.errors import CheckpointError, ConfigError, DataError

GOLDEN = pathlib.Path(__file__).parent / "golden" / "sentence"
TEXTS = ["A dog!", "", "a man is playing a guitar and sings the song", "A man", "a b c d e f g h"]


def close(a, b, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def encoder():
    return encoders.load(GOLDEN / "bert_mean")


def test_batches_of_few_shapes():
    lengths = [3, 40, 17, 16, 2, 100, 33]
    batches = list(length_batches(lengths, 3, 90 + 10))
    assert [(numbers.tolist(), length, rows) for numbers, length, rows in batches] == [
        ([5, 1, 6], 100, 3),  # as many as there are positions, rather than 128
        ([2, 3, 0], 32, 3),
        ([4], 16, 1),
    ]


def test_vectors_are_those_of_single_texts_in_order(encoder):
    together = encoder.embed(TEXTS, batch_size=2)
    assert together.shape == (5, 12)
    assert together.dtype == np.float32
    close(together, np.concatenate([encoder.embed([text]) for text in TEXTS]))
    close(np.linalg.norm(together, axis=1), 1)


def test_pooling_and_normalisation_can_be_chosen(encoder):
    plain = encoder.embed(TEXTS, normalize=False)
    close(plain / np.linalg.norm(plain, axis=1, keepdims=True), encoder.embed(TEXTS))
    both = encoder.embed(TEXTS, pooling=("cls", "mean"), normalize=False)
    close(both[:, 12:], plain)
    assert np.abs(both[:, :12] - plain).min(1).max() > 0


def test_the_module_pools_where_the_weights_do_not_say(encoder):
    own = dataclasses.replace(encoder, metadata={})
    ids = np.stack([_padded(encoder, text) for text in TEXTS[:2]])
    close(own.embed(TEXTS[:2]), encoder(ids, mask=ids > 0).pooled)
    bare = dataclasses.replace(own, module=encoder.module.clone(pool="none"))
    close(bare.embed(TEXTS[:2]), encoder.embed(TEXTS[:2], normalize=False))


def test_how_it_was_trained_says_how_to_pool(encoder, tmp_path):
    objective = {"name": "sentence_contrast", "pooling": "max"}
    trained = dataclasses.replace(
        encoder, metadata={}, objective=objective, heads={"head": {"kernel": np.ones((12, 12))}}
    )
    encoders.save(trained, tmp_path / "run", heads=True)
    loaded = encoders.load(tmp_path / "run")
    assert loaded.metadata["embedding"] == {"pooling": ["max"]}
    encoders.save(loaded, tmp_path / "alone")
    assert encoders.load(tmp_path / "alone").metadata["embedding"] == {"pooling": ["max"]}


def _padded(encoder, text):
    tokenizer = encoder.preprocessing.opened
    ids = tokenizer.assemble([tokenizer.ids(text)], 12)[0]
    return np.pad(ids, (0, 12 - len(ids)))


def test_a_pair_shares_a_row(encoder):
    others = [text[::-1] for text in TEXTS]
    pairs = encoder.embed(TEXTS, others, batch_size=4)
    tokenizer = encoder.preprocessing.opened
    ids, types, _ = tokenizer.assemble([tokenizer.ids(TEXTS[0]), tokenizer.ids(others[0])], 12)
    assert types.max() == 1
    alone = encoder(ids[None], token_types=types[None]).tokens[0].mean(0)
    close(pairs[0], alone / np.linalg.norm(alone))


def test_scores_of_pairs(encoder):
    head = {"kernel": np.ones((12, 1), np.float32), "bias": np.full(1, 0.5, np.float32)}
    cross = dataclasses.replace(
        encoder, metadata={"embedding": {"pooling": ["cls"]}}, heads={"head": head}
    )
    scores = cross.score(TEXTS, TEXTS)
    assert scores.shape == (5,)
    close(scores, cross.embed(TEXTS, TEXTS).sum(1) + 0.5)
    with pytest.raises(CheckpointError, match="cannot score pairs: they hold no head with one"):
        encoder.score(TEXTS, TEXTS)


def test_packed_rows_are_encoded_apart(encoder):
    one, two = np.array([[5, 9, 6]]), np.array([[5, 8, 7, 6]])
    packed = encoder(np.concatenate([one, two], 1), segments=[[1, 1, 1, 2, 2, 2, 2]])
    close(packed.tokens[:, :3], encoder(one).tokens)
    close(packed.tokens[:, 3:], encoder(two).tokens)
    assert packed.mask.all()
    with pytest.raises(DataError, match="segments: expected the shape of ids"):
        encoder(one, segments=[[1, 1]])


def test_saved_weights_keep_tokenizer_and_pooling(encoder, tmp_path):
    encoders.save(encoder, tmp_path / "copy")
    again = encoders.load(tmp_path / "copy")
    close(again.embed(TEXTS), encoder.embed(TEXTS), 0)


@pytest.mark.parametrize(
    "texts, more, error, message",
    [
        ("one text", {}, DataError, "texts: expected a list of texts, got str"),
        ([], {}, DataError, "texts: expected a list of texts, got an empty one"),
        (["a", 3], {}, DataError, "texts: number 1 is int, not a text"),
        (["a", "b\ud800"], {}, DataError, "texts: number 1 is not valid Unicode"),
        (["a"], {"others": ["b", "c"]}, DataError, "others: expected 1, one for each text, got 2"),
        (["a"], {"pooling": "meen"}, ConfigError, "pooling: unknown 'meen'. Did you mean 'mean'"),
        (["a"], {"batch_size": 0}, ConfigError, "batch_size: expected a number from 1, got 0"),
    ],
)
def test_wrong_texts_are_one_sentence(encoder, texts, more, error, message):
    with pytest.raises(error, match=message):
        encoder.embed(texts, **more)


def test_no_tokenizer_is_said_with_the_reason():
    text = pathlib.Path(__file__).parent / "golden" / "text" / "bert"
    bare = encoders.load(text)
    if bare.preprocessing is None:
        with pytest.raises(DataError, match=r"no tokenizer with these weights .*: .* has no tok"):
            bare.embed(["a"])
    without = TextEncoder(bare.module, bare.variables)
    with pytest.raises(DataError, match="they came without any"):
        without.embed(["a"])
