"""Batches of clips in a few static lengths: which clips, in which order, and how little padding."""

import collections
import dataclasses

import numpy as np
import pytest

from encoders.data import AudioPreprocessing, CorruptExample, Pipeline, build_transforms
from encoders.data.sources import Source
from encoders.data.sources.buckets import Buckets, by_length, in_buckets
from encoders.data.sources.mixture import Mixture
from encoders.data.sources.synthetic import Synthetic
from encoders.errors import ConfigError

SIZES = (500, 800, 1600)
PREPROCESSING = AudioPreprocessing(max_samples=1600, bucket_samples=SIZES)
BATCH = 6
LENGTHS = np.random.default_rng(0).integers(400, 2400, 100)


@dataclasses.dataclass(kw_only=True, eq=False)
class Numbered(Source):
    """Clips whose samples are their number."""

    broken: tuple[int, ...] = ()
    labelled: bool = True

    def _count(self):
        return len(LENGTHS)

    def lengths(self, sample_rate):
        assert sample_rate == 16000
        return LENGTHS[self._permuted(np.arange(len(self)))]

    def _read(self, index):
        if index in self.broken:
            raise CorruptExample("broken")
        label = {"label": index} if self.labelled else {}
        return {"audio": np.full(LENGTHS[index], index, np.int16), **label}


def pipeline(source=None, rows=None, **options):
    sections = [{"name": "decode_audio"}, {"name": "crop_audio"}]
    source = in_buckets(source or Numbered(), PREPROCESSING, BATCH)
    transforms = build_transforms(sections, PREPROCESSING)
    return Pipeline(source, transforms, BATCH, 3, rows=rows, **{"threads": 0, **options})


@pytest.fixture(scope="module")
def batches():
    return list(pipeline().iterate(0, 40))


def fitting(length):
    return next((size for size in SIZES if size >= length), SIZES[-1])


def test_every_batch_is_of_one_bucket_and_of_its_length(batches):
    for batch in batches:
        lengths = LENGTHS[batch["label"]]
        assert {fitting(length) for length in lengths} == {batch["waveform"].shape[1]}
        np.testing.assert_array_equal(batch["length"], np.minimum(lengths, SIZES[-1]))
        assert (batch["waveform"][:, 0] == batch["label"]).all()
        past = np.arange(batch["waveform"].shape[1]) >= batch["length"][:, None]
        assert not batch["waveform"][past].any()


def test_buckets_take_turns_by_how_many_clips_they_have(batches):
    source = pipeline().batcher.source
    assert sum(source.shares.values()) == pytest.approx(1)
    met = collections.Counter()
    for number, batch in enumerate(batches, 1):
        met[batch["waveform"].shape[1]] += 1
        for size, share in source.shares.items():
            assert abs(met[size] - number * share) < len(SIZES)


def test_every_clip_comes_once_in_an_epoch_of_its_bucket(batches):
    seen = collections.defaultdict(list)
    for batch in batches:
        seen[batch["waveform"].shape[1]].extend(batch["label"].tolist())
    for size, labels in seen.items():
        members = [i for i, length in enumerate(LENGTHS) if fitting(length) == size]
        epochs = [labels[i : i + len(members)] for i in range(0, len(labels), len(members))]
        assert len(epochs) >= 2
        for epoch in epochs[:-1]:
            assert sorted(epoch) == members
        assert epochs[0] != epochs[1]


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_resuming_and_any_number_of_processes_give_the_same_batches(batches):
    same(next(iter(pipeline().iterate(17, 18))), batches[17])
    same(pipeline(threads=2).batch(9), batches[9])
    for ours, theirs in zip(pipeline(threads=2).iterate(4, 12), batches[4:12], strict=True):
        same(ours, theirs)
    parts = [pipeline(rows=np.arange(BATCH)[part::2]) for part in range(2)]
    for step in range(12):
        for part, one in enumerate(parts):
            same(one.batch(step), {k: v[part::2] for k, v in batches[step].items()})


def test_worker_processes_make_the_same(batches):
    for ours, theirs in zip(pipeline(processes=2).iterate(3, 9), batches[3:9], strict=True):
        same(ours, theirs)


def test_corrupt_clips_are_replaced_from_their_bucket(batches):
    broken = tuple(range(0, 100, 7))
    with_broken = pipeline(Numbered(broken=broken))
    for step in range(20):
        batch = with_broken.batch(step)
        assert not set(batch["label"].tolist()) & set(broken)
        assert batch["waveform"].shape == batches[step]["waveform"].shape
    assert with_broken.stats.corrupt > 0


def test_padding_is_reported(batches):
    made = pipeline()
    for step in range(40):
        made.batch(step)
    metrics = made.stats.metrics()
    assert metrics["row_samples"] == np.mean([b["waveform"].shape[1] for b in batches])
    assert metrics["padding"] == pytest.approx(made.batcher.source.padding, abs=0.03)
    assert metrics["padding"] < 0.6 * (1 - np.minimum(LENGTHS, 1600).mean() / 1600)


def test_a_mixture_has_the_fields_that_all_its_sources_have():
    mixed = pipeline(Mixture((Numbered(), Numbered(labelled=False))))
    found = [mixed.batch(step) for step in range(8)]
    assert mixed.stats.corrupt == 0
    assert {name for batch in found for name in batch} == {"waveform", "length", "row"}


def test_lengths_no_clip_has_are_left_out():
    source = Buckets(Numbered(stop=0.5), (300, 400, 2000), 16000, BATCH)
    assert source.sizes == (2000,)
    assert len(source) == 50
    assert [source.bucket_at(step) for step in range(5)] == [0] * 5


def test_clips_that_cannot_be_used_have_no_bucket_of_their_own(monkeypatch):
    lengths = np.where(LENGTHS <= 800, 0, LENGTHS)  # as of files that cannot be read
    monkeypatch.setattr(Numbered, "lengths", lambda self, rate: lengths)
    assert in_buckets(Numbered(), PREPROCESSING, BATCH).sizes == (1600,)


def test_a_pass_is_cut_by_length():
    met = []
    for part in by_length(Numbered(), PREPROCESSING, BATCH):
        [size] = {part[i]["bucket_samples"] for i in range(len(part))}
        labels = [part[i]["label"] for i in range(len(part))]
        assert {fitting(length) for length in LENGTHS[labels]} == {size}
        assert part.describe(0) == Numbered().describe(labels[0])
        met += labels
    assert sorted(met) == list(range(100))

    counts = np.bincount(np.searchsorted(SIZES[:2], LENGTHS))  # 9, 9 and 82
    parts = by_length(Numbered(), PREPROCESSING, int(counts[1]) + 1)
    assert [(len(part), part[0]["bucket_samples"]) for part in parts] == [
        (counts[0] + counts[1], 800), (counts[2], 1600),
    ]  # fmt: skip
    few = int((LENGTHS > 2000).sum())  # and longer than the others
    parts = Buckets(Numbered(), (2000, 2400), 16000, BATCH).parts(few + 1)
    assert [(len(part), part[0]["bucket_samples"]) for part in parts] == [
        (100 - few, 2000), (few, 2400),
    ]  # fmt: skip
    synthetic = Synthetic()
    assert by_length(synthetic, PREPROCESSING, BATCH) == [synthetic]


def test_sources_without_lengths_are_refused():
    with pytest.raises(ConfigError, match="a source that knows how long its clips are"):
        in_buckets(Synthetic(), PREPROCESSING, BATCH)
    mixed = Mixture((Numbered(), Synthetic()))
    with pytest.raises(ConfigError, match=r"a source that knows .* got Synthetic"):
        in_buckets(mixed, PREPROCESSING, BATCH)
    with pytest.raises(ConfigError, match="leave out the weights"):
        in_buckets(Mixture((Numbered(), Numbered()), (1.0, 2.0)), PREPROCESSING, BATCH)
    assert len(in_buckets(Mixture((Numbered(), Numbered())), PREPROCESSING, BATCH)) == 200
    plain = AudioPreprocessing(max_samples=1600)
    numbered = Numbered()
    assert in_buckets(numbered, plain, BATCH) is numbered
