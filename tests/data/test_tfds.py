import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import simplejpeg
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from encoders.data import Pipeline
from encoders.data.sources.base import CorruptExample
from encoders.data.sources.tfds import Tfds
from encoders.data.transforms.geometry import Decode, Resize
from encoders.errors import DataError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data set as `download_and_prepare` leaves it on disk, made by TFDS' own serialiser."""
    root = tmp_path_factory.mktemp("tensorflow_datasets")
    directory = root / "tiny_photos" / "1.0.0"
    directory.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            "file_name": tfds.features.Text(),
        }
    )
    features.save_config(str(directory))
    splits = []
    for split, lengths in (("train", (5, 4)), ("validation", (3,))):
        for shard, length in enumerate(lengths):
            name = f"tiny_photos-{split}.array_record-{shard:05d}-of-{len(lengths):05d}"
            writer = array_record_module.ArrayRecordWriter(str(directory / name), "group_size:1")
            for number in range(length):
                example = {
                    "image": io.BytesIO(jpeg(10 * shard + number)),
                    "label": number % 2,
                    "file_name": f"{number}.jpg",
                }
                record = features.serialize_example(example)
                writer.write(b"\xff\xff" if split == "validation" and number == 1 else record)
            writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append(
            {
                "name": split,
                "shardLengths": [str(n) for n in lengths],
                "filepathTemplate": template,
            }
        )
    info = {
        "name": "tiny_photos",
        "version": "1.0.0",
        "fileFormat": "array_record",
        "splits": splits,
    }
    (directory / "dataset_info.json").write_text(json.dumps(info))
    return str(root)


def jpeg(value):
    return simplejpeg.encode_jpeg(np.full((16, 24, 3), 10 * value, np.uint8), quality=95)


def test_reading(data_dir):
    source = Tfds(dataset="tiny_photos", data_dir=data_dir)
    assert len(source) == 9
    assert source.class_names == ("cat", "dog")
    example = source[6]
    assert example["image"] == jpeg(11)  # still encoded: decoding is ours
    assert example["label"] == 1
    assert source.describe(6) == "tiny_photos train example 6"
    travelled = pickle.loads(pickle.dumps(source))
    assert travelled[6] == example


def test_a_field_with_captions(data_dir):
    source = Tfds(dataset="tiny_photos", data_dir=data_dir, text_field="file_name")
    assert source[6]["text"] == "1.jpg"
    assert set(source[6]) == {"image", "label", "text"}


def test_slices_of_either_kind(data_dir):
    assert len(Tfds(dataset="tiny_photos", split="train[:50%]", data_dir=data_dir)) in (4, 5)
    assert len(Tfds(dataset="tiny_photos", data_dir=data_dir, start=2 / 3)) == 3
    both = Tfds(dataset="tiny_photos", split="train+validation", data_dir=data_dir)
    assert len(both) == 12


def test_batches_in_worker_processes(data_dir):
    source = Tfds(dataset="tiny_photos", data_dir=data_dir)
    transforms = [Decode(), Resize(image_size=(8, 8), keep_aspect=False)]
    [batch] = Pipeline(source, transforms, 9, 0, processes=1).iterate(0, 1)
    assert batch["image"].shape == (9, 8, 8, 3)
    assert sorted(batch["image"][:, 0, 0, 0].tolist()) == [0, 10, 20, 30, 40, 100, 110, 120, 130]
    assert set(batch) == {"image", "label", "row"}


def test_damaged_records_are_corrupt(data_dir):
    source = Tfds(dataset="tiny_photos", split="validation", data_dir=data_dir)
    with pytest.raises(CorruptExample, match="unreadable record"):
        source[1]
    assert source[2]["image"] == jpeg(2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "tiny_fotos"}, "TFDS cannot open 'tiny_fotos'"),
        ({"dataset": "cifar_10"}, "Did you mean 'cifar10'"),
        ({"dataset": "mnist"}, "'mnist' is not prepared under .*prepare_data --from tfds"),
        ({"dataset": "tiny_photos", "split": "trian"}, "no split 'trian'.*Did you mean 'train'"),
        ({"dataset": "tiny_photos", "split": "train[a:b]"}, r"split 'train\[a:b\]'"),
    ],
)
def test_what_is_missing_is_explained(data_dir, fields, message):
    with pytest.raises(DataError, match=message):
        Tfds(data_dir=data_dir, **fields)


def test_other_file_formats_are_explained(data_dir, tmp_path):
    import pathlib
    import shutil

    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    path = pathlib.Path(tmp_path) / "tiny_photos" / "1.0.0" / "dataset_info.json"
    path.write_text(path.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError, match="not stored as ArrayRecord"):
        Tfds(dataset="tiny_photos", data_dir=str(tmp_path))


def test_neither_tensorflow_nor_jax_is_imported(data_dir):
    program = (
        "import sys\n"
        "from encoders.data import SOURCES\n"
        f"source = SOURCES['tfds'](dataset='tiny_photos', data_dir={data_dir!r})\n"
        "assert len(source[0]['image']) > 100\n"
        "print(sorted({'jax', 'tensorflow', 'torch'} & set(sys.modules)))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout == "[]\n"


def test_the_package_does_not_import_tfds():
    program = "import sys, encoders.data; print('tensorflow_datasets' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout == "False\n"
