"""python -m tools.search, and python -m tools.embed of texts."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

import encoders
from encoders.errors import CheckpointError, ConfigError, DataError
from tools import embed, search

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
MODEL, VIT = str(GOLDEN / "sentence" / "bert_mean"), str(GOLDEN / "interop" / "hf_vit")
TEXTS = ["A man is playing a guitar.", "a dog", "The song", "A man is playing a guitar", "an end"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Five texts with ids; a line that is no UTF-8, and an empty text."""
    path = tmp_path_factory.mktemp("corpus") / "docs.jsonl"
    lines = [json.dumps({"id": f"doc{i}", "text": text}).encode() for i, text in enumerate(TEXTS)]
    lines.insert(2, b'{"id": "bad", "text": "caf\xe9"}')
    lines.append(b'{"id": "empty", "text": "  "}')
    path.write_bytes(b"\n".join(lines) + b"\n")
    return str(path)


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    """The same encoder with a head that scores by one feature."""
    path = tmp_path_factory.mktemp("cross") / "model"
    encoder = encoders.load(MODEL)
    head = {"kernel": np.eye(12, 1, dtype=np.float32), "bias": np.zeros(1, np.float32)}
    made = dataclasses.replace(
        encoder, metadata={}, objective={"name": "ranking"}, heads={"head": head}
    )
    encoders.save(made, path, heads=True)
    return str(path)


def run(corpus, tmp_path, *flags, model=MODEL):
    output = tmp_path / "out.json"
    arguments = ["--model", model, "--corpus", corpus, "--output", str(output), *flags]
    search.main(arguments)
    return json.loads(output.read_text())


def test_embedding_texts(corpus, tmp_path, capsys):
    output = tmp_path / "v.npz"
    embed.main(["--model", MODEL, "--input", corpus, "--output", str(output)])
    with np.load(output) as file:
        found = dict(file)
    assert found["names"].tolist() == [f"doc{i}" for i in range(5)]
    assert found["vectors"].dtype == np.float32
    expected = encoders.load(MODEL).embed(TEXTS)
    np.testing.assert_allclose(found["vectors"], expected, atol=1e-6)
    assert len(found["corrupt"]) == 2
    printed = capsys.readouterr().out
    assert "vectors [5, 12]" in printed
    assert "2 texts left out, such as" in printed
    assert "line 3: invalid UTF-8" in printed


def test_nearest_texts(corpus, tmp_path, capsys):
    cache = tmp_path / "vectors.npz"
    flags = ["--query", TEXTS[3], "--query", "a dog", "--top", "2", "--vectors", str(cache)]
    found = run(corpus, tmp_path, *flags)
    assert [result["found"][0]["name"] for result in found["results"]] == ["doc3", "doc1"]
    assert found["results"][0]["found"][0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert [len(result["found"]) for result in found["results"]] == [2, 2]
    assert "query: a dog\n   1   1.000  doc1: a dog\n" in capsys.readouterr().out
    # The file is read again, and refused for another model.
    assert run(corpus, tmp_path, *flags) == found
    encoders.save(
        dataclasses.replace(encoders.load(MODEL), metadata={}), tmp_path / "other-pooling"
    )
    with pytest.raises(DataError, match="is of other texts or another model; remove it"):
        run(corpus, tmp_path, *flags, model=str(tmp_path / "other-pooling"))


def test_most_similar_pairs_and_their_time(corpus, cross_encoder, tmp_path, capsys):
    flags = ["--pairs", "--top", "3", "--time-cross-encoder", cross_encoder, "--sample-pairs", "4"]
    found = run(corpus, tmp_path, *flags)
    assert len(found["pairs"]) == 3
    best = found["pairs"][0]
    vectors = encoders.load(MODEL).embed(TEXTS)
    similarity = np.triu(vectors @ vectors.T, 1)
    assert best["similarity"] == pytest.approx(similarity.max(), abs=1e-5)
    first, second = np.unravel_index(similarity.argmax(), similarity.shape)
    assert (best["first"]["name"], best["second"]["name"]) == (f"doc{first}", f"doc{second}")
    timing = found["timing"]
    assert timing["pairs"] == 10
    assert timing["cross_encoder_seconds"] == pytest.approx(timing["sample_seconds"] / 4 * 10)
    assert timing["ratio"] == pytest.approx(timing["cross_encoder_seconds"] / timing["seconds"])
    assert "cross-encoder: 4 pairs in" in capsys.readouterr().out


def test_a_cross_encoder_has_the_last_word(corpus, cross_encoder, tmp_path):
    found = run(corpus, tmp_path, "--query", "the end", "--rerank", cross_encoder, "--top", "3")
    scores = encoders.load(cross_encoder).score(["the end"] * 5, TEXTS)
    best = found["results"][0]["found"]
    np.testing.assert_allclose([f["score"] for f in best], np.sort(-scores)[:3] * -1, atol=1e-5)
    assert best[0]["text"] == TEXTS[scores.argmax()]


@pytest.mark.parametrize(
    "flags, error, message",
    [
        (["--query", " "], ConfigError, "--query: is empty"),
        ([], ConfigError, "--query TEXT or --pairs: expected one of them"),
        (["--query", "a", "--pairs"], ConfigError, "expected one of them"),
        (["--pairs", "--top", "0"], ConfigError, "--top: expected a number from 1, got 0"),
        (["--pairs", "--vectors", "v.npy"], ConfigError, r"--vectors v.npy: .* ends in \.npz"),
        (["--pairs", "--field", "txt"], DataError, "--corpus .* has no column 'txt'.*'text'"),
        (["--query", "a", "--rerank", VIT], CheckpointError, "--rerank .* is a ViT, which encodes"),
        (["--query", "a", "--rerank", MODEL], CheckpointError, "cannot score pairs"),
        (
            ["--query", "a", "--time-cross-encoder", MODEL],
            ConfigError,
            "--time-cross-encoder: times the search for --pairs",
        ),
    ],
)
def test_wrong_flags_are_one_sentence(corpus, tmp_path, flags, error, message):
    with pytest.raises(error, match=message):
        run(corpus, tmp_path, *flags)


def test_wrong_inputs_are_one_sentence(corpus, tmp_path):
    with pytest.raises(CheckpointError, match=r"--model .* is a ViT, which encodes no texts"):
        run(corpus, tmp_path, "--query", "a", model=VIT)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(DataError, match=r"--corpus .*empty\.txt: holds no texts"):
        run(str(empty), tmp_path, "--pairs")
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"\xff\xfe\n")
    with pytest.raises(DataError, match=r"holds no usable text; the first: .*invalid UTF-8"):
        run(str(bad), tmp_path, "--pairs")
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"picture\.png' has an unknown ending; expected \.txt"):
        run(str(picture), tmp_path, "--pairs")
    one = tmp_path / "one.txt"
    one.write_text("only\n")
    with pytest.raises(DataError, match="has one text, and pairs need two"):
        run(str(one), tmp_path, "--pairs")
    arguments = ["--model", MODEL, "--input", corpus, "--output", str(tmp_path / "x.npz")]
    with pytest.raises(ConfigError, match="--tokens and --layer: are for images"):
        embed.main([*arguments, "--tokens"])
