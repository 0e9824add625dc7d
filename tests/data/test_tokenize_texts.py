"""Several texts of an example as rows, or as pairs with the first."""

import pathlib

import numpy as np
import pytest

from encoders.config import build
from encoders.data import TRANSFORMS, CorruptExample, TextPreprocessing
from encoders.errors import ConfigError

TOKENIZER = pathlib.Path(__file__).parents[1] / "golden" / "sentence" / "bert_mean"
PREPROCESSING = TextPreprocessing(str(TOKENIZER / "tokenizer.json"), 9)
EXAMPLE = {"a": "a man", "b": "a guitar and a song", "c": "", "score": 2.5}


def transform(preprocessing=PREPROCESSING, **fields):
    section = {"name": "tokenize_texts", **fields}
    return build(TRANSFORMS, section, "data.transforms[0]", preprocessing=preprocessing)


def test_texts_are_stacked():
    found = transform(fields=("a", "b", "c"))(EXAMPLE, None)
    assert found["ids"].shape == found["segments"].shape == (3, 9)
    assert "token_types" not in found
    assert found["score"] == 2.5
    tokenizer = PREPROCESSING.opened
    for row, name in enumerate("abc"):
        expected = tokenizer.assemble([tokenizer.ids(EXAMPLE[name])], 9)[0]
        np.testing.assert_array_equal(found["ids"][row, : len(expected)], expected)
        assert found["segments"][row].sum() == len(expected)


def test_pairs_share_rows_with_the_first():
    found = transform(fields=("a", "b", "c"), pair=True)(EXAMPLE, None)
    assert found["ids"].shape == found["token_types"].shape == (2, 9)
    tokenizer = PREPROCESSING.opened
    parts = [tokenizer.ids(EXAMPLE[name]) for name in "ab"]
    ids, types, _ = tokenizer.assemble(parts, 9)
    np.testing.assert_array_equal(found["ids"][0, : len(ids)], ids)
    np.testing.assert_array_equal(found["token_types"][0, : len(ids)], types)
    single = transform(fields=("a", "b"), pair=True)(EXAMPLE, None)
    np.testing.assert_array_equal(single["ids"], found["ids"][0])
    plain = TextPreprocessing(PREPROCESSING.tokenizer, 9, token_types=False)
    assert "token_types" not in transform(plain, fields=("a", "b"), pair=True)(EXAMPLE, None)


def test_mistakes_are_one_sentence():
    with pytest.raises(CorruptExample, match="no text in field 'd', only"):
        transform(fields=("a", "d"))(EXAMPLE, None)
    with pytest.raises(ConfigError, match="expected names of two texts or more, got"):
        transform(fields=("a",), pair=True)
