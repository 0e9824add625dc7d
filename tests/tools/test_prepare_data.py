import gzip
import io
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from encoders.data import Pipeline, images
from encoders.data.sources.array_record import ArrayRecord
from encoders.data.transforms.geometry import Decode
from encoders.errors import ConfigError, DataError, StorageError
from tools.idx import IdxSource, read_idx
from tools.make_samples import first_of_each_class, make_fashion_mnist
from tools.prepare_data import main

ROOT = pathlib.Path(__file__).resolve().parents[2]


def jpeg(value, size=(40, 60)):
    return simplejpeg.encode_jpeg(np.full((*size, 3), value, np.uint8), quality=95)


def write_idx(path, array, compress=False):
    header = struct.pack(">BBBB", 0, 0, 0x08, array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    data = header + array.tobytes()
    if compress:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
    else:
        path.write_bytes(data)


@pytest.fixture
def photos(tmp_path):
    """Two classes of ten images, of which three are damaged."""
    for number in range(20):
        folder = tmp_path / "photos" / ("cat" if number < 10 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02d}.jpg").write_bytes(jpeg(10 * number))
    (tmp_path / "photos" / "cat" / "03.jpg").write_bytes(jpeg(30)[:200])
    (tmp_path / "photos" / "dog" / "15.jpg").write_bytes(b"")
    (tmp_path / "photos" / "dog" / "16.jpg").write_bytes(b"no image")
    return tmp_path / "photos"


@pytest.fixture
def digits(tmp_path):
    """An MNIST-like folder of 6,000 noisy images; the test part is gzipped."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "digits"
    folder.mkdir()
    for prefix, count, compress in (("train", 6000, False), ("t10k", 30, True)):
        images_ = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte", images_, compress)
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels, compress)
    return folder


def command(kind, source, target, *more):
    return ["--from", kind, "--input", str(source), "--to", str(target), *map(str, more)]


def test_a_folder_becomes_shards(photos, tmp_path, capsys):
    assert main(command("folder", photos, tmp_path / "out", "--shards", 3)) == 0
    source = ArrayRecord(path=str(tmp_path / "out"))
    assert source.class_names == ("cat", "dog")
    assert len(source) == 17
    kept = [number for number in range(20) if number not in (3, 15, 16)]
    for index, number in enumerate(kept):
        assert source[index] == {"image": jpeg(10 * number), "label": int(number >= 10)}
    text = capsys.readouterr().out
    assert "left out 3 of 20" in text
    assert str(photos / "cat" / "03.jpg") in text
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["info.json", *(f"train-{i:05d}-of-00003.array_record" for i in range(3))]
    info = json.loads((tmp_path / "out" / "info.json").read_text())
    assert (info["splits"]["train"]["count"], info["splits"]["train"]["corrupt"]) == (17, 3)


def test_shrinking(photos, tmp_path):
    (photos / "cat" / "00.jpg").write_bytes(jpeg(7, (400, 200)))
    (photos / "cat" / "01.jpg").write_bytes(jpeg(9, (20, 10)))
    main(command("folder", photos, tmp_path / "out", "--image-size", 32))
    source = ArrayRecord(path=str(tmp_path / "out"))
    sizes = [images.size_of(source[index]["image"]) for index in range(4)]
    assert sizes == [(32, 16), (20, 10), (21, 32), (21, 32)]
    assert abs(int(images.decode(source[0]["image"], 3).mean()) - 7) <= 1
    assert source[1]["image"] == jpeg(9, (20, 10))  # small ones are left as they are


def test_idx_files(digits, tmp_path):
    main(command("idx", digits, tmp_path / "out", "--split", "test"))
    main(command("idx", digits, tmp_path / "out", "--split", "train", "--shards", 2))
    expected = IdxSource(path=str(digits), split="test")
    source = ArrayRecord(path=str(tmp_path / "out"), split="test")
    for index in range(30):
        assert source[index]["label"] == index % 10
        decoded = images.decode(source[index]["image"], 1)
        np.testing.assert_array_equal(decoded, expected[index]["image"])
    assert len(ArrayRecord(path=str(tmp_path / "out"), split="train")) == 6000


def test_killed_and_run_again(digits, tmp_path):
    target = tmp_path / "out"
    arguments = command("idx", digits, target, "--shards", 30, "--threads", 1)
    run = [sys.executable, "-m", "tools.prepare_data", *arguments]
    process = subprocess.Popen(run, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(target.glob("train-*"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in sorted(target.glob("train-*"))}
    assert 4 <= len(finished) < 30
    with pytest.raises(DataError, match=r"no info\.json"):
        ArrayRecord(path=str(target))
    # The last one may have been renamed without having been noted down.
    noted = json.loads((target / ".train.progress.json").read_text())["finished"]
    assert len(noted) >= len(finished) - 1
    second = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"going on: {len(noted)} of 30 shards are finished" in second.stdout
    for name in noted:
        assert (target / name).stat().st_mtime_ns == finished[target / name]
    source, expected = ArrayRecord(path=str(target)), IdxSource(path=str(digits))
    assert len(source) == 6000
    for index in range(0, 6000, 97):
        decoded = images.decode(source[index]["image"], 1)
        np.testing.assert_array_equal(decoded, expected[index]["image"])
    assert not list(target.glob(".*"))  # no half-written files stay
    again = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "already has split 'train': 6000" in again.stdout


def test_what_was_prepared_trains(photos, tmp_path):
    main(command("folder", photos, tmp_path / "out"))
    source = ArrayRecord(path=str(tmp_path / "out"))
    pipeline = Pipeline(source, [Decode()], 8, 0, processes=1)
    [batch] = pipeline.iterate(0, 1)
    assert batch["image"].shape == (8, 40, 60, 3)
    assert pipeline.stats.corrupt == 0


def test_other_settings_do_not_mix(photos, tmp_path):
    out = tmp_path / "out"
    main(command("folder", photos, out))
    with pytest.raises(DataError, match="already has a split 'train' made with other settings"):
        main(command("folder", photos, out, "--shards", 2))
    main(command("folder", photos, out, "--split", "val"))
    (photos / "cat").rename(photos / "tiger")
    with pytest.raises(DataError, match="other classes"):
        main(command("folder", photos, out, "--split", "test"))
    (out / ".test.progress.json").write_text('{"job": {"kind": "idx"}, "finished": {}}')
    with pytest.raises(DataError, match="unfinished shards"):
        main(command("folder", photos / "dog", out, "--split", "test"))


def test_nothing_usable(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="none of the 1 examples is usable"):
        main(command("folder", tmp_path / "bad", tmp_path / "out"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--from", "foldr", "--input", "x", "--to", "y"], ConfigError, "foldr"),
        (["--from", "folder", "--input", "x"], ConfigError, "--to"),
        (
            ["--from", "folder", "--input", "x", "--to", "y", "--shard", "2"],
            ConfigError,
            "--shards",
        ),
        (["--from", "idx", "--input", ".", "--to", "y", "--shards", "0"], ConfigError, "from 1"),
        (["--from", "folder", "--input", "/nowhere/x", "--to", "y"], DataError, "no directory"),
        (["--from", "idx", "--input", ".", "--to", "y", "--split", "tset"], DataError, "'test'"),
        (["--from", "tar", "--input", "/nowhere/*.tar", "--to", "y"], DataError, "no shards"),
    ],
)
def test_mistakes_are_explained(arguments, error, message):
    with pytest.raises(error, match=message):
        main(arguments)


def test_a_full_disk_is_reported(digits, tmp_path):
    # A limit on the size of files stands in for a full disk, which would need a mount.
    program = (
        "import resource, sys\n"
        "from encoders.errors import exit_cleanly\n"
        "from tools.prepare_data import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "exit_cleanly(main)\n"
    )
    run = [sys.executable, "-c", program, *command("idx", digits, tmp_path / "out")]
    result = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 6, result.stderr
    assert result.stderr.startswith("error: --to: cannot write")
    assert result.stderr.count("\n") == 1
    main(command("idx", digits, tmp_path / "out"))  # once there is room, it goes on
    assert len(ArrayRecord(path=str(tmp_path / "out"))) == 6000


def test_a_directory_that_cannot_be_made(photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot create"):
        main(command("folder", photos, tmp_path / "file" / "out"))


# --- IDX and the samples ------------------------------------------------------------------------


def test_idx_reader(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_idx(tmp_path / "a", array)
    write_idx(tmp_path / "b", array, compress=True)
    np.testing.assert_array_equal(read_idx(tmp_path / "a"), array)
    np.testing.assert_array_equal(read_idx(tmp_path / "b"), array)
    with pytest.raises(DataError, match="no file"):
        read_idx(tmp_path / "c")
    (tmp_path / "d").write_bytes((tmp_path / "a").read_bytes()[:-1])
    with pytest.raises(DataError, match="truncated"):
        read_idx(tmp_path / "d")
    (tmp_path / "e").write_bytes(b"hello world")
    with pytest.raises(DataError, match="not an IDX file"):
        read_idx(tmp_path / "e")
    (tmp_path / "f.gz").write_bytes(gzip.compress(b"x" * 1000)[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "f")


def test_images_and_labels_must_agree(digits):
    write_idx(digits / "train-labels-idx1-ubyte", np.zeros(5, np.uint8))
    with pytest.raises(DataError, match="6000 images but 5 labels"):
        IdxSource(path=str(digits))


def test_samples_are_the_first_of_each_class(digits, tmp_path):
    labels = np.array([1, 0, 1, 1, 0, 2, 2, 1])
    assert first_of_each_class(labels, 2).tolist() == [0, 1, 2, 4, 5, 6]
    (digits / "LICENSE").write_text("free")
    make_fashion_mnist(digits, tmp_path / "sample", {"train": 8, "test": 2})
    train = ArrayRecord(path=str(tmp_path / "sample"))
    assert len(train) == 80
    assert (tmp_path / "sample" / "LICENSE").read_text() == "free"
    np.testing.assert_array_equal(train[77]["image"], IdxSource(path=str(digits))[77]["image"])
    assert len(ArrayRecord(path=str(tmp_path / "sample"), split="test")) == 20


def test_png_keeps_grey_images_exactly():
    from tools.preparing.images import _png

    image = np.random.default_rng(0).integers(0, 256, (9, 7, 1), dtype=np.uint8)
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(_png(image)))), image[:, :, 0])
