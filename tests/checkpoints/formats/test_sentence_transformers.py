"""Directories of sentence-transformers: the same vectors, older files, what is refused."""

import dataclasses
import json
import pathlib
import shutil

import chex
import numpy as np
import pytest

import encoders
from encoders.errors import CheckpointError

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "sentence"
# Those of tools/golden/write_sentence.py, which needs PyTorch.
TEXTS = [
    "A man is playing a guitar.",
    "",
    "Someone plays an instrument, and sings; the others listen until the very end of the song.",
    "A dog!",
    "the naïve café in 東京 isn't open",
    "A man is playing a guitar",
    "  white   space\tis no text ",
]


@pytest.mark.parametrize("name", ["bert_mean", "roberta_cls_max"])
def test_vectors_are_those_of_sentence_transformers(name):
    encoder = encoders.load(GOLDEN / name)
    with np.load(GOLDEN / name / "expected.npz") as file:
        expected = file["vectors"]
    np.testing.assert_allclose(encoder.embed(TEXTS), expected, rtol=0, atol=1e-5)
    assert encoder.metadata["format"] == "sentence-transformers"


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(GOLDEN / "bert_mean", tmp_path / "copy")
    return tmp_path / "copy"


def change(path, **fields):
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **fields}))


def test_older_files_are_read(copy):
    """Flags of poolings, weights in a directory of their own, and what the Transformer limits."""
    inside = copy / "0_Transformer"
    inside.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (copy / name).rename(inside / name)
    modules = json.loads((copy / "modules.json").read_text())
    modules[0] |= {"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}
    (copy / "modules.json").write_text(json.dumps(modules[:2]))
    limits = {"max_seq_length": 7, "do_lower_case": True}
    change(inside / "sentence_bert_config.json", **limits)
    (copy / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True})
    )
    encoder = encoders.load(copy)
    embedding = {"pooling": ["cls", "mean"], "normalize": False, "prompt": ""}
    assert encoder.metadata["embedding"] == embedding
    assert encoder.preprocessing.max_length == 7
    tokenizer = encoder.preprocessing.opened
    np.testing.assert_array_equal(tokenizer.ids("A DOG"), tokenizer.ids("a dog"))


@pytest.mark.parametrize("pooling", [["max"], ["last", "cls"]])
def test_what_is_written_reads_the_same(pooling, tmp_path):
    read = encoders.load(GOLDEN / "bert_mean")
    embedding = {"pooling": pooling, "normalize": True, "prompt": "a man: "}
    changed = dataclasses.replace(read, metadata={"embedding": embedding})
    encoders.save(changed, tmp_path / "again", format="sentence-transformers")
    written = encoders.load(tmp_path / "again")
    assert written.metadata["embedding"] == embedding
    assert written.preprocessing.max_length == 12
    assert written.preprocessing.token_types
    assert written.module == read.module
    chex.assert_trees_all_equal(written.variables, read.variables)
    assert written.preprocessing.opened.hash == read.preprocessing.opened.hash


def test_what_cannot_be_written_is_said(tmp_path):
    read = encoders.load(GOLDEN / "bert_mean")
    for change, message in (
        ({"metadata": {}}, "pooling 'pooler' cannot be expressed"),
        ({"preprocessing": None}, "needs a tokenizer with the weights"),
    ):
        with pytest.raises(CheckpointError, match=message):
            encoders.save(
                dataclasses.replace(read, **change), tmp_path / "x", format="sentence-transformers"
            )
    picture = encoders.load(GOLDEN.parent / "interop" / "hf_vit")
    with pytest.raises(CheckpointError, match="a ViT encodes no texts"):
        encoders.save(picture, tmp_path / "x", format="sentence-transformers")


@pytest.mark.parametrize("name", ["cross_bert", "cross_roberta"])
def test_scores_of_cross_encoders_are_those_of_sentence_transformers(name):
    cross = encoders.load(GOLDEN / name)
    with np.load(GOLDEN / name / "expected.npz") as file:
        expected = file["logits"]
    scores = cross.score(TEXTS, TEXTS[-1:] + TEXTS[:-1])
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


def test_a_cross_encoder_is_written_with_its_head(tmp_path):
    cross = encoders.load(GOLDEN / "cross_bert")
    encoders.save(cross, tmp_path / "again", format="hf", heads=True)
    again = encoders.load(tmp_path / "again")
    assert again.objective["name"] == "ranking"
    chex.assert_trees_all_equal(again.heads, cross.heads)
    roberta = encoders.load(GOLDEN / "cross_roberta")
    with pytest.raises(CheckpointError, match="objective='ranking' cannot be expressed for rob"):
        encoders.save(roberta, tmp_path / "roberta", format="hf", heads=True)


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "modules.json",
            '[{"type": "a.b.CLIPModel"}]',
            r"expected a Transformer first, got .'CLIP",
        ),
        ("modules.json", '{"type": 3}', "is no list of modules"),
        (
            "modules.json",
            '[{"type": "Transformer", "path": ""}, {"type": "x.Dense", "path": "2_Dense"}]',
            "the module Dense is not supported, only Transformer, Pooling, Normalize and Dropout",
        ),
        ("1_Pooling/config.json", '{"pooling_mode": "meen"}', "'meen' is not supported. Did you"),
    ],
)
def test_what_is_not_supported_is_said(copy, name, content, message):
    (copy / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        encoders.load(copy)


def test_a_prompt_that_is_not_pooled_is_refused(copy):
    change(
        copy / "config_sentence_transformers.json",
        prompts={"query": "find: "},
        default_prompt_name="query",
    )
    assert encoders.load(copy).metadata["embedding"]["prompt"] == "find: "
    change(copy / "1_Pooling" / "config.json", include_prompt=False)
    with pytest.raises(CheckpointError, match="include_prompt=False is not supported"):
        encoders.load(copy)
