import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from encoders.config import build
from encoders.data import PREPROCESSING, Preprocessing
from encoders.errors import ConfigError


def run(preprocessing, image):
    example = {"image": image}
    for transform in preprocessing.eval_transforms():
        example = transform(example, np.random.default_rng(0))
    return example["image"]


def test_normalisation():
    preprocessing = Preprocessing(image_size=(4, 4))
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    ours = preprocessing.normalize(images)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, (images / 255 - mean) / std, atol=1e-6)
    on_device = preprocessing.normalize(jnp.asarray(images))
    assert on_device.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(on_device), ours, atol=1e-6)
    np.testing.assert_allclose(preprocessing.denormalize(ours), images / 255, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_floats_pass(dtype):
    images = jnp.ones((1, 4, 4, 3), dtype)
    assert Preprocessing().normalize(images) is images


def test_evaluation_is_resize_then_centre_crop():
    image = np.array(
        Image.fromarray(
            np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        ).resize((120, 90), Image.Resampling.BICUBIC)
    )
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    ours = run(Preprocessing(image_size=(56, 56), crop_fraction=0.875), buffer.getvalue())
    resized = Image.fromarray(image).resize((85, 64), Image.Resampling.BICUBIC)
    expected = np.array(resized.crop((14, 4, 70, 60)))
    assert ours.shape == (56, 56, 3)
    assert np.abs(ours.astype(int) - expected).max() <= 1


def test_evaluation_that_distorts():
    image = np.random.default_rng(0).integers(0, 256, (30, 60, 3), dtype=np.uint8)
    preprocessing = Preprocessing(image_size=(20, 20), crop_fraction=1.0, keep_aspect=False)
    expected = Image.fromarray(image).resize((20, 20), Image.Resampling.BICUBIC)
    assert np.abs(run(preprocessing, image).astype(int) - np.array(expected)).mean() < 0.3


def test_images_of_the_right_size_are_left_alone():
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 1), dtype=np.uint8)
    preprocessing = Preprocessing(image_size=(28, 28), channels=1, crop_fraction=1.0)
    np.testing.assert_array_equal(run(preprocessing, image), image)
    assert preprocessing.mean == preprocessing.std == (0.5,)


@pytest.mark.parametrize("size", [(1, 1), (31, 500), (500, 31), (224, 224), (300, 200)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_image_gets_the_shape(size, channels):
    image = np.zeros((*size, 3), np.uint8)
    preprocessing = Preprocessing(image_size=(48, 32), channels=channels)
    assert run(preprocessing, image).shape == (48, 32, channels)


def test_round_trip_through_json():
    preprocessing = Preprocessing(image_size=(28, 20), channels=1, mean=(0.3,), std=(0.2,))
    text = json.dumps(preprocessing.to_json())
    assert build(PREPROCESSING, json.loads(text), "preprocessing") == preprocessing
    with pytest.raises(ConfigError, match="crop_fraction"):
        build(PREPROCESSING, {"name": "image", "crop_fracton": 1.0}, "preprocessing")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 2}, "channels"),
        ({"image_size": (0, 4)}, "image_size"),
        ({"mean": (0.5,)}, "expected 3 numbers"),
        ({"std": (0.5, 0.0, 0.5)}, "positive"),
        ({"crop_fraction": 0.0}, "crop_fraction"),
    ],
)
def test_impossible_preprocessing(fields, message):
    with pytest.raises(ConfigError, match=message):
        Preprocessing(**fields)
