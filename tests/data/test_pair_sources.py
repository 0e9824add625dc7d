"""Images with captions: from tables, tars, records, and the bundled emoji."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from encoders.config import build
from encoders.data import SOURCES, CorruptExample, Pipeline, images
from encoders.data.sources.captions import captioned
from encoders.data.sources.sample import Sample
from encoders.data.text import TextPreprocessing
from encoders.errors import DataError
from tools.make_samples import make_emoji
from tools.prepare_data import main as prepare_data


def png(grey):
    buffer = io.BytesIO()
    Image.new("L", (4, 3), grey).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    (root / "images").mkdir()
    for number in range(4):
        (root / "images" / f"{number}.png").write_bytes(png(60 * number))
    (root / "images" / "broken.png").write_bytes(png(0)[:30])
    (root / "secret.png").write_bytes(png(9))
    rows = [{"image": f"images/{i}.png", "text": [f"grey {i}", f"number {i}"]} for i in range(4)]
    (root / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["file,caption,more", "0.png,zero,x", "1.png,one,y", "0.png,nought,z"]
    (root / "b.csv").write_text("\n".join(lines))
    return root


def source(**fields):
    return build(SOURCES, {"name": "pairs", **fields}, "data.source")


def test_rows_name_images_and_captions(folder):
    found = source(path=str(folder / "a.jsonl"))
    assert len(found) == 4
    assert found[2]["text"] == ["grey 2", "number 2"]
    assert images.decode(found[2]["image"], 1)[0, 0, 0] == 120
    assert found.describe(1).endswith("a.jsonl line 2")


def test_columns_and_folder_are_options(folder):
    columns = {"path": str(folder / "b.csv"), "folder": str(folder / "images"), "image": "file"}
    found = source(**columns, text="caption", fields=("more",))
    assert [found[i]["text"] for i in range(3)] == ["zero", "one", "nought"]
    assert found[1]["more"] == "y"
    assert source(**columns, text=("caption", "more"))[0]["text"] == ["zero", "x"]
    grouped = source(**columns, text="caption", group=True)
    assert [grouped[i]["text"] for i in range(2)] == [["zero", "nought"], "one"]
    assert grouped.describe(1).endswith("b.csv row 2")


def test_parquet_may_hold_the_images(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = {"image": [{"bytes": png(5), "path": "x.png"}], "text": [["one", "two"]]}
    parquet.write_table(arrow.table(rows), tmp_path / "a.parquet")
    found = source(path=str(tmp_path / "a.parquet"))[0]
    assert found["image"] == png(5)
    assert found["text"] == ["one", "two"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "images/0.png"}, "no caption in column 'text'"),
        ({"image": "images/0.png", "text": " "}, "no caption in column 'text'"),
        ({"image": "images/0.png", "text": []}, "no caption in column 'text'"),
        ({"image": "images/0.png", "text": 3}, "a caption is int, not text"),
        ({"image": "images/0.png", "text": "\ud83d"}, "invalid UTF-8 in a caption"),
        ({"image": "images/9.png", "text": "a"}, "'images/9.png' cannot be read"),
        ({"image": "images/../secret.png", "text": "a"}, "leads out of the folder"),
        ({"image": "/etc/hostname", "text": "a"}, "leads out of the folder"),
        ({"image": "", "text": "a"}, "no image in column 'image'"),
    ],
)
def test_rows_that_cannot_be_used_are_corrupt(folder, tmp_path, row, message):
    good = {"image": "images/0.png", "text": "a"}
    (tmp_path / "a.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(row))
    with pytest.raises(CorruptExample, match=message):
        source(path=str(tmp_path), folder=str(folder))[1]


def test_corrupt_pairs_are_counted_and_replaced(folder, tmp_path):
    rows = [
        {"image": "0.png", "text": "red"},
        {"image": "1.png", "text": None},
        {"image": "broken.png", "text": "blue"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = source(path=str(tmp_path), folder=str(folder / "images"))

    def decode(example, rng):
        return {"image": images.decode(example["image"], 1)}

    pipeline = Pipeline(found, [decode], 6, seed=0, threads=0)
    assert pipeline.batch(0)["image"].shape == (6, 3, 4, 1)
    assert pipeline.stats.corrupt >= 4
    assert any("no caption" in reason for reason in pipeline.stats.names.values())
    assert any("not a readable image" in reason for reason in pipeline.stats.names.values())


def test_tables_that_are_not_there(folder, tmp_path):
    with pytest.raises(DataError, match=r"no column 'caption'.* Known: image, text"):
        source(path=str(folder / "a.jsonl"), text="caption")
    with pytest.raises(DataError, match="no directory"):
        source(path=str(folder / "a.jsonl"), folder=str(folder / "imges"))
    (tmp_path / "a.txt").write_text("a text")
    with pytest.raises(DataError, match=r"no table in .*\.jsonl, \.csv"):
        source(path=str(tmp_path))


def test_tars_have_captions_in_text_or_json(tmp_path):
    members = {
        "0.png": png(0),
        "0.txt": b"from text",
        "0.json": b'{"text": "from json"}',
        "1.png": png(1),
        "1.json": b'{"label": 2, "text": ["one", "two"], "caption": "else"}',
        "2.png": png(2),
    }
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    found = build(SOURCES, {"name": "tar", "path": str(tmp_path)}, "data.source")
    assert [found[i].get("text") for i in range(3)] == ["from text", ["one", "two"], None]
    assert found[1]["label"] == 2
    section = {"name": "tar", "path": str(tmp_path), "text_key": "caption"}
    assert build(SOURCES, section, "data.source")[1]["text"] == "else"


def test_a_field_becomes_the_text():
    nested = {
        "image": b"",
        "objects": {"box": [1]},
        "captions": {"text": np.array([b"a cat", b"", "käse".encode()])},
    }
    assert captioned(nested, "captions.text") == {"image": b"", "text": ["a cat", "käse"]}
    listed = {"captions": [{"text": b"a"}, {"text": b"b"}]}
    assert captioned(listed, "captions.text")["text"] == ["a", "b"]
    assert captioned({"title": "x", "text": "y"}, "title") == {"text": "x"}
    with pytest.raises(CorruptExample, match="no field 'titel' with a caption, only"):
        captioned({"title": "x"}, "titel")
    with pytest.raises(CorruptExample, match="no caption in field 'title'"):
        captioned({"title": b""}, "title")


def test_prepared_pairs_read_back(folder, tmp_path):
    arguments = ["--from", "pairs", "--input", str(folder / "a.jsonl"), "--to", str(tmp_path)]
    assert prepare_data([*arguments, "--threads", "1"]) == 0
    found = build(SOURCES, {"name": "array_record", "path": str(tmp_path)}, "data.source")
    assert found[3]["text"] == ["grey 3", "number 3"]
    assert images.decode(found[3]["image"], 1)[0, 0, 0] == 180


def test_emoji_are_written_over_white_and_split(tmp_path):
    (tmp_path / "cldr").mkdir()
    for name in ("LICENSE-APACHE-2.0", "cldr/LICENSE"):
        (tmp_path / name).write_text("free")
    rows = []
    for number in range(6):
        Image.new("RGBA", (4, 4), (50, 0, 0, 255 * (number > 0))).save(tmp_path / f"{number}.png")
        row = {"file": f"{number}.png", "emoji": "x", "keywords": ["a", "b"]}
        rows.append({**row, "name": f"dot {number}"})
    rows.insert(1, {**rows[0], "name": "dot: dark skin tone"})
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    make_emoji(tmp_path, tmp_path / "made")
    section = {"name": "array_record", "path": str(tmp_path / "made")}
    train, test = (
        build(SOURCES, {**section, "split": split}, "data.source") for split in ("train", "test")
    )
    assert [test[i]["name"] for i in range(len(test))] == ["dot 0", "dot 5"]
    assert train[3]["text"] == ["dot 4", "dot 4: a, b"]
    assert images.decode(test[0]["image"], 3)[0, 0].tolist() == [255, 255, 255]
    assert images.decode(train[0]["image"], 3)[0, 0].tolist() == [50, 0, 0]
    assert (tmp_path / "made" / "LICENSE-UNICODE").read_text() == "free"
    with pytest.raises(DataError, match=r"has no captions\.jsonl"):
        make_emoji(tmp_path / "made", tmp_path / "again")


def test_the_emoji_are_what_they_say():
    train, test = (Sample(dataset="emoji", split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1529, 383)
    names = {example["name"]: example for split in (train, test) for example in split}
    assert len(names) == 1912
    example = names["grinning face"]
    assert example["emoji"] == "😀"
    assert example["text"][0] == "grinning face"
    assert example["text"][1].startswith("grinning face: ")
    pixels = images.decode(example["image"], 3)
    assert pixels.shape == (72, 72, 3)
    assert (pixels[0, 0] == 255).all()
    assert TextPreprocessing("sample:emoji", 32).opened.vocabulary.size == 2048
