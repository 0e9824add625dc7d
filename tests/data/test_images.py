import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from encoders.data import images
from encoders.data.resample import resample
from encoders.data.sources import CorruptExample

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def photo(height, width, channels=3, detail=8):
    """uint8 [H, W, C]: random colours that change over `detail` pixels, not black or white."""
    shape = (height // detail + 2, width // detail + 2, 3)
    coarse = np.random.default_rng(0).integers(56, 200, shape, dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.array(image)[:, :, :channels])


def encoded(image, file_format, **options):
    buffer = io.BytesIO()
    images.to_pillow(image).save(buffer, file_format, **options)
    return buffer.getvalue()


def pillow_resize(image, size, interpolation):
    resized = images.to_pillow(image).resize(size[::-1], FILTERS[interpolation])
    return np.array(resized).reshape(*size, image.shape[2])


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((270, 350), (224, 224)),
        ((90, 120), (224, 224)),
        ((700, 300), (33, 50)),
        ((28, 28), (32, 31)),
        ((5, 3), (7, 9)),
        ((1, 1), (4, 4)),
        ((64, 64), (1, 1)),
        ((900, 1200), (64, 64)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_resizes_as_pillow_does(before, after, interpolation, channels):
    # One grey level apart: Pillow rounds to uint8 between the two axes, we do not.
    image = photo(*before, channels)
    ours = resample(image, after, interpolation)
    assert ours.shape == (*after, channels)
    difference = np.abs(ours.astype(int) - pillow_resize(image, after, interpolation))
    assert difference.max() <= 1
    assert difference.size < 100 or difference.mean() < 0.3


def test_white_noise_differs_where_pillow_clips_between_the_axes():
    image = np.random.default_rng(0).integers(0, 256, (270, 350, 3), dtype=np.uint8)
    for interpolation, limit in (("bilinear", 1), ("bicubic", 16)):
        ours = resample(image, (224, 224), interpolation).astype(int)
        difference = np.abs(ours - pillow_resize(image, (224, 224), interpolation))
        assert difference.max() <= limit
        assert difference.mean() < 0.3


def test_a_box_is_resized_as_if_cut_out():
    image = photo(100, 120)
    box = (11, 23, 77, 110)
    np.testing.assert_array_equal(
        images.resize(image, (32, 40), "bicubic", box),
        images.resize(image[11:77, 23:110], (32, 40), "bicubic"),
    )


def test_a_box_of_the_right_size_is_a_copy_of_nothing():
    image = photo(50, 60)
    part = images.resize(image, (20, 30), "bicubic", (5, 6, 25, 36))
    np.testing.assert_array_equal(part, image[5:25, 6:36])


def test_constant_images_stay_constant():
    for value in (0, 77, 255):
        image = np.full((41, 29, 3), value, np.uint8)
        for size in ((17, 60), (224, 9)):
            for interpolation in ("nearest", *FILTERS):
                assert (images.resize(image, size, interpolation) == value).all()


def test_nearest_is_pillows():
    image = photo(37, 53)
    expected = np.array(Image.fromarray(image).resize((20, 90), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(images.resize(image, (90, 20), "nearest"), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_decoded_as_pillow_does(channels):
    data = encoded(photo(61, 83), "JPEG", quality=90)
    expected = np.array(Image.open(io.BytesIO(data)))
    ours = images.decode(data, channels)
    assert ours.shape == (61, 83, channels)
    if channels == 3:
        np.testing.assert_array_equal(ours, expected)
    else:
        luminance = np.array(Image.fromarray(expected).convert("L"))
        assert np.abs(ours[:, :, 0].astype(int) - luminance).max() <= 3


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "WEBP", "TIFF"])
def test_other_formats(file_format):
    image = photo(30, 40)
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(image, file_format, **options)
    np.testing.assert_array_equal(images.decode(data, 3), image)
    assert images.size_of(data) == (30, 40)


def test_rare_jpegs_go_to_pillow():
    image = photo(30, 40)
    buffer = io.BytesIO()
    Image.fromarray(image).convert("CMYK").save(buffer, "JPEG", quality=95)
    assert images.decode(buffer.getvalue(), 3).shape == (30, 40, 3)
    # Stray bytes between the data and the end marker: libjpeg warns, every viewer shows it.
    data = encoded(image, "JPEG")
    stray = data[:-2] + b"\x12\x34" + data[-2:]
    np.testing.assert_array_equal(images.decode(stray, 3), images.decode(data, 3))


@pytest.mark.parametrize("reduction", images.REDUCTIONS)
def test_scaled_decoding(reduction):
    image = photo(203, 305, detail=40)
    data = encoded(image, "JPEG", quality=95)
    small = images.decode(data, 3, reduction)
    assert small.shape == (-(-203 // reduction), -(-305 // reduction), 3)
    # A last row or column that the image fills only in part has no counterpart.
    size = (203 // reduction, 305 // reduction)
    box = (0, 0, size[0] * reduction, size[1] * reduction)
    full = images.resize(images.decode(data, 3), size, "bilinear", box)
    assert np.abs(small[: size[0], : size[1]].astype(int) - full).mean() < 1


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.3, 0.9])
def test_truncated_files_are_corrupt(file_format, keep):
    data = encoded(photo(120, 160), file_format)
    with pytest.raises(CorruptExample):
        images.decode(data[: int(len(data) * keep)], 3)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_no_image_at_all(data):
    with pytest.raises(CorruptExample):
        images.decode(data, 3)
    with pytest.raises(CorruptExample):
        images.size_of(data)


def test_channels():
    grey = photo(8, 9, 1)
    assert images.to_channels(grey[:, :, 0], 1).shape == (8, 9, 1)
    np.testing.assert_array_equal(images.to_channels(grey, 3), np.repeat(grey, 3, axis=2))
    colour = photo(8, 9)
    expected = np.array(Image.fromarray(colour).convert("L"))[:, :, None]
    np.testing.assert_array_equal(images.to_channels(colour, 1), expected)
    assert images.to_channels(colour, 4)[:, :, 3].min() == 255
    for broken in (np.zeros((3, 0, 3), np.uint8), np.zeros((2, 2, 5), np.uint8)):
        with pytest.raises(CorruptExample):
            images.to_channels(broken, 3)


def test_encoder_and_decoder_share_the_file_format():
    data = simplejpeg.encode_jpeg(photo(16, 16), quality=100)
    assert images.size_of(data) == (16, 16)


def test_what_is_transparent_is_white():
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    found = images.decode(buffer.getvalue(), 3)
    assert found[0].tolist() == [[10, 20, 30], [255, 255, 255], [204, 204, 204]]
    assert images.decode(buffer.getvalue(), 1)[0, 1].tolist() == [255]
    np.testing.assert_array_equal(images.decode(buffer.getvalue(), 4), pixels)
