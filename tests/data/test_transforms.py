import io
import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from encoders.config import build
from encoders.data import (
    TRANSFORMS,
    CorruptExample,
    Preprocessing,
    TextPreprocessing,
    build_transforms,
    images,
)
from encoders.data.transforms.color import ColorJitter, RandomGrayscale, turn_hue
from encoders.data.transforms.erasing import RandomErasing
from encoders.data.transforms.geometry import (
    CenterCrop,
    Decode,
    Pad,
    RandomCrop,
    RandomFlip,
    RandomResizedCrop,
    Resize,
    covering_size,
)
from encoders.data.transforms.rand_augment import OPS, Draw, RandAugment
from encoders.errors import ConfigError


def generator(seed=0):
    return np.random.Generator(np.random.Philox(key=[seed, 0]))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height, width):
    image = Image.fromarray(noise(height // 16 + 2, width // 16 + 2, 3))
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC))


def jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def apply(transform, image, seed=0):
    return transform({"image": image, "label": 3}, generator(seed))["image"]


RANDOM = [
    RandomResizedCrop(image_size=(20, 24), channels=1),
    RandomCrop(image_size=(20, 24)),
    RandomFlip(),
    RandAugment(),
    RandAugment(magnitude=9.0, magnitude_std=0.5, increasing=True, probability=0.5),
    ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
    RandomGrayscale(probability=0.5),
    RandomErasing(probability=1.0),
]


@pytest.mark.parametrize("transform", RANDOM, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transform_is_a_function_of_example_and_key(transform, channels):
    image = noise(28, 28, channels)
    before = image.copy()
    results = [apply(transform, image, seed) for seed in (0, 0, *range(1, 12))]
    np.testing.assert_array_equal(image, before)  # a source may keep it
    np.testing.assert_array_equal(results[0], results[1])
    colourless = channels == 1 and isinstance(transform, RandomGrayscale)
    assert colourless or any(not np.array_equal(results[0], other) for other in results[2:])
    for result in results:
        assert result.dtype == np.uint8
        assert result.shape[2] == (3 if channels == 3 and transform is not RANDOM[0] else 1)


def test_other_fields_pass():
    example = {"image": noise(9, 9, 3), "label": 3, "text": "a"}
    for transform in (*RANDOM, Decode(), Pad(padding=1), Resize(image_size=(4, 4))):
        out = transform(dict(example), generator())
        assert out["label"] == 3
        assert out["text"] == "a"


@pytest.mark.parametrize("bad", [{}, {"image": "text"}, {"image": np.zeros((3, 3, 3), np.float32)}])
def test_examples_without_an_image_are_corrupt(bad):
    for transform in (Decode(), *RANDOM[:2]):
        with pytest.raises(CorruptExample):
            transform(dict(bad), generator())


# --- geometry -----------------------------------------------------------------------------------


def test_crop_from_a_file_equals_crop_from_pixels():
    image = smooth(150, 200)
    data = jpeg(image)
    transform = RandomResizedCrop(image_size=(64, 48))
    decoded = images.decode(data, 3)
    for seed in range(20):
        np.testing.assert_array_equal(apply(transform, data, seed), apply(transform, decoded, seed))


def test_large_crops_are_decoded_small_with_little_difference():
    data = jpeg(smooth(900, 1100))
    decoded = images.decode(data, 3)
    transform = RandomResizedCrop(image_size=(64, 64), scale=(0.5, 1.0))
    for seed in range(5):
        difference = apply(transform, data, seed).astype(int) - apply(transform, decoded, seed)
        assert 0 < np.abs(difference).mean() < 1


def test_random_resized_crop_samples_as_published():
    transform = RandomResizedCrop(image_size=(8, 8), scale=(0.2, 0.8))
    rng, areas, ratios, centres = generator(), [], [], []
    for _ in range(4000):
        top, left, bottom, right = transform.sample((400, 400), rng)
        assert 0 <= top < bottom <= 400
        assert 0 <= left < right <= 400
        areas.append((bottom - top) * (right - left) / 400**2)
        ratios.append(math.log((right - left) / (bottom - top)))
        centres.append((top + bottom) / 800)
    # Rejection of crops that stick out bends the uniform law at the upper end only.
    assert 0.195 < min(areas) < 0.21
    assert 0.78 < max(areas) < 0.805
    assert abs(np.mean(areas) - 0.49) < 0.02
    assert max(np.abs(ratios)) < math.log(4 / 3) + 0.02
    assert abs(np.mean(ratios)) < 0.02
    assert abs(np.mean(centres) - 0.5) < 0.01


@pytest.mark.parametrize(("size", "expected"), [((10, 1000), (10, 13)), ((1000, 10), (13, 10))])
def test_random_resized_crop_falls_back_to_the_middle(size, expected):
    transform = RandomResizedCrop(image_size=(8, 8), scale=(0.9, 1.0))
    top, left, bottom, right = transform.sample(size, generator())
    assert (bottom - top, right - left) == expected
    assert abs(top + bottom - size[0]) <= 1
    assert abs(left + right - size[1]) <= 1


@pytest.mark.parametrize(
    ("size", "target", "expected"),
    [
        ((375, 500), (256, 256), (256, 341)),
        ((500, 375), (256, 256), (341, 256)),
        ((100, 100), (50, 80), (80, 80)),
        ((30, 90), (60, 60), (60, 180)),
        ((33, 100), (16, 48), (16, 48)),
    ],
)
def test_covering_size(size, target, expected):
    assert covering_size(size, target) == expected


def test_resize_and_centre_crop_match_pillow():
    image = smooth(75, 100)
    ours = apply(CenterCrop(image_size=(56, 56)), apply(Resize(image_size=(64, 64)), image))
    resized = Image.fromarray(image).resize((85, 64), Image.Resampling.BICUBIC)
    left, top = round((85 - 56) / 2), round((64 - 56) / 2)
    expected = np.array(resized.crop((left, top, left + 56, top + 56)))
    assert np.abs(ours.astype(int) - expected).max() <= 1


def test_resize_without_aspect():
    assert apply(Resize(image_size=(7, 90), keep_aspect=False), noise(30, 20, 3)).shape == (
        7,
        90,
        3,
    )


def test_small_images_are_padded():
    image = noise(4, 5, 1) | 1
    for transform in (CenterCrop(image_size=(8, 8)), RandomCrop(image_size=(8, 8))):
        padded = apply(transform, image)
        assert padded.shape == (8, 8, 1)
        np.testing.assert_array_equal(padded[2:6, 1:6], image)
        assert (padded > 0).sum() == 20


def test_pad_then_crop_shifts():
    image = noise(8, 8, 3)
    padded = apply(Pad(padding=2), image)
    assert padded.shape == (12, 12, 3)
    corners = {
        tuple(apply(RandomCrop(image_size=(8, 8)), padded, seed).ravel().tolist())
        for seed in range(200)
    }
    assert len(corners) == 25


def test_flip():
    image = noise(5, 6, 3)
    flipped = [
        np.array_equal(apply(RandomFlip(), image, seed), image[:, ::-1]) for seed in range(400)
    ]
    assert 160 < sum(flipped) < 240
    np.testing.assert_array_equal(apply(RandomFlip(probability=0.0), image), image)


# --- colours ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "enhance"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ],
)
def test_jitter_stays_within_its_range(field, enhance):
    image = Image.fromarray(smooth(20, 20))
    low, high = (np.array(enhance(image).enhance(f)).astype(int) for f in (0.6, 1.4))
    bounds = np.minimum(low, high) - 1, np.maximum(low, high) + 1
    for seed in range(20):
        out = apply(ColorJitter(**{field: 0.4}), np.array(image), seed)
        assert (out >= bounds[0]).all()
        assert (out <= bounds[1]).all()


def test_turning_the_hue():
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    assert turn_hue(red, 0.0).getpixel((0, 0)) == (255, 0, 0)
    third = turn_hue(red, 1 / 3).getpixel((0, 0))
    assert third[1] == 255
    assert max(third[0], third[2]) <= 6
    opposite = turn_hue(red, -0.5).getpixel((0, 0))
    assert opposite[0] == 0
    assert min(opposite[1:]) >= 245


def test_grayscale_is_luminance():
    image = smooth(10, 10)
    expected = np.array(Image.fromarray(image).convert("L"))
    grey = apply(RandomGrayscale(probability=1.0), image)
    np.testing.assert_array_equal(grey, np.repeat(expected[:, :, None], 3, axis=2))


def test_erasing():
    image = np.full((50, 60, 3), 200, np.uint8)
    transform = RandomErasing(probability=1.0, fill="mean", mean=(0.0, 0.5, 1.0))
    for seed in range(30):
        out = apply(transform, image, seed)
        erased = (out == (0, 128, 255)).all(axis=2)
        assert ((out == 200).all(axis=2) | erased).all()
        rows, columns = np.flatnonzero(erased.any(1)), np.flatnonzero(erased.any(0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert height * width == erased.sum()  # one rectangle
        assert 0.015 < erased.mean() < 0.35
        assert 0.28 < height / width < 3.6
    fractions = [(apply(RandomErasing(), image, seed) != 200).any() for seed in range(400)]
    assert 70 < sum(fractions) < 130


def test_erasing_noise_has_the_moments_of_the_data():
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.12, 0.08)
    transform = RandomErasing(probability=1.0, area=(0.3, 1 / 3), mean=mean, std=std)
    out = apply(transform, np.full((200, 200, 3), 255, np.uint8))
    values = out[(out != 255).any(axis=2)] / 255
    np.testing.assert_allclose(values.mean(0), mean, atol=0.01)
    np.testing.assert_allclose(values.std(0), std, atol=0.01)


# --- RandAugment --------------------------------------------------------------------------------


def operate(name, strength, sign=1.0, increasing=False):
    image = Image.fromarray(smooth(40, 50))
    draw = Draw(strength, sign, increasing, (1, 2, 3), Image.Resampling.BILINEAR)
    return image, OPS[name](image, draw)


@pytest.mark.parametrize(
    ("name", "strength", "increasing", "expected"),
    [
        ("auto_contrast", 0.9, False, ImageOps.autocontrast),
        ("equalize", 0.9, False, ImageOps.equalize),
        ("invert", 0.9, False, ImageOps.invert),
        ("posterize", 1.0, False, lambda image: ImageOps.posterize(image, 4)),
        ("posterize", 0.9, True, lambda image: ImageOps.posterize(image, 1)),
        ("solarize", 0.5, False, lambda image: ImageOps.solarize(image, 128)),
        ("solarize", 0.75, True, lambda image: ImageOps.solarize(image, 64)),
        ("color", 1.0, False, lambda image: ImageEnhance.Color(image).enhance(1.9)),
        ("contrast", 0.0, False, lambda image: ImageEnhance.Contrast(image).enhance(0.1)),
        ("brightness", 0.5, True, lambda image: ImageEnhance.Brightness(image).enhance(1.45)),
        ("sharpness", 0.0, True, lambda image: image),
    ],
)
def test_operations_and_their_ranges(name, strength, increasing, expected):
    image, out = operate(name, strength, increasing=increasing)
    difference = np.array(out).astype(int) - np.array(expected(image))
    assert np.abs(difference).max() <= 1  # a factor may round the other way


def test_translations_move_by_their_share_of_the_image():
    image, moved = operate("translate_x", 0.8, sign=-1.0)
    pixels = round(0.45 * 0.8 * 50)
    before, after = np.array(image).astype(int), np.array(moved).astype(int)
    assert np.abs(after[:, pixels:] - before[:, :-pixels]).max() <= 1  # interpolated in fixed point
    assert (np.array(moved)[:, :pixels] == (1, 2, 3)).all()
    image, moved = operate("translate_y", 1.0)
    difference = np.array(moved)[:-18].astype(int) - np.array(image)[18:]
    assert np.abs(difference).max() <= 1


def test_rotation_and_shear_fill_with_the_mean():
    for name in ("rotate", "shear_x", "shear_y"):
        _, out = operate(name, 1.0)
        pixels = np.array(out).reshape(-1, 3)
        assert (pixels == (1, 2, 3)).all(axis=1).any()


def test_solarize_add_brightens_the_dark_half():
    image, out = operate("solarize_add", 0.5)
    before, after = np.array(image).astype(int), np.array(out).astype(int)
    np.testing.assert_array_equal(after, np.where(before < 128, before + 55, before))


def test_every_operation_takes_grey_images_and_every_strength():
    image = Image.fromarray(noise(9, 11))
    for name, operation in OPS.items():
        for strength in (0.0, 0.5, 1.0):
            for increasing in (False, True):
                draw = Draw(strength, -1.0, increasing, (9,), Image.Resampling.BICUBIC)
                out = operation(image, draw)
                assert (out.mode, out.size) == ("L", (11, 9)), name


def test_rand_augment_draws():
    image = smooth(32, 32)
    assert np.array_equal(apply(RandAugment(num_ops=0), image), image)
    assert np.array_equal(apply(RandAugment(probability=0.0), image), image)
    inverted = apply(RandAugment(num_ops=1, ops=("invert",)), image)
    np.testing.assert_array_equal(inverted, 255 - image)
    changed = [not np.array_equal(apply(RandAugment(), image, seed), image) for seed in range(50)]
    assert sum(changed) > 40


# --- config -------------------------------------------------------------------------------------


def test_sections_take_what_the_preprocessing_says():
    preprocessing = Preprocessing(image_size=(28, 20), channels=1, mean=(0.3,), std=(0.2,))
    sections = (
        {"name": "decode"},
        {"name": "resize", "image_size": (40, 40)},
        {"name": "random_crop"},
        {"name": "rand_augment", "magnitude": 5},
        {"name": "random_erasing", "probability": 1.0},
    )
    transforms = build_transforms(sections, preprocessing)
    assert transforms[0] == Decode(channels=1)
    assert transforms[1].image_size == (40, 40)
    assert transforms[2].image_size == (28, 20)
    assert transforms[3].mean == (0.3,)
    assert transforms[4].std == (0.2,)
    example = {"image": noise(50, 60, 3)}
    for transform in transforms:
        example = transform(example, generator())
    assert example["image"].shape == (28, 20, 1)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "random_flop"}, "random_flip"),
        ({"name": "random_flip", "probabillity": 0.5}, "probability"),
        ({"name": "rand_augment", "ops": ("sheer_x",)}, "shear_x"),
        ({"name": "rand_augment", "magnitude": 30}, "magnitude"),
        ({"name": "random_resized_crop", "scale": (0.0, 1.0)}, "scale"),
        ({"name": "random_resized_crop", "interpolation": "cubic"}, "bicubic"),
        ({"name": "color_jitter", "hue": 0.7}, "hue"),
        ({"name": "random_erasing", "area": (0.5, 0.1)}, "area"),
        ({"name": "pad", "padding": -1}, "padding"),
    ],
)
def test_wrong_sections_are_explained(section, message):
    with pytest.raises(ConfigError, match=message):
        build_transforms([section], Preprocessing())


def test_every_transform_builds_by_name():
    required = {"image_size": (8, 8), "channels": 3, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    required |= {"patch_size": 4, "max_patches": 4}
    required |= {"arrays": {}, "images": 2, "row_patches": 8}
    required["preprocessing"] = TextPreprocessing(tokenizer="sample:peps")
    for name in TRANSFORMS:
        section = {"name": name, **({"padding": 1} if name == "pad" else {})}
        assert callable(build(TRANSFORMS, section, "transforms", **required))
