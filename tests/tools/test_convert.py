"""python -m tools.convert."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

import encoders
from encoders.errors import CheckpointError, ConfigError, StorageError
from tools import convert
from tools.golden.inputs import picture

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "interop"


def test_there_and_back(tmp_path, capsys):
    images = picture((28, 42))
    source, native, hf = str(GOLDEN / "hf_vit"), str(tmp_path / "native"), str(tmp_path / "hf")
    convert.main([source, native, "--to", "native"])
    said = capsys.readouterr().out
    assert f"read {source}: hf, ViTModel, " in said
    assert "parameters" in said
    assert "left out on reading (pooler; `pooled` is the normalised class token): " in said
    assert "pooler.dense.bias, pooler.dense.weight" in said
    assert f"wrote {native}" in said
    convert.main([native, hf, "--to", "hf"])
    first, last = encoders.load(source), encoders.load(hf)
    np.testing.assert_array_equal(first(images).tokens, last(images).tokens)
    assert first.preprocessing == last.preprocessing


def test_heads_are_kept_on_request(tmp_path, capsys):
    source = str(GOLDEN / "hf_deit")
    convert.main([source, str(tmp_path / "without"), "--to", "hf"])
    assert "left out on writing: head (--heads keeps them)" in capsys.readouterr().out
    convert.main([source, str(tmp_path / "with"), "--to", "hf", "--heads"])
    assert "left out on writing" not in capsys.readouterr().out
    assert not encoders.load(tmp_path / "without").heads
    with_heads = encoders.load(tmp_path / "with")
    np.testing.assert_array_equal(
        with_heads.heads["head"]["kernel"], encoders.load(source).heads["head"]["kernel"]
    )
    assert with_heads.metadata["class_names"] == ["bee", "cat", "dog"]


def test_mistakes(tmp_path):
    source = str(GOLDEN / "timm_siglip")
    with pytest.raises(CheckpointError, match="class_token=False cannot be expressed"):
        convert.main([source, str(tmp_path / "x"), "--to", "hf"])
    with pytest.raises(StorageError, match="exists already"):
        convert.main([source, str(GOLDEN), "--to", "timm"])
    with pytest.raises(ConfigError, match=r"unknown argument '--head'. Did you mean '--heads'"):
        convert.main([source, str(tmp_path / "x"), "--to", "timm", "--head"])
    with pytest.raises(ConfigError, match="invalid choice"):
        convert.main([source, str(tmp_path / "x"), "--to", "onnx"])
    assert list(tmp_path.iterdir()) == []


def test_the_command_ends_with_one_sentence_and_its_code(tmp_path):
    command = [sys.executable, "-m", "tools.convert", "nowhere", str(tmp_path / "x"), "--to", "hf"]
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 4
    assert done.stderr.startswith("error: nowhere: no such directory")
    assert "Traceback" not in done.stderr
