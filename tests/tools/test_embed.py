"""python -m tools.embed."""

import json
import pathlib

import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image

import encoders
from encoders.data import records
from encoders.errors import CheckpointError, ConfigError, DataError, StorageError
from tools import embed

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "interop"
VIT, SIGLIP = str(GOLDEN / "hf_vit"), str(GOLDEN / "timm_siglip")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven images in two classes, one of them broken."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(6):
        directory = root / ("bee" if i < 3 else "cat")
        directory.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (30 + i, 50, 3), np.uint8)
        Image.fromarray(pixels).save(directory / f"{i}.png")
    (root / "bee" / "1b.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    return root


def run(folder, tmp_path, *flags, model=VIT):
    output = tmp_path / "new" / "features.npz"
    embed.main(["--model", model, "--input", str(folder), "--output", str(output), *flags])
    with np.load(output) as file:
        return dict(file)


def test_features_of_a_folder(folder, tmp_path, capsys):
    found = run(folder, tmp_path, "--batch-size", "4", "--tokens")
    names = [pathlib.Path(name).name for name in found["names"]]
    assert names == ["0.png", "1.png", "2.png", "3.png", "4.png", "5.png"]
    np.testing.assert_array_equal(found["labels"], [0, 0, 0, 1, 1, 1])
    assert found["labels"].dtype == np.int32
    assert list(found["class_names"]) == ["bee", "cat"]
    assert [pathlib.Path(name).name for name in found["corrupt"]] == ["1b.jpg"]
    assert found["features"].shape == (6, 20)
    assert found["tokens"].shape == (6, 7, 20)
    np.testing.assert_array_equal(found["features"], found["tokens"][:, 0])
    captured = capsys.readouterr()
    assert "features [6, 20], tokens [6, 7, 20]" in captured.out
    assert "1 corrupt images left out, such as" in captured.out
    assert "2/2 (100%)" in captured.err

    encoder = encoders.load(VIT)
    example = {"image": (folder / "cat" / "4.png").read_bytes()}
    for transform in encoder.preprocessing.eval_transforms():
        example = transform(example, None)
    assert example["image"].shape == (28, 42, 3)
    alone = encoder(example["image"][None]).pooled[0]
    np.testing.assert_allclose(found["features"][4], alone, atol=1e-5)


def test_one_layer(folder, tmp_path):
    by_class = run(folder, tmp_path, "--layer", "-2", "--tokens")
    np.testing.assert_array_equal(by_class["features"], by_class["tokens"][:, 0])
    final = run(folder, tmp_path, "--tokens")
    assert np.abs(by_class["tokens"] - final["tokens"]).max() > 0.1
    by_mean = run(folder, tmp_path, "--layer", "0", "--tokens", model=SIGLIP)
    np.testing.assert_allclose(by_mean["features"], by_mean["tokens"].mean(1), atol=1e-5)


def test_images_without_classes(folder, tmp_path):
    found = run(folder / "cat", tmp_path)
    assert set(found) == {"names", "features", "corrupt"}
    assert len(found["corrupt"]) == 0


def test_array_record(tmp_path):
    directory = tmp_path / "data"
    directory.mkdir()
    shard = "validation-00000-of-00001.array_record"
    writer = array_record_module.ArrayRecordWriter(str(directory / shard), "group_size:1")
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 42, 3), np.uint8)
    for label, image in enumerate(images):
        writer.write(records.pack({"image": image, "label": label}))
    writer.close()
    splits = {"validation": {"shards": [{"file": shard, "count": 3}]}}
    (directory / "info.json").write_text(json.dumps({"splits": splits, "class_names": ["a"] * 3}))
    found = run(directory, tmp_path, "--split", "validation")
    np.testing.assert_array_equal(found["labels"], [0, 1, 2])
    assert found["names"][1].endswith(f"{shard} record 1")
    expected = encoders.load(VIT)(images).pooled  # of the right size already
    np.testing.assert_allclose(found["features"], expected, atol=1e-5)


def test_mistakes(folder, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"expected a name that ends in \.npz"):
        embed.main(["--model", VIT, "--input", str(folder), "--output", "x.npy"])
    with pytest.raises(ConfigError, match="--batch-size: expected a number from 1"):
        run(folder, tmp_path, "--batch-size", "0")
    with pytest.raises(ConfigError, match="there is no layer 7"):
        run(folder, tmp_path, "--layer", "7")
    with pytest.raises(DataError, match="is a file"):
        run(folder / "cat" / "4.png", tmp_path)
    with pytest.raises(DataError, match="nowhere"):
        run(folder / "nowhere", tmp_path)
    with pytest.raises(CheckpointError, match="no such directory"):
        run(folder, tmp_path, model="nothing")
    weights = encoders.load(VIT)
    encoders.save(encoders.Encoder(weights.module, weights.variables), tmp_path / "bare")
    with pytest.raises(CheckpointError, match="its weights say no preprocessing"):
        run(folder, tmp_path, model=str(tmp_path / "bare"))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embed.np, "savez", full)
    with pytest.raises(StorageError, match="No space left on device"):
        run(folder, tmp_path)
    assert not list((tmp_path / "new").iterdir())
