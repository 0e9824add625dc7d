"""What is written for sentence-transformers and transformers gives the same vectors there."""

import pathlib

import numpy as np
import pytest

import encoders

sentence_transformers = pytest.importorskip("sentence_transformers")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "sentence"
TEXTS = ["A man is playing a guitar.", "", "the naïve café in 東京 isn't open", "A dog! " * 20]


@pytest.mark.parametrize("name", ["bert_mean", "roberta_cls_max"])
def test_written_directories_encode_the_same(name, tmp_path):
    encoder = encoders.load(GOLDEN / name)
    encoders.save(encoder, tmp_path / "out", format="sentence-transformers")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(encoder.embed(TEXTS), theirs.encode(TEXTS), rtol=0, atol=1e-5)


def test_written_cross_encoders_score_the_same(tmp_path):
    encoder = encoders.load(GOLDEN / "cross_bert")
    encoders.save(encoder, tmp_path / "out", format="hf", heads=True)
    theirs = sentence_transformers.CrossEncoder(str(tmp_path / "out"), device="cpu")
    pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
    scores = 1 / (1 + np.exp(-encoder.score(TEXTS, TEXTS[::-1])))
    np.testing.assert_allclose(scores, theirs.predict(pairs), rtol=0, atol=1e-5)
