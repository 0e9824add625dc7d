import dataclasses
import io
import logging

import numpy as np
import pytest
from PIL import Image

from encoders.data import CorruptExample, Pipeline, eval_batches
from encoders.data.sources.base import Source
from encoders.data.sources.mixture import Mixture
from encoders.data.sources.synthetic import Synthetic
from encoders.data.transforms.geometry import Decode, RandomFlip, RandomResizedCrop
from encoders.data.transforms.rand_augment import RandAugment
from encoders.errors import ConfigError, DataError

TRANSFORMS = [RandomResizedCrop(image_size=(8, 8)), RandomFlip(), RandAugment()]


@dataclasses.dataclass(kw_only=True, eq=False)
class Files(Source):
    """PNG files, some of which are cut short or absent."""

    count: int = 40
    broken: tuple[int, ...] = ()
    absent: tuple[int, ...] = ()

    def _count(self):
        return self.count

    def _read(self, index):
        if index in self.absent:
            raise CorruptExample("not there")
        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), index % 256, np.uint8)).save(buffer, "PNG")
        data = buffer.getvalue()
        return {"image": data[:42] if index in self.broken else data, "label": index}

    def _describe(self, index):
        return f"file {index}"


def equal(left, right):
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and np.array_equal(left[name], right[name])
        for name in left
    )


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.fixture(scope="module")
def source():
    return Synthetic(num_examples=50, image_size=(12, 12))


@pytest.fixture(scope="module")
def reference(source):
    """The global batches of steps 0 to 5, which straddle three epochs."""
    pipeline = Pipeline(source, TRANSFORMS, 24, seed=7)
    return [pipeline.batch(step) for step in range(6)]


def test_a_batch(source, reference):
    batch = reference[2]
    assert batch["image"].shape == (24, 8, 8, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["label"].dtype == batch["row"].dtype == np.int32
    assert batch["row"].tolist() == list(range(24))
    order = source.indices_at(np.arange(48, 72), seed=7, shuffle=True)
    assert batch["label"].tolist() == [i % 10 for i in order]


@pytest.mark.parametrize("processes", [2, 4])
def test_the_global_batch_is_the_same_on_any_number_of_processes(source, reference, processes):
    pipelines = [
        Pipeline(source, TRANSFORMS, 24, 7, rows=rows)
        for rows in np.split(np.arange(24), processes)
    ]
    for step in (0, 2, 5):
        parts = [pipeline.batch(step) for pipeline in pipelines]
        assert {len(part["row"]) for part in parts} == {24 // processes}
        assert equal(joined(parts), reference[step])


@pytest.mark.parametrize("options", [dict(threads=0), dict(threads=3), dict(processes=2)])
def test_any_rows_are_those_of_the_global_batch(source, reference, options):
    rows = np.array([1, 2, 9, 10, 11, 23])
    pipeline = Pipeline(source, TRANSFORMS, 24, 7, rows=rows, **options)
    for batch, whole in zip(pipeline.iterate(1, 4), reference[1:4], strict=True):
        assert equal(batch, {name: value[rows] for name, value in whole.items()})
        assert batch["row"].tolist() == rows.tolist()


@pytest.mark.parametrize("threads", [0, 1, 3, 16])
def test_threads_change_nothing(source, reference, threads):
    pipeline = Pipeline(source, TRANSFORMS, 24, 7, threads=threads)
    batches = list(pipeline.iterate(1, 6))
    assert len(batches) == 5
    assert all(map(equal, batches, reference[1:]))
    assert pipeline.stats.examples == 5 * 24


def test_a_step_needs_no_steps_before_it(source, reference):
    assert equal(Pipeline(source, TRANSFORMS, 24, 7).batch(5), reference[5])
    endless = Pipeline(source, TRANSFORMS, 24, 7).iterate(4)
    assert equal(next(endless), reference[4])
    endless.close()


def test_seed_epoch_and_position_all_matter(source):
    pipeline = Pipeline(source, TRANSFORMS, 50, seed=0)
    first, second = pipeline.batch(0), pipeline.batch(1)
    other = Pipeline(source, TRANSFORMS, 50, seed=1).batch(0)
    assert sorted(first["label"]) == sorted(second["label"]) == sorted(other["label"])
    assert first["label"].tolist() != second["label"].tolist()
    assert first["label"].tolist() != other["label"].tolist()
    # The same image gets other random numbers in another epoch.
    repeated = Pipeline(source, TRANSFORMS, 50, seed=0, shuffle=False)
    assert not np.array_equal(repeated.batch(0)["image"], repeated.batch(1)["image"])
    assert repeated.batch(0)["label"].tolist() == repeated.batch(1)["label"].tolist()


def test_texts_stay_on_the_host():
    @dataclasses.dataclass(kw_only=True, eq=False)
    class Captions(Source):
        def _count(self):
            return 4

        def _read(self, index):
            return {"text": "a", "raw": b"b", "x": 1.5, "y": np.arange(3), "ok": True}

    batch = Pipeline(Captions(), [], 4, 0).batch(0)
    assert {name: (a.shape, a.dtype.name) for name, a in batch.items()} == {
        "x": ((4,), "float32"),
        "y": ((4, 3), "int32"),
        "ok": ((4,), "bool"),
        "row": ((4,), "int32"),
    }


def test_images_of_different_sizes_are_explained():
    @dataclasses.dataclass(kw_only=True, eq=False)
    class Growing(Source):
        def _count(self):
            return 4

        def _read(self, index):
            return {"image": np.zeros((8, 8 + index, 3), np.uint8)}

    with pytest.raises(DataError, match=r"field 'image' is uint8 \[8, \d+, 3\].*add a transform"):
        Pipeline(Growing(), [], 4, 0).batch(0)


def test_an_epoch_counts_all_processes(source):
    assert Pipeline(source, [], 10, 0, rows=np.arange(5, 10)).examples_per_epoch == 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 4, "seed": -1}, "seed"),
        ({"batch_size": 4, "threads": -1}, "threads"),
    ],
)
def test_impossible_settings(source, options, message):
    with pytest.raises(ConfigError, match=message):
        Pipeline(source, [], **{"seed": 0, **options})


# --- corrupt examples -----------------------------------------------------------------------------

BROKEN = {"broken": (3, 17, 18), "absent": (30,)}


def test_corrupt_examples_are_replaced_alike_on_any_number_of_processes():
    reference = Pipeline(Files(**BROKEN), [Decode()], 40, 0)
    whole = [reference.batch(step) for step in range(3)]
    for count in (2, 4):
        parts = [
            Pipeline(Files(**BROKEN), [Decode()], 40, 0, rows=rows)
            for rows in np.split(np.arange(40), count)
        ]
        for step in range(3):
            assert equal(joined([part.batch(step) for part in parts]), whole[step])
    # Every good example is there; replacements differ between epochs.
    bad = {3, 17, 18, 30}
    assert set(range(40)) - bad <= set(whole[0]["label"].tolist())
    extra = [sorted(np.bincount(b["label"], minlength=40) > 1) for b in whole]
    assert all(not bad & set(b["label"].tolist()) for b in whole)
    assert len(extra) == 3
    threaded = list(Pipeline(Files(**BROKEN), [Decode()], 40, 0, threads=3).iterate(0, 3))
    assert all(map(equal, threaded, whole))


def test_corrupt_examples_are_counted_and_named_once(caplog):
    pipeline = Pipeline(Files(**BROKEN), [Decode()], 40, 0, threads=2)
    with caplog.at_level(logging.WARNING):
        list(pipeline.iterate(0, 3))
    assert pipeline.stats.corrupt >= 12
    assert set(pipeline.stats.names) == {"file 3", "file 17", "file 18", "file 30"}
    assert pipeline.stats.names["file 30"] == "not there"
    assert "not a readable image" in pipeline.stats.names["file 3"]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 4
    assert sum("file 17" in message for message in messages) == 1


def test_too_many_corrupt_examples_end_the_run():
    def run(rate):
        return list(
            Pipeline(Files(**BROKEN), [Decode()], 10, 0, max_corrupt_rate=rate).iterate(0, 8)
        )

    assert len(run(0.2)) == 8
    with pytest.raises(DataError, match=r"examples are corrupt.*allowed 5\.00%.*file \d+"):
        run(0.05)
    # Not judged before an epoch (or 1,000 examples): one bad file among the first ten is no rate.
    early = Pipeline(Files(broken=(3,)), [Decode()], 40, 0, max_corrupt_rate=0.03)
    assert len(early.batch(0)["row"]) == 40
    late = Pipeline(Files(count=3000, broken=tuple(range(0, 3000, 2))), [Decode()], 100, 0)
    late.max_corrupt_rate = 0.4
    with pytest.raises(DataError, match="allowed 40"):
        list(late.iterate(0, 30))
    assert 400 < late.stats.examples < 700  # as soon as 1,000 were tried, of which half are good


def test_all_corrupt_is_fatal_even_without_a_rate():
    with pytest.raises(DataError, match=r"no usable example in 100 tries; the last was file \d+"):
        Pipeline(Files(absent=tuple(range(40))), [], 4, 0).batch(0)


def test_a_missing_field_is_a_corrupt_example():
    @dataclasses.dataclass(kw_only=True, eq=False)
    class Unlabelled(Files):
        def _read(self, index):
            example = super()._read(index)
            return example if index != 5 else {"image": example["image"]}

    [batch] = eval_batches(Unlabelled(), [Decode()], 40)
    assert np.flatnonzero(~batch["valid"]).tolist() == [5]
    pipeline = Pipeline(Unlabelled(), [Decode()], 40, 0)
    assert 5 not in pipeline.batch(0)["label"]
    assert pipeline.stats.names == {"file 5": "no field 'label', only ['image']"}


def test_a_mixture_replaces_from_the_same_source():
    good, bad = Files(count=20), Files(count=20, absent=tuple(range(1, 20)))
    pipeline = Pipeline(Mixture(sources=(good, bad), weights=(1, 1)), [Decode()], 40, 0)
    labels = pipeline.batch(0)["label"]
    assert (labels == 0).sum() >= 20  # all twenty of the second source are its one good example
    assert len(set(labels.tolist())) == 20


# --- one ordered pass -----------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2])
def test_eval_batches_give_each_example_once(processes):
    files = Files(count=23)
    parts = [
        list(eval_batches(files, [Decode()], 10, rows=rows, threads=2))
        for rows in np.split(np.arange(10), processes)
    ]
    assert [len(part) for part in parts] == [3] * processes
    batches = [joined(list(pair)) for pair in zip(*parts, strict=True)]
    assert all(batch["image"].shape == (10, 8, 8, 3) for batch in batches)
    rows = np.concatenate([batch["row"] for batch in batches])
    valid = np.concatenate([batch["valid"] for batch in batches])
    labels = np.concatenate([batch["label"] for batch in batches])
    assert rows.tolist() == list(range(30))
    assert labels[valid].tolist() == list(range(23))
    assert valid.sum() == 23


def test_eval_batches_of_some_rows():
    files, rows = Files(count=13), np.array([0, 3, 4])
    some = list(eval_batches(files, [Decode()], 6, rows=rows))
    whole = list(eval_batches(files, [Decode()], 6))
    assert [batch["row"].tolist() for batch in some] == [[0, 3, 4], [6, 9, 10], [12, 15, 16]]
    for part, batch in zip(some, whole, strict=True):
        assert part["valid"].tolist() == batch["valid"][rows].tolist()
        np.testing.assert_array_equal(
            part["image"][part["valid"]], batch["image"][rows][part["valid"]]
        )


def test_eval_batches_leave_corrupt_examples_out(caplog):
    [batch] = eval_batches(Files(count=6, broken=(0, 4)), [Decode()], 6)
    assert batch["valid"].tolist() == [False, True, True, True, False, True]
    assert batch["image"][4].max() == 1  # padded by a good example
    assert sum("file 4" in r.getMessage() for r in caplog.records) == 1
    with pytest.raises(DataError, match="none of the first"):
        list(eval_batches(Files(count=3, absent=(0, 1, 2)), [Decode()], 3))
    with pytest.raises(ConfigError, match="batch_size"):
        list(eval_batches(Files(), [], 0))
