import io
import json
import pickle
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from encoders.config import build
from encoders.data import SOURCES, CorruptExample, Pipeline
from encoders.data.paths import SAMPLES
from encoders.data.sources.array_record import ArrayRecord
from encoders.data.sources.folder import Folder
from encoders.data.sources.mixture import Mixture, place
from encoders.data.sources.sample import Sample
from encoders.data.sources.synthetic import Synthetic
from encoders.data.sources.tar import Tar, load_index
from encoders.errors import ConfigError, DataError


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Two classes of three and two images, one in a subfolder, among things that are no images."""
    for name in ("cat/b.png", "cat/a.png", "cat/more/c.PNG", "dog/x.png", "dog/y.png"):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(len(name)))
    (tmp_path / "pets" / "dog" / "notes.txt").write_text("no image")
    (tmp_path / "pets" / "empty").mkdir()
    (tmp_path / "pets" / ".hidden").mkdir()
    (tmp_path / "pets" / ".hidden" / "z.png").write_bytes(png(0))
    return tmp_path / "pets"


@pytest.fixture
def shards(tmp_path):
    """Two shards in the WebDataset layout: examples 0..2 and 3..4."""
    directory = tmp_path / "shards"
    directory.mkdir()
    for number, examples in enumerate((range(3), range(3, 5))):
        with tarfile.open(directory / f"train-{number:04d}.tar", "w") as tar:
            for example in examples:
                add(tar, f"dir/{example:05d}.png", png(example))
                add(tar, f"dir/{example:05d}.cls", str(example % 2).encode())
                add(tar, f"dir/{example:05d}.txt", f"image {example} é".encode())
                add(tar, f"dir/{example:05d}.meta.xyz", b"ignored")
    return directory


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


# --- what all have in common --------------------------------------------------------------------


def test_slices_split_without_overlap():
    whole = Synthetic(num_examples=101, image_size=(2, 2))
    train, held_out = Synthetic(num_examples=101, stop=0.9), Synthetic(num_examples=101, start=0.9)
    assert len(whole) == len(train) + len(held_out) == 101
    parts = [source.describe(i) for source in (train, held_out) for i in range(len(source))]
    assert sorted(parts) == sorted(whole.describe(i) for i in range(101))
    # A slice of data sorted by class keeps all classes in proportion.
    labels = [
        Synthetic(num_examples=2000, image_size=(1, 1), stop=0.1)[i]["label"] for i in range(200)
    ]
    assert np.bincount(labels, minlength=10).min() > 5


@pytest.mark.parametrize(("start", "stop"), [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (0.9, 0.1)])
def test_impossible_slices(start, stop):
    with pytest.raises(ConfigError, match="start"):
        Synthetic(start=start, stop=stop)


def test_a_slice_that_holds_nothing():
    with pytest.raises(DataError, match="no examples"):
        Synthetic(num_examples=3, stop=0.1)


@pytest.mark.parametrize("index", [-1, 100, 10**9])
def test_indices_outside_are_errors(index):
    with pytest.raises(IndexError):
        Synthetic(num_examples=100)[index]


# --- synthetic ------------------------------------------------------------------------------------


def test_synthetic_images_depend_on_index_and_seed_only():
    source = Synthetic(image_size=(8, 12), channels=2, num_classes=3, num_examples=9)
    first = source[4]
    assert first["image"].shape == (8, 12, 2)
    assert first["image"].dtype == np.uint8
    assert first["label"] == 1
    np.testing.assert_array_equal(first["image"], source[4]["image"])
    assert not np.array_equal(first["image"], source[5]["image"])
    other = Synthetic(image_size=(8, 12), channels=2, num_classes=3, num_examples=9, seed=1)
    assert not np.array_equal(first["image"], other[4]["image"])


def test_synthetic_classes_can_be_told_apart():
    source = Synthetic(image_size=(16, 16), channels=1, num_classes=2, num_examples=200)
    images = np.stack([source[i]["image"][:, :, 0].astype(float) for i in range(200)])
    along_x = np.abs(np.diff(images.mean(axis=1), axis=1)).mean(axis=1)
    along_y = np.abs(np.diff(images.mean(axis=2), axis=1)).mean(axis=1)
    assert ((along_x < along_y) == np.arange(200) % 2).mean() > 0.95


# --- the bundled sample -------------------------------------------------------------------------


def test_the_sample_is_what_it_says():
    for split, count in (("train", 10_000), ("test", 2_000)):
        source = Sample(split=split)
        assert len(source) == count
        examples = [source[i] for i in range(0, count, 7)]
        labels = [source[i]["label"] for i in range(count)]
        assert np.bincount(labels).tolist() == [count // 10] * 10
        assert {example["image"].shape for example in examples} == {(28, 28, 1)}
        # The published mean of Fashion-MNIST is 0.2860.
        assert abs(np.mean([e["image"].mean() for e in examples]) / 255 - 0.286) < 0.01
    assert source.class_names[9] == "Ankle boot"


def test_what_ships_is_small_and_attributed():
    files = [path for path in SAMPLES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12_000_000
    for info in SAMPLES.glob("*/info.json"):
        assert {"source", "licence", "attribution"} <= set(json.loads(info.read_text()))
        assert (info.parent / "LICENSE").is_file()


# --- prepared ArrayRecord -------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [True, False])
def test_array_record_reads_alike_from_memory_and_disk(in_memory):
    path = str(SAMPLES / "fashion_mnist")
    source = ArrayRecord(path=path, split="test", in_memory=in_memory)
    expected = Sample(split="test")
    for index in (0, 99, 100, 1999):
        np.testing.assert_array_equal(source[index]["image"], expected[index]["image"])
    travelled = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(travelled[7]["image"], expected[7]["image"])
    assert len(pickle.dumps(source)) < 5000  # records do not travel, even once read


def test_array_record_that_is_missing(tmp_path):
    (tmp_path / "imagenet").mkdir()
    with pytest.raises(DataError, match=r"no directory .*imagenett.*Did you mean 'imagenet'"):
        ArrayRecord(path=str(tmp_path / "imagenett"))
    with pytest.raises(DataError, match=r"has no info\.json"):
        ArrayRecord(path=str(tmp_path / "imagenet"))
    (tmp_path / "imagenet" / "info.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        ArrayRecord(path=str(tmp_path / "imagenet"))


def test_array_record_with_a_wrong_split_or_a_lost_shard(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(SAMPLES / "fashion_mnist", copy)
    with pytest.raises(DataError, match=r"no split 'tets'.*Did you mean 'test'"):
        ArrayRecord(path=str(copy), split="tets")
    (copy / "test-00000-of-00001.array_record").unlink()
    with pytest.raises(DataError, match=r"shard .*test-00000.* is missing"):
        ArrayRecord(path=str(copy), split="test")
    (copy / "train-00000-of-00001.array_record").write_bytes(b"x" * 100_000)
    with pytest.raises(DataError, match=r"holds 0 records, but info\.json lists 10000"):
        ArrayRecord(path=str(copy))[0]


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_damaged_shard_names_the_record(tmp_path, in_memory):
    copy = tmp_path / "copy"
    shutil.copytree(SAMPLES / "fashion_mnist", copy)
    shard = copy / "test-00000-of-00001.array_record"
    data = bytearray(shard.read_bytes())
    data[200_000:200_050] = bytes(50)
    shard.write_bytes(data)
    source = ArrayRecord(path=str(copy), split="test", in_memory=in_memory)
    broken = []
    for index in range(len(source)):
        try:
            source[index]
        except CorruptExample:
            broken.append(index)
    assert 0 < len(broken) <= 200  # the group of records that the damage lies in
    assert source.describe(broken[0]).endswith(f"{shard} record {broken[0]}")


# --- folders --------------------------------------------------------------------------------------


def test_class_folders(folder):
    source = Folder(path=str(folder))
    assert source.class_names == ("cat", "dog")
    assert len(source) == 5
    names = [source.describe(i).removeprefix(str(folder) + "/") for i in range(5)]
    assert names == ["cat/a.png", "cat/b.png", "cat/more/c.PNG", "dog/x.png", "dog/y.png"]
    assert [source[i]["label"] for i in range(5)] == [0, 0, 0, 1, 1]
    assert source[2]["image"] == png(len("cat/more/c.PNG"))


def test_flat_folders_have_no_labels(folder):
    source = Folder(path=str(folder / "dog"))
    assert (len(source), source.class_names) == (2, None)
    assert set(source[0]) == {"image"}


def test_files_that_vanish_are_corrupt(folder):
    source = Folder(path=str(folder))
    (folder / "cat" / "a.png").unlink()
    with pytest.raises(CorruptExample, match="No such file"):
        source[0]


def test_folders_that_are_missing_or_empty(folder):
    with pytest.raises(DataError, match="Did you mean 'pets'"):
        Folder(path=str(folder.parent / "pet"))
    with pytest.raises(DataError, match="no images"):
        Folder(path=str(folder / "empty"))


# --- tar shards -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["", "/*.tar", "/train-{0000..0001}.tar"])
def test_tar_shards(shards, form):
    source = Tar(path=str(shards) + form)
    assert len(source) == 5
    for index in (4, 0, 3, 2, 1):
        example = source[index]
        assert example == {"image": png(index), "label": index % 2, "text": f"image {index} é"}
    assert source.describe(3) == f"{shards / 'train-0001.tar'}:dir/00003"
    assert pickle.loads(pickle.dumps(source))[3]["image"] == png(3)


def test_tar_index_is_kept_and_renewed(shards):
    path = str(shards / "train-0000.tar")
    assert len(load_index(path)) == 3
    index = shards / "train-0000.tar.index"
    written = index.stat().st_mtime_ns
    assert len(load_index(path)) == 3
    assert index.stat().st_mtime_ns == written
    with tarfile.open(path, "a") as tar:
        add(tar, "9.png", png(9))
    assert len(load_index(path)) == 4
    index.write_bytes(b"damaged")
    assert len(load_index(path)) == 4


def test_tar_index_goes_to_the_cache_where_the_shards_cannot_be_written(
    shards, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = str(shards / "train-0001.tar")
    (shards / "train-0001.tar.index").mkdir()  # even root cannot replace a folder by a file
    assert len(load_index(path)) == 2
    assert len(list((tmp_path / "cache" / "encoders" / "tar").glob("*.index"))) == 1
    assert list(load_index(path).members(0)) == [".cls", ".png", ".txt"]


def test_tar_labels_from_json(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(3):
            add(tar, f"{number}.png", png(number))
            add(tar, f"{number}.json", json.dumps({"class": number + 5}).encode())
    assert Tar(path=str(tmp_path / "a.tar"), label_key="class")[2]["label"] == 7
    assert "label" not in Tar(path=str(tmp_path / "a.tar"))[2]


def test_damaged_tar_examples(shards):
    with tarfile.open(shards / "train-0002.tar", "w") as tar:
        add(tar, "a.png", png(0))
        add(tar, "a.cls", b"seven")
        add(tar, "b.png", bytes(5000))
    data = (shards / "train-0002.tar").read_bytes()
    (shards / "train-0002.tar").write_bytes(data[:5000])  # ends inside b.png
    source = Tar(path=str(shards / "train-0002.tar"))
    with pytest.raises(CorruptExample, match=r"damaged \.cls"):
        source[0]
    with pytest.raises(CorruptExample, match=r"ends inside its \.png"):
        source[1]


def test_tar_shards_that_are_missing(shards, tmp_path):
    with pytest.raises(DataError, match=r"1 of the 3 shards.*train-0002\.tar"):
        Tar(path=f"{shards}/train-{{0000..0002}}.tar")
    with pytest.raises(DataError, match="no shards match"):
        Tar(path=f"{shards}/val-*.tar")
    with pytest.raises(DataError, match="Did you mean 'shards'"):
        Tar(path=str(tmp_path / "shard"))
    (tmp_path / "x.tar").write_bytes(b"hello" * 1000)
    with pytest.raises(DataError, match="no uncompressed tar"):
        Tar(path=str(tmp_path / "x.tar"))
    with tarfile.open(tmp_path / "y.tar", "w") as tar:
        add(tar, "readme", b"")
    with pytest.raises(DataError, match="WebDataset"):
        Tar(path=str(tmp_path / "y.tar"))


# --- mixtures -------------------------------------------------------------------------------------


def mixture(weights=None, sizes=(30, 50, 7)):
    sources = tuple(
        Synthetic(num_examples=size, num_classes=1000, image_size=(1, 1), seed=number)
        for number, size in enumerate(sizes)
    )
    return Mixture(sources=sources, weights=weights)


def component(source, index):
    return int(np.searchsorted(source._ends, index, side="right"))


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (1, 1, 1), (98, 1, 1), (1e-3, 3, 2)])
def test_mixture_keeps_its_proportions_everywhere(weights):
    source = mixture(weights)
    places = np.array([place(position, source._shares)[0] for position in range(3000)])
    shares = np.array(weights) / sum(weights)
    taken = np.cumsum(np.eye(3, dtype=int)[places], axis=0)
    expected = np.arange(1, 3001)[:, None] * shares
    assert np.abs(taken - expected).max() < 3


def test_mixture_proportions_are_exact_over_a_period():
    source = mixture((0.5, 0.3, 0.2))
    for start in (0, 10, 12340):
        places = [place(position, source._shares)[0] for position in range(start, start + 10)]
        assert np.bincount(places).tolist() == [5, 3, 2]


def test_mixture_counts_the_positions_of_each_source():
    source, seen = mixture((0.37, 0.21, 0.42)), [0, 0, 0]
    for position in range(500):
        number, ordinal = place(position, source._shares)
        assert ordinal == seen[number]
        seen[number] += 1


def test_each_source_of_a_mixture_runs_through_its_own_epochs():
    source = mixture((0.5, 0.3, 0.2))
    indices = source.indices_at(np.arange(600), seed=1, shuffle=True)
    assert indices.tolist() == source.indices_at(np.arange(600), seed=1, shuffle=True).tolist()
    for number, (low, high) in enumerate([(0, 30), (30, 80), (80, 87)]):
        own = [i for i in indices if component(source, i) == number]
        size = high - low
        epochs = [own[k : k + size] for k in range(0, len(own) - size + 1, size)]
        assert len(epochs) > 1
        assert all(sorted(epoch) == list(range(low, high)) for epoch in epochs)
        assert epochs[0] != epochs[1]


def test_equal_sources_of_a_mixture_run_in_unequal_orders():
    source = mixture((1, 1), sizes=(40, 40))
    indices = source.indices_at(np.arange(80), seed=0, shuffle=True)
    assert (indices[indices < 40] != indices[indices >= 40] - 40).any()


def test_mixture_as_an_ordinary_source():
    source = mixture()
    assert len(source) == 87
    assert source[33]["label"] == 3
    assert source.describe(33) == "example 3 of Synthetic"
    assert [source.span(i) for i in (0, 33, 86)] == [(0, 30), (30, 80), (80, 87)]
    with pytest.raises(IndexError):
        source[87]
    # Weighted by size, every example comes once per epoch, as in a concatenation.
    assert sorted(source.indices_at(np.arange(87), seed=0, shuffle=True)) == list(range(87))


def test_mixtures_from_config_may_nest():
    inner = {
        "name": "mixture",
        "sources": (
            {"name": "synthetic", "num_examples": 5, "image_size": (2, 2)},
            {"name": "synthetic", "num_examples": 6, "image_size": (2, 2)},
        ),
    }
    section = {
        "name": "mixture",
        "sources": (inner, {"name": "sample", "split": "test"}),
        "weights": (3, 1),
    }
    source = build(SOURCES, section, "data.source")
    assert len(source) == 2011
    indices = source.indices_at(np.arange(400), seed=0, shuffle=True)
    assert (indices < 11).sum() == 300
    assert pickle.loads(pickle.dumps(source))[11]["image"].shape == (28, 28, 1)


@pytest.mark.parametrize("weights", [(1, 2), (1, 0, 1), (1, -1, 1)])
def test_impossible_mixtures(weights):
    with pytest.raises(ConfigError, match="positive weights"):
        mixture(weights)
    with pytest.raises(ConfigError, match="at least one"):
        Mixture(sources=())


# --- by name --------------------------------------------------------------------------------------


def test_unknown_sources_and_fields_are_explained():
    with pytest.raises(ConfigError, match="Did you mean 'folder'"):
        build(SOURCES, {"name": "foldr", "path": "x"}, "data.source")
    with pytest.raises(ConfigError, match=r"data\.source\.spilt.*Did you mean 'split'"):
        build(SOURCES, {"name": "sample", "spilt": "train"}, "data.source")
    with pytest.raises(ConfigError, match=r"data\.source\.path is missing"):
        build(SOURCES, {"name": "tar"}, "data.source")
    with pytest.raises(ConfigError, match="fashion_mnist"):
        build(SOURCES, {"name": "sample", "dataset": "fashion"}, "data.source")


def test_every_source_takes_a_slice_from_config():
    source = build(SOURCES, {"name": "sample", "split": "train", "start": 0.9}, "data.source")
    assert len(source) == 1000


def test_a_mixture_gives_the_fields_that_all_its_sources_have():
    labelled = Synthetic(image_size=(4, 4), num_examples=6)

    class Unlabelled(Synthetic):
        def _read(self, index):
            return {"image": super()._read(index)["image"], "other": 1}

    mixture = Mixture((labelled, Unlabelled(image_size=(4, 4), num_examples=6)), (1, 1))
    assert mixture.starts == (0, 6)
    batch = Pipeline(mixture, (), 4, seed=0).batch(0)
    assert set(batch) == {"image", "row"}
