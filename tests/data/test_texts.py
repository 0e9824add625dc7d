import json
import pickle
import re
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from encoders.config import build
from encoders.data import SOURCES, CorruptExample, TextPreprocessing, eval_batches
from encoders.data.paths import SAMPLES, locate
from encoders.data.sentences import split_sentences
from encoders.data.sources.sample import Sample
from encoders.data.sources.text import Text
from encoders.errors import DataError

ROWS = (
    {"text": "the first, of two", "label": "b", "score": 2.5},
    {"text": 'a "quoted" one', "label": "a", "score": 0},
    {"text": "ünïcode\nof two lines", "label": "b", "score": 5},
)


@pytest.fixture
def files(tmp_path):
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    (tmp_path / "rows.jsonl").write_text(lines + "\n", encoding="utf-8")
    cells = ('"the first, of two",b,2.5', '"a ""quoted"" one",a,0', '"ünïcode\nof two lines",b,5')
    (tmp_path / "rows.csv").write_text("\ufefftext,label,score\n" + "\n".join(cells), "utf-8")
    table = pyarrow.Table.from_pylist(list(ROWS))
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=2)
    return tmp_path


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_rows_are_the_same_from_every_format(ending, files):
    source = Text(path=str(files / f"rows.{ending}"))
    assert source.class_names == ("a", "b")
    assert len(source) == 3
    for _ in range(2):
        for index, row in enumerate(ROWS):
            expected = {**row, "label": "ab".index(row["label"]), "score": float(row["score"])}
            assert source[index] == expected
        source = pickle.loads(pickle.dumps(source))
    assert f"rows.{ending}" in source.describe(2)


def test_columns_by_other_names(tmp_path):
    (tmp_path / "pairs.tsv").write_text('a "b\tc d\t1\nno\tyes\t-3\n')
    names = {"columns": ("first", "second", "n"), "text": "first", "other": "second", "label": "n"}
    source = Text(path=str(tmp_path / "pairs.tsv"), **names)
    assert source[0] == {"text": 'a "b', "other": "c d", "label": 1}  # a tsv file quotes nothing
    assert (source[1]["label"], source.class_names) == (-3, None)
    kept = Text(path=str(tmp_path / "pairs.tsv"), **names | {"label": None}, fields=("n",))
    assert kept[0] == {"text": 'a "b', "other": "c d", "n": "1"}
    with pytest.raises(DataError, match=r"no column 'frist'.* Did you mean 'first'"):
        Text(path=str(tmp_path / "pairs.tsv"), **names | {"text": "frist"})
    with pytest.raises(DataError, match="no column 'text'"):
        Text(path=str(tmp_path / "pairs.tsv"))


def test_classes_may_be_given(files):
    path = str(files / "rows.csv")
    source = Text(path=path, classes=("b", "a", "c"))
    assert [source[i]["label"] for i in range(3)] == [0, 1, 0]
    with pytest.raises(CorruptExample, match="unknown label 'a'"):
        Text(path=path, classes=("b",))[1]
    with pytest.raises(DataError, match="is it a score"):
        Text(path=str(files / "rows.jsonl"), label="score")


@pytest.mark.parametrize(
    ("unit", "texts"),
    [
        ("line", ["one", "two", "x", "three é", "four"]),
        ("blank_line", ["one\ntwo\nx", "three é", "four"]),
        ("file", ["one\ntwo\nx\n\n \nthree é\r\n\r\n\n\nfour"]),
    ],
)
def test_units_of_plain_files(unit, texts, tmp_path):
    content = "\none\ntwo\nx\n\n \nthree é\r\n\r\n\n\nfour\n"
    (tmp_path / "a.txt").write_bytes(content.encode())
    (tmp_path / "b.txt").write_bytes(b"last")
    source = Text(path=str(tmp_path), unit=unit)
    assert [source[i]["text"] for i in range(len(source))] == [*texts, "last"]
    if unit == "blank_line":
        assert source.describe(1) == f"{tmp_path / 'a.txt'} line 7"


def test_texts_that_cannot_be_used_are_corrupt(tmp_path):
    path = tmp_path / "rows.jsonl"
    good = b'{"text": "good"}'
    bad = (b'{"text": "\xff"}', b"[1]", b"{", b'{"text": "  "}', b'{"text": 3}', b'{"other": "x"}')
    bad = (*bad, b'{"text": "\\udcff"}')
    path.write_bytes(b"\n".join((good, *bad, good)))
    source = Text(path=str(path))
    reasons = ("invalid UTF-8", "expected an object", "no JSON", "empty", "not text", "no 'text'")
    reasons = (*reasons, "invalid UTF-8")
    for index, reason in enumerate(reasons, 1):
        with pytest.raises(CorruptExample, match=reason):
            source[index]
    (tmp_path / "rows.csv").write_bytes(b"text,label\ngood,1\nb\xe9d,1\nshort\n\ngood,x2\n")
    source = Text(path=str(tmp_path / "rows.csv"), label=None)
    for index, reason in ((1, "invalid UTF-8"), (2, "1 cells, expected 2")):
        with pytest.raises(CorruptExample, match=reason):
            source[index]
    (tmp_path / "rows.csv").write_text("text,score\ngood,x\n")
    with pytest.raises(CorruptExample, match="the score is 'x', no number"):
        Text(path=str(tmp_path / "rows.csv"))[0]
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\nfine\n")
    source = Text(path=str(tmp_path / "latin.txt"))
    with pytest.raises(CorruptExample, match="invalid UTF-8"):
        source[0]
    assert source[1] == {"text": "fine"}


def test_files_that_are_missing_or_of_another_kind(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no directory"):
        Text(path=str(tmp_path / "none.txt"))
    with pytest.raises(DataError, match=r"no texts in .*expected files ending in \.txt"):
        Text(path=str(tmp_path / "*.doc"))
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(DataError, match="unknown ending"):
        Text(path=str(tmp_path / "a.doc"))
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="holds no examples"):
        Text(path=str(tmp_path / "empty.txt"))
    (tmp_path / "bad.parquet").write_text("x")
    with pytest.raises(DataError, match="is no parquet file"):
        Text(path=str(tmp_path / "bad.parquet"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"needs pyarrow .* pip install 'encoders\[parquet\]'"):
        Text(path=str(tmp_path / "bad.parquet"))


def test_evaluation_over_texts_counts_what_is_corrupt(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b"text,label\nthe type,1\n ,1\n\xff,0\na module,0\n")
    preprocessing = TextPreprocessing(tokenizer="sample:peps", max_length=8)
    section = {"name": "text", "path": str(tmp_path / "rows.csv")}
    source = build(SOURCES, section, "test", **preprocessing.for_sources)
    [batch] = eval_batches(source, preprocessing.eval_transforms(), 4)
    assert batch["valid"].tolist() == [True, False, False, True]
    assert batch["label"][[0, 3]].tolist() == [1, 0]
    decode = preprocessing.opened.inner.decode
    assert [decode(ids.tolist()) for ids in batch["ids"][[0, 3]]] == ["the type", "a module"]


# --- sentences ------------------------------------------------------------------------------------


def test_sentences():
    text = (
        "Mr. J. Smith came at 5 p.m. on Monday. “Who is it?” asked she... He, e.g. Tom, said: no! "
        "(Maybe.) 3 men came.\n\nA title\n\n\nThe last one, of 3.11, i.e. Python's"
    )
    sentences = split_sentences(text)
    assert "".join(sentences) == text
    assert [re.sub(r"\s+", " ", sentence).strip() for sentence in sentences] == [
        "Mr. J. Smith came at 5 p.m. on Monday.",
        "“Who is it?” asked she...",
        "He, e.g. Tom, said: no!",
        "(Maybe.)",
        "3 men came.",
        "A title",
        "The last one, of 3.11, i.e. Python's",
    ]
    assert split_sentences("") == [""]
    assert split_sentences(" \n\n ") == [" \n\n "]


# --- what ships -----------------------------------------------------------------------------------


def test_banking77_is_what_it_says():
    for split, count in (("train", 10_003), ("test", 3_080)):
        source = Sample(dataset="banking77", split=split)
        assert (len(source), len(source.class_names)) == (count, 77)
        counts = np.bincount([source[i]["label"] for i in range(count)], minlength=77)
        assert counts.min() >= 35
    assert source[0]["text"] == "How do I locate my card?"
    assert source.class_names[source[0]["label"]] == "card_arrival"


def test_samples_are_found_wherever_they_are_installed():
    assert locate("sample:peps") == SAMPLES / "peps"
    assert locate("x/y").as_posix() == "x/y"
