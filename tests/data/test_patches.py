"""Images at their own aspect ratio, as patches."""

import numpy as np
import pytest

from encoders.config import build
from encoders.data import PREPROCESSING, TRANSFORMS, ImageTextPreprocessing, Preprocessing
from encoders.data.image_text import TextPreprocessing
from encoders.data.transforms.patches import ToPatches, native_grid
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
