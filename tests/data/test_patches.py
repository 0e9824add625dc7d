"""Images at their own aspect ratio, as patches."""

import contextlib
import dataclasses

import numpy as np
import pytest

from encoders.config import build
from encoders.data import (
    PREPROCESSING,
    TRANSFORMS,
    CorruptExample,
    ImageTextPreprocessing,
    Pipeline,
    Preprocessing,
)
from encoders.data.image_text import TextPreprocessing
from encoders.data.sources import Source
from encoders.data.transforms.patches import (
    PackPatches,
    ToPatches,
    _patches,
    native_grid,
    native_grids,
)
from encoders.errors import ConfigError

NATIVE = {"max_patches": 20, "patch_size": 4, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}


@pytest.mark.parametrize(
    "size, patch, most, grid",
    [  # as transformers' Siglip2ImageProcessor has them
        ((480, 640), 16, 256, (14, 18)),
        ((640, 480), 16, 256, (18, 14)),
        ((100, 2000), 16, 256, (4, 64)),
        ((7, 9), 14, 64, (7, 9)),
        ((2000, 3), 8, 20, (20, 1)),
        ((1, 1), 16, 1, (1, 1)),
        ((333, 333), 14, 784, (28, 28)),
    ],
)
def test_grids_are_as_large_as_fits(size, patch, most, grid):
    assert native_grid(size, patch, most) == grid


def test_patches_are_those_of_the_image():
    image = np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8)
    preprocessing = Preprocessing(**NATIVE)
    example = {"image": image, "label": 3}
    for transform in preprocessing.eval_transforms():
        example = transform(example, np.random.default_rng(0))
    assert example["label"] == 3
    assert example["shapes"].tolist() == [4, 5]
    assert example["image"].shape == (20, 48)
    np.testing.assert_array_equal(example["image"][6].reshape(4, 4, 3), image[4:8, 4:8])
    normal = preprocessing.normalize(image)
    patches = preprocessing.normalize(example["image"])
    np.testing.assert_allclose(patches[6].reshape(4, 4, 3), normal[4:8, 4:8])
    tall = ToPatches(4, 20)({"image": image[:, :4]}, None)
    assert tall["shapes"].tolist() == [8, 2]
    narrow = ToPatches(4, 7)({"image": image[:, :4]}, None)
    assert narrow["shapes"].tolist() == [4, 1]
    assert not narrow["image"][4:].any()


def test_a_batch_has_the_shapes_of_its_images():
    preprocessing = Preprocessing(**NATIVE)
    batch = preprocessing.example_batch(2)
    assert {name: x.shape for name, x in batch.items()} == {
        "image": (2, 20, 48),
        "shapes": (2, 2),
        "label": (2,),
        "row": (2,),
    }
    inputs, named = preprocessing.encoder_inputs(batch)
    assert inputs[0] is batch["image"]
    assert named["shapes"] is batch["shapes"]
    assert preprocessing.input_size == (4, 80)
    assert len(preprocessing.picture_transforms()) == 1
    pair = ImageTextPreprocessing(TextPreprocessing("none", max_length=5), preprocessing)
    assert set(pair.example_batch(2)) == {"image", "shapes", "ids", "segments", "row"}
    again = build(PREPROCESSING, preprocessing.to_json(), "preprocessing")
    assert again == preprocessing
    cut = build(TRANSFORMS, {"name": "to_patches"}, "transforms", **preprocessing.for_transforms)
    assert (cut.patch_size, cut.max_patches) == (4, 20)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match="set both or none"):
        Preprocessing(max_patches=4)
    with pytest.raises(
        ConfigError, match="expected patch_size and max_patches from 1, got 4 and 0"
    ):
        ToPatches(4, 0)


# --- several in a row -----------------------------------------------------------------------------

PACK = PackPatches(images=3, row_patches=24, patch_size=4, max_patches=16)


@dataclasses.dataclass(kw_only=True, eq=False)
class Pictures(Source):
    """Pictures of many shapes, each of one colour; some cannot be read."""

    broken: tuple[int, ...] = ()

    def _count(self):
        return 30

    def _read(self, index):
        if index in self.broken:
            raise CorruptExample("not there")
        image = np.full((8 + index % 7, 30 - index, 3), index, np.uint8)
        return {"image": image, "label": index, "ids": np.array([index, 1])}


@pytest.mark.parametrize(
    "sizes, most, each, grids",
    [
        (((64, 64),), 16, 16, [(4, 4)]),
        (((64, 64), (32, 32)), 20, 16, [(4, 4), (2, 2)]),
        (((64, 64), (32, 32)), 5, 16, [(2, 2), (1, 1)]),
        (((6400, 6400), (8, 8)), 20, 16, [(4, 4), (2, 2)]),  # the larger has all it may have
        (((1, 1), (9, 9), (9, 9)), 3, 4, [(1, 1)] * 3),
    ],
)
def test_images_of_a_row_are_scaled_alike(sizes, most, each, grids):
    assert native_grids(sizes, 16, most, each) == grids
    assert native_grid(sizes[0], 16, most) == native_grids(sizes[:1], 16, most, most)[0]


def test_a_row_is_full_of_whole_images():
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((8, 12), (12, 8), (9, 20))]
    row = PACK.pack([{"image": image, "ids": np.arange(2) + n} for n, image in enumerate(pictures)])
    assert row["ids"].tolist() == [[0, 1], [1, 2], [2, 3]]
    counts = row["shapes"].prod(-1)
    assert counts.sum() <= 24
    start = 0
    for image, grid, count in zip(pictures, row["shapes"], counts, strict=True):
        alone = ToPatches(4, 24)
        cut = _patches(image, tuple(grid), 4, alone.interpolation)
        np.testing.assert_array_equal(row["image"][start : start + count], cut)
        start += count
    assert not row["image"][start:].any()


def test_packed_batches_have_the_examples_of_others():
    """Whatever the process, thread or worker that makes them; and where some cannot be read."""
    source = Pictures(broken=(4, 17))
    plain = Pipeline(source, [ToPatches(4, 16)], 12, seed=3)
    packed = Pipeline(source, [PACK], 12, seed=3)
    batch, alone = packed.batch(2), plain.batch(2)
    assert {name: x.shape for name, x in batch.items()} == {
        "image": (4, 24, 48), "shapes": (4, 3, 2), "label": (4, 3), "ids": (4, 3, 2), "row": (4,),
    }  # fmt: skip
    np.testing.assert_array_equal(batch["label"].reshape(-1), alone["label"])
    assert batch["row"].tolist() == [0, 1, 2, 3]
    assert packed.examples_per_epoch == 30
    halves = [Pipeline(source, [PACK], 12, 3, rows=r).batch(2) for r in np.split(np.arange(12), 2)]
    for name, whole in batch.items():
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), whole)
    assert packed.stats.examples == 12
    for step, made in zip(range(4), packed.iterate(0, 4), strict=True):
        again = packed.batch(step)
        assert all(np.array_equal(made[name], again[name]) for name in made)
    assert packed.stats.corrupt > 0
    with contextlib.closing(Pipeline(source, [PACK], 12, 3, processes=1).iterate(2, 3)) as worker:
        np.testing.assert_array_equal(next(worker)["image"], batch["image"])


def test_an_example_batch_is_as_packed_ones_are():
    source = Pictures()
    batch = Pipeline(source, [PACK], 12, seed=3).batch(0)
    zeros = {"image": np.zeros((12, 16, 48), np.uint8), "shapes": np.ones((12, 2), np.int32)}
    zeros |= {"label": np.zeros(12, np.int32), "ids": np.zeros((12, 2), np.int32)}
    example = PACK.example_rows({**zeros, "row": np.arange(12, dtype=np.int32)})
    assert {k: (x.shape, x.dtype) for k, x in example.items()} == {
        k: (x.shape, x.dtype) for k, x in batch.items()
    }


def test_rows_that_cannot_be_are_refused():
    given = {"images": 3, "patch_size": 4, "max_patches": 16}
    for row in (2, 49):
        with pytest.raises(ConfigError, match=f"take from 3 to 48, got {row}"):
            PackPatches(row_patches=row, **given)
    with pytest.raises(ConfigError, match="images from 1, got 4, 16 and 0"):
        PackPatches(row_patches=3, **given | {"images": 0})
    with pytest.raises(ConfigError, match="two of them pack rows"):
        Pipeline(Pictures(), [PACK, PACK], 12, seed=3)
    with pytest.raises(ConfigError, match="rows of 3 images do not make 10"):
        Pipeline(Pictures(), [PACK], 10, seed=3)
