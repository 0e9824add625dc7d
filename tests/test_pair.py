"""Two towers with their weights: embeddings, logits, loading and saving."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import encoders
from encoders.config import build
from encoders.data import PREPROCESSING
from encoders.errors import ConfigError, DataError
from encoders.models import MODELS
from encoders.pair import PairEncoder

TOKENIZER = str(pathlib.Path(__file__).parent / "golden" / "sentence" / "bert_mean")
SIZE = {"width": 16, "depth": 1, "mlp_dim": 20, "num_heads": 2}
MODEL = {
    "name": "towers",
    "image": {"name": "vit", **SIZE, "patch_size": 4},
    "text": {"name": "clip_text", **SIZE, "vocab_size": 2000, "max_length": 8},
    "embedding_dim": 12,
    "image_projection": "linear",
    "text_projection": "linear",
    "logit_bias": -3.0,
}
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
TEXTS = ["a man", "a guitar and a man play", "A man!"]


@functools.cache
def pair(**fields):
    module = build(MODELS, MODEL, "model")
    text = {"tokenizer": TOKENIZER, "max_length": 8, "token_types": False, **fields}
    section = {"name": "image_text", "image": {"image_size": (8, 8)}, "text": text}
    preprocessing = build(PREPROCESSING, section, "preprocessing")
    example = preprocessing.example_batch(1)
    images = preprocessing.normalize(example["image"])
    variables = jax.jit(module.init)(jax.random.key(0), images, example["ids"])
    return PairEncoder(module, variables, preprocessing)


@pytest.fixture(scope="module")
def embedded():
    return pair()(IMAGES, TEXTS)


def test_embeddings_have_length_one(embedded):
    images, texts = embedded
    assert images.shape == texts.shape == (3, 12)
    assert images.dtype == texts.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(np.concatenate(embedded), axis=1), 1, atol=1e-5)
    assert np.abs(texts[0] - texts[1]).max() > 1e-3
    floats = pair().embed_image(pair().preprocessing.normalize(IMAGES))
    np.testing.assert_allclose(floats, images, atol=1e-5)


def test_logits_are_the_module_s(embedded):
    expected = pair().module.apply(pair().variables, *map(jnp.asarray, embedded), method="logits")
    found = pair().similarity(IMAGES, TEXTS[:2])
    np.testing.assert_allclose(found, np.asarray(expected)[:, :2], atol=1e-5)


def test_batches_change_nothing(embedded):
    one_by_one = pair().embed_text(TEXTS, batch_size=1)
    np.testing.assert_allclose(one_by_one, embedded[1], atol=1e-5)


def test_ids_are_read_up_to_their_end(embedded):
    [tokenize] = pair().preprocessing.text.eval_transforms()
    rows = [tokenize({"text": text}, np.random.default_rng(0)) for text in TEXTS]
    ids = np.stack([row["ids"] for row in rows])
    np.testing.assert_allclose(pair().embed_text(ids), embedded[1], atol=1e-5)
    mask = np.stack([row["segments"] for row in rows]) > 0
    np.testing.assert_allclose(pair().embed_text(ids, mask=mask), embedded[1], atol=1e-5)
    whole = pair(attend_padding=True)
    assert np.abs(whole.embed_text(ids)[0] - embedded[1][0]).max() > 1e-4
    np.testing.assert_allclose(whole.embed_text(ids), whole.embed_text(TEXTS), atol=1e-5)


def test_texts_are_prepared():
    canonical = pair(lowercase=True, strip_punctuation=True).embed_text(TEXTS)
    np.testing.assert_allclose(canonical[0], canonical[2], atol=1e-6)


def test_towers_by_themselves():
    assert pair().image(IMAGES).pooled.shape == (3, 16)
    assert pair().text.embed(TEXTS).shape == (3, 16)


def test_saved_pairs_load(tmp_path, embedded):
    encoders.save(pair(), tmp_path / "saved")
    again = encoders.load(tmp_path / "saved")
    assert isinstance(again, PairEncoder)
    assert again.module == pair().module
    assert again.preprocessing.image == pair().preprocessing.image
    for found, expected in zip(again(IMAGES, TEXTS), embedded, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: p.embed_text([]), DataError, "got an empty one"),
        (lambda p: p.embed_text(["a", 3]), DataError, "number 1 is int"),
        (lambda p: p.embed_text("a cat"), DataError, "expected a list of texts, got str"),
        (lambda p: p.embed_text(np.zeros(3, int)), DataError, r"ids \[N, T\], got \(3,\)"),
        (lambda p: p.embed_text(np.full((1, 3), 2000)), DataError, "2000 is not in the voc"),
        (lambda p: p.embed_text(np.zeros((1, 9), int)), ConfigError, "9 .*8"),
        (lambda p: p.embed_text(["a"], mask=np.ones((1, 1))), DataError, "mask: is of ids"),
        (lambda p: p.embed_text(["a"], batch_size=0), ConfigError, "a number from 1, got 0"),
        (lambda p: p.embed_image(IMAGES[0]), DataError, "add the batch axis"),
        (lambda p: p.embed_image(IMAGES[..., :1]), DataError, "expected 3 channels"),
    ],
)
def test_wrong_input_is_one_sentence(call, error, message):
    with pytest.raises(error, match=message):
        call(pair())


def test_no_tokenizer_is_said():
    bare = PairEncoder(pair().module, pair().variables)
    with pytest.raises(DataError, match="no tokenizer with these weights"):
        bare.embed_text(TEXTS)
