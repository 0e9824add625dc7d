"""Pairs of text and code, graphs of data flow, and the rows that encoders of code take."""

import functools
import inspect
import logging
import sysconfig
import textwrap

import numpy as np
import pytest

from encoders.config import build
from encoders.data import (
    PREPROCESSING,
    SOURCES,
    TRANSFORMS,
    CorruptExample,
    TextPreprocessing,
)
from encoders.data.batcher import Batcher
from encoders.data.code import documented_functions
from encoders.data.data_flow import data_flow
from encoders.data.tokenizer_training import train_tokenizer
from encoders.errors import ConfigError, DataError

FILE = '''
import os

def documented(a, b=(1, 2)):
    """Adds two numbers
    of any kind.

    At length.
    """

    # as ever
    return (a +

            b[0])

class Thing:
    """A thing that is no function."""

    @property
    def größe(self):  # its size
        r"""The size of a thing."""
        text = """
over the margin"""
        async def inner(x):
            "What an inner function does."
            y = x
            return y
        return text

    def __init__(self):
        """Makes a new thing here."""
        self.a = 1
        self.b = 2

    def test_it(self):
        """Tests the thing at length."""
        a = 1
        return a

    def short(self):
        """Is one line too short."""
        return 1

    def terse(self):
        """Too terse."""
        a = 1
        return a

    def shares(self): "Shares its line with the def"; a = 1; b = 2; return a

def undocumented(a):
    b = a
    return b
'''


def test_documented_functions():
    found = {function.name: function for function in documented_functions(FILE)}
    assert list(found) == ["documented", "Thing.größe", "Thing.größe.inner"]
    first = found["documented"]
    assert first.text == "Adds two numbers of any kind."
    assert first.line == 4
    assert first.code.split("\n") == [
        "def documented(a, b=(1, 2)):",
        "    # as ever",
        "    return (a +",
        "            b[0])",
    ]
    # Moved to the margin, but for the line of a string that begins there already.
    assert found["Thing.größe"].code.split("\n")[:3] == [
        "def größe(self):  # its size",
        '    text = """',
        'over the margin"""',
    ]
    assert found["Thing.größe.inner"].code == "async def inner(x):\n    y = x\n    return y"


def tree(directory):
    (directory / "b").mkdir()
    (directory / "site-packages").mkdir()
    (directory / "b" / "one.py").write_text(FILE, encoding="utf-8")
    copy = 'def again(a):\n    "The same code once more."\n    if a:\n        return a\n'
    (directory / "a.py").write_text(copy.replace("    ", "\t"), encoding="utf-8")
    (directory / "z.py").write_text(copy, encoding="utf-8")
    (directory / "site-packages" / "other.py").write_text(FILE, encoding="utf-8")
    (directory / "latin.py").write_bytes("# -*- coding: latin-1 -*-\n# é".encode("latin-1"))
    (directory / "broken.py").write_text("def f(:\n")
    (directory / "bytes.py").write_bytes(b"\xff\xfe = 1\n")
    (directory / "null.py").write_bytes(b"a = 1\0\n")
    return directory


def test_python_code(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        source = build(SOURCES, {"name": "python_code", "path": str(tree(tmp_path))}, "data.source")
    names = [source[i]["name"] for i in range(len(source))]
    assert names == ["again", "documented", "Thing.größe", "Thing.größe.inner"]
    assert source[1] == {
        "text": "Adds two numbers of any kind.",
        "code": documented_functions(FILE)[0].code,
        "name": "documented",
        "path": "b/one.py",
    }
    assert source.describe(1) == f"{tmp_path}/b/one.py:4"
    assert sorted(source.skipped) == ["broken.py", "bytes.py", "null.py"]
    assert "3 files" in caplog.text
    assert "broken.py (SyntaxError" in caplog.text
    # Parts share nothing and miss nothing.
    parts = [
        build(SOURCES, {"name": "python_code", "path": str(tmp_path), **part}, "data.source")
        for part in ({"stop": 0.5}, {"start": 0.5})
    ]
    assert sorted(part[i]["name"] for part in parts for i in range(len(part))) == sorted(names)


def test_a_folder_without_functions_is_an_error(tmp_path):
    (tmp_path / "a.py").write_text("a = 1\n")
    with pytest.raises(DataError, match="no documented functions in"):
        build(SOURCES, {"name": "python_code", "path": str(tmp_path)}, "data.source")
    with pytest.raises(DataError, match=r"no directory .*expected a folder of Python files"):
        build(SOURCES, {"name": "python_code", "path": str(tmp_path / "b")}, "data.source")


def edges(code):
    """'name@line' -> what it comes from, sorted; of the n-th occurrence in a line 'name@line.n'."""
    code = textwrap.dedent(code).strip("\n")
    found, names, seen = data_flow(code), [], {}
    for variable in found:
        assert code[variable.start : variable.stop] == variable.name
        place = f"{variable.name}@{code[: variable.start].count(chr(10)) + 1}"
        seen[place] = seen.get(place, 0) + 1
        names.append(place if seen[place] == 1 else f"{place}.{seen[place]}")
    return {names[i]: [names[s] for s in v.sources] for i, v in enumerate(found)}


# By hand.
GRAPHS = {
    "branches": (
        """
        def f(a, b):
            x = 0
            if b > a:
                x = a
            else:
                x = b
            return x
        """,
        {
            "a@1": [],
            "b@1": [],
            "b@3": ["b@1"],
            "a@3": ["a@1"],
            "x@4": ["a@4"],
            "a@4": ["a@1"],
            "x@6": ["b@6"],
            "b@6": ["b@1"],
            "x@7": ["x@4", "x@6"],
        },
    ),
    "a branch that may not run": (
        """
        def f(a):
            x = a
            if g(x):
                x = 1
            return x
        """,
        {
            "a@1": [],
            "x@2": ["a@2"],
            "a@2": ["a@1"],
            "x@3": ["x@2"],
            "x@4": [],
            "x@5": ["x@2", "x@4"],
        },
    ),
    "rounds of a loop": (
        """
        for i in range(9):
            print(last)
            last = i
        print(last)
        """,
        {
            "i@1": [],
            "last@2": ["last@3"],
            "last@3": ["i@3"],
            "i@3": ["i@1"],
            "last@4": ["last@3"],
        },
    ),
    "augmented": (
        "a = 1\nb = 2\na += b",
        {"a@1": [], "b@2": [], "a@3": ["a@1", "b@3"], "b@3": ["b@2"]},
    ),
    "tuples by place, swapped at once": (
        "def f(a, b):\n    a, b = b, a\n    (c, d), e = a, b",
        {
            "a@1": [],
            "b@1": [],
            "a@2": ["b@2.2"],
            "b@2": ["a@2.2"],
            "b@2.2": ["b@1"],
            "a@2.2": ["a@1"],
            "c@3": ["a@3"],
            "d@3": ["a@3"],
            "e@3": ["b@3"],
            "a@3": ["a@2"],
            "b@3": ["b@2"],
        },
    ),
    "with": (
        "def f(p):\n    with open(p) as é, é.x:\n        return é",
        {"p@1": [], "p@2": ["p@1"], "é@2": ["p@2"], "é@2.2": ["é@2"], "é@3": ["é@2"]},
    ),
    "attributes and items": (
        "def f(a, i, c):\n    a.b[i] = c\n    return a.b",
        {
            "a@1": [],
            "i@1": [],
            "c@1": [],
            "a@2": ["a@1", "i@2", "c@2"],
            "i@2": ["i@1"],
            "c@2": ["c@1"],
            "a@3": ["a@2"],
        },
    ),
    "comprehensions and lambdas keep their variables": (
        "def f(xs, x):\n    ys = [x for x in xs]\n    return lambda q=x: q",
        {
            "xs@1": [],
            "x@1": [],
            "ys@2": ["x@2"],
            "x@2": ["x@2.2"],
            "x@2.2": ["xs@2"],
            "xs@2": ["xs@1"],
            "q@3": ["x@3"],
            "x@3": ["x@1"],
            "q@3.2": ["q@3"],
        },
    ),
    "exceptions": (
        "try:\n    a = f()\n    a = g()\nexcept E:\n    print(a)\nelse:\n    a = 1\nprint(a)",
        {"a@3": [], "a@5": ["a@3"], "a@7": [], "a@8": ["a@3", "a@7"]},
    ),
    "names from outside are no variables": ("import os\nos.remove(path)", {}),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_data_flow(name):
    code, want = GRAPHS[name]
    assert edges(code) == want


def test_the_standard_library_has_graphs():
    """A sample of its files; each variable stands where it says, and nothing comes from itself."""
    root = sysconfig.get_path("stdlib")
    found = 0
    for name in ("argparse", "ast", "dataclasses", "typing", "tarfile", "asyncio/tasks"):
        with open(f"{root}/{name}.py", encoding="utf-8") as file:
            for function in documented_functions(file.read()):
                variables = data_flow(function.code)
                found += len(variables)
                for number, variable in enumerate(variables):
                    assert function.code[variable.start : variable.stop] == variable.name
                    assert number not in variable.sources
    assert found > 1000


@functools.cache
def preprocessing(length=40):
    """A byte-level tokenizer that knows a few merges and UniXcoder's modes."""
    tokenizer = train_tokenizer([inspect.getsource(data_flow)] * 2, "bpe", 300)
    tokenizer.inner.add_special_tokens(["<encoder-only>", "<decoder-only>", "<encoder-decoder>"])
    return TextPreprocessing(tokenizer.inner.to_str(), length)


def transformed(section, example, length=40):
    of = preprocessing(length)
    transform = build(TRANSFORMS, section, "data.transforms", preprocessing=of)
    return transform(example, np.random.default_rng(0)), of.opened


def decoded(tokenizer, ids):
    return tokenizer.inner.decode([int(i) for i in ids], skip_special_tokens=False)


CODE = "def f(aé, b):\n    aé = b\n    return aé"


def test_bimodal_rows():
    section = {"name": "bimodal", "max_text": 5}
    example = {"text": "returns what it is given", "code": "return '</s>'"}
    row, tokenizer = transformed(section, example)
    special, ids = tokenizer.vocabulary, row["ids"][row["segments"] > 0]
    # The code's own </s> is text; the tokenizer's is told by its id.
    assert decoded(tokenizer, ids).endswith("</s>return '</s>'</s>")
    ends = np.flatnonzero(ids == special.sep_id)
    assert ends.tolist() == [6, len(ids) - 1]
    assert ids[0] == special.cls_id
    assert (row["ids"][len(ids) :] == special.pad_id).all()
    assert row["word_start"].dtype == bool
    alone, _ = transformed(section, {"code": "x " * 99})
    assert alone["ids"][0] == special.cls_id
    assert np.flatnonzero(alone["ids"] == special.sep_id).tolist() == [39]
    for broken in ({"text": "a"}, {"code": ""}, {"code": b"x"}, {"code": "\ud800"}):
        with pytest.raises(CorruptExample, match="'code'"):
            transformed(section, broken)
    with pytest.raises(ConfigError, match=r"bimodal.max_text: .* it makes 44 tokens, but .* is 40"):
        transformed({"name": "bimodal", "max_text": 40}, example)


def test_data_flow_rows():
    section = {"name": "data_flow", "max_nodes": 7, "max_text": 8}
    example = {"text": "swap", "code": CODE}
    row, tokenizer = transformed(section, example, 64)
    special, real = tokenizer.vocabulary, row["segments"] > 0
    variables = data_flow(CODE)
    assert [v.name for v in variables] == ["b", "aé", "b", "aé"]
    assert real[57:].tolist() == [True] * 4 + [False] * 3
    assert (row["ids"][57:61] == special.unk_id).all()
    assert (row["ids"][~real] == special.pad_id).all()
    spans = row["node_spans"][:4]
    written = [decoded(tokenizer, row["ids"][start:stop]).strip() for start, stop in spans]
    assert written == ["b", "aé", "b", "aé"]
    assert np.argwhere(row["node_sources"]).tolist() == [[1, 2], [2, 0], [3, 1]]
    assert not row["node_spans"][4:].any()
    frame = np.flatnonzero(row["sees_all"])
    assert frame[0] == 0
    assert (row["ids"][frame[1:]] == special.sep_id).all()
    assert frame[2] == np.flatnonzero(real[:57])[-1]

    # What is cut off has no node, and what comes from it no edge.
    short, _ = transformed({**section, "max_nodes": 3}, example, 64)
    assert np.argwhere(short["node_sources"]).tolist() == [[1, 2], [2, 0]]
    cut, _ = transformed({**section, "max_text": 1}, example, 34)
    assert 0 < (cut["segments"][27:] > 0).sum() < 4
    assert cut["node_spans"].max() <= np.flatnonzero(cut["sees_all"])[-1]

    with pytest.raises(CorruptExample, match="its code cannot be parsed"):
        transformed(section, {"code": "def f(:"})
    with pytest.raises(ConfigError, match=r"data_flow.max_nodes: expected 1 or more, got 0"):
        transformed({**section, "max_nodes": 0}, example)


def test_texts_that_are_code_have_nodes():
    """As encoders of code are evaluated and fine-tuned: on texts, code, and both in a row."""
    section = {"name": "code", "tokenizer": preprocessing().tokenizer, "max_length": 64}
    section |= {"max_nodes": 7, "max_text": 8}
    of = build(PREPROCESSING, section, "preprocessing")
    rng = np.random.default_rng(0)
    [transform] = of.eval_transforms()
    row = transform({"text": CODE, "label": 1}, rng)
    assert row["text"] == CODE
    assert (row["segments"][57:] > 0).sum() == 4
    shapes = {name: value[0].shape for name, value in of.example_batch(2).items()}
    assert {name: row[name].shape for name in shapes if name != "row"} == {
        name: shape for name, shape in shapes.items() if name != "row"
    }
    for text in ("Returns its second argument.", "sort"):
        assert not transform({"text": text}, rng)["segments"][57:].any()
    both = transform({"text": "what it does", "other": CODE}, rng)
    alone = build(TRANSFORMS, {"name": "data_flow"}, "data.transforms", **of.for_transforms)
    want = alone({"text": "what it does", "code": CODE}, rng)
    for name in ("ids", "segments", "sees_all", "node_spans", "node_sources"):
        np.testing.assert_array_equal(both[name], want[name])

    section = {"name": "tokenize_texts", "fields": ("text", "code")}
    stack = build(TRANSFORMS, section, "data.transforms", **of.for_transforms)
    pair = stack({"text": "what it does", "code": CODE}, rng)
    assert pair["node_sources"].shape == (2, 7, 7)
    np.testing.assert_array_equal(pair["node_spans"][1], row["node_spans"])
    assert not pair["node_spans"][0].any()

    fields = of.to_json()
    assert build(PREPROCESSING, fields, "preprocessing").to_json() == fields
    with pytest.raises(ConfigError, match=r"max_nodes: .* it makes 76 tokens"):
        build(PREPROCESSING, {**fields, "max_nodes": 64}, "preprocessing")


def test_prefix_modes():
    example = {"code": "a = b", "text": "copies"}
    for mode, prefix in (("encoder-only", 40), ("decoder-only", 0)):
        row, tokenizer = transformed({"name": "prefix_mode", "mode": mode}, example)
        ids = row["ids"][row["segments"] > 0]
        assert decoded(tokenizer, ids) == f"<s><{mode}></s>a = b</s>"
        assert row["prefix"] == prefix
    section = {"name": "prefix_mode", "mode": "encoder-decoder", "max_source": 2}
    row, tokenizer = transformed(section, example)
    text = decoded(tokenizer, row["ids"][: row["prefix"]])
    assert text.startswith("<s><encoder-decoder></s>a")
    assert text.endswith("</s>")
    assert row["prefix"] == 6
    rest = row["ids"][row["prefix"] : row["segments"].sum()]
    assert decoded(tokenizer, rest) == "copies</s>"
    plain = TextPreprocessing(train_tokenizer([CODE], "bpe", 261).inner.to_str(), 40)
    transform = build(TRANSFORMS, section, "data.transforms", preprocessing=plain)
    with pytest.raises(ConfigError, match="the tokenizer has no token '<encoder-decoder>'"):
        transform(example, np.random.default_rng(0))


def test_code_that_cannot_be_used_is_replaced_and_named(tmp_path, monkeypatch):
    """The whole way from files to batches, with one function that no node can be made of."""
    source = build(SOURCES, {"name": "python_code", "path": str(tree(tmp_path))}, "data.source")
    section = {"name": "data_flow", "max_nodes": 4, "max_text": 8}
    transform = build(TRANSFORMS, section, "data.transforms", preprocessing=preprocessing(64))
    read, broken = source._read, {"code": "def f(:"}
    monkeypatch.setattr(source, "_read", lambda i: read(i) | (broken if i == 2 else {}))
    batcher = Batcher(source, [transform], batch_size=4, seed=0, shuffle=False)
    out = batcher.empty()
    [met] = batcher.fill(0, out)
    assert met.name == source.describe(2)
    assert "cannot be parsed" in met.reason
    shapes = {name: value.shape for name, value in out.items()}
    assert shapes == {
        "ids": (4, 64),
        "segments": (4, 64),
        "word_start": (4, 64),
        "sees_all": (4, 64),
        "node_spans": (4, 4, 2),
        "node_sources": (4, 4, 4),
        "row": (4,),
    }
