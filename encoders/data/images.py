"""Single images on the host: decoding, channels, resizing. Pixels are uint8 [H, W, C]."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image

from encoders.data.resample import resample
from encoders.data.sources.base import CorruptExample

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
REDUCTIONS = (8, 4, 2)  # what libjpeg-turbo's vectorised inverse DCT can shrink by, largest first
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_JPEG = b"\xff\xd8"
# Pillow raises these, and nothing common to them, for files that it cannot read.
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def decode(data: bytes, channels: int, reduction: int = 1) -> np.ndarray:
    """Decodes a JPEG, PNG or any other file that Pillow reads.

    Without an alpha channel in the result what is transparent is seen on white: the colours that a
    file has there are anything.

    Args:
      data: the encoded file.
      channels: 1 (luminance), 3 (RGB) or 4 (RGBA).
      reduction: 1, or one of REDUCTIONS: a JPEG comes out that many times smaller per side,
        rounded up, for less work than shrinking it later; other formats ignore it.

    Returns:
      uint8 [H, W, channels].

    Raises:
      CorruptExample: truncated, damaged, or no image.
    """
    if data[:2] == _JPEG and channels in (1, 3):
        try:
            height, width = simplejpeg.decode_jpeg_header(data)[:2] if reduction > 1 else (0, 0)
            return simplejpeg.decode_jpeg(
                data,
                colorspace="GRAY" if channels == 1 else "RGB",
                min_height=-(-height // reduction),
                min_width=-(-width // reduction),
            )
        except ValueError:
            # Also raised for files that are unusual rather than damaged (CMYK, stray bytes between
            # segments); Pillow, which reads those, is the judge.
            pass
    try:
        with Image.open(io.BytesIO(data)) as image:
            if channels != 4 and image.has_transparency_data:
                image = _on_white(image)
            return from_pillow(image.convert(_MODES[channels]))
    except _UNREADABLE as error:
        raise CorruptExample(f"not a readable image ({error})") from error


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return white


def size_of(data: bytes) -> tuple[int, int]:
    """(height, width) of an encoded image, from its header alone.

    Raises:
      CorruptExample: no image.
    """
    if data[:2] == _JPEG:
        try:
            return simplejpeg.decode_jpeg_header(data)[:2]
        except ValueError:
            pass
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except _UNREADABLE as error:
        raise CorruptExample(f"not a readable image ({error})") from error


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """[H, W] or [H, W, C] -> [H, W, channels]: grey repeats, colour becomes luminance (ITU-R 601).

    Raises:
      CorruptExample: not an image, or no known conversion.
    """
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or 0 in image.shape:
        raise CorruptExample(f"expected an image [H, W, C], got shape {list(image.shape)}")
    if image.shape[2] == channels:
        return image
    if image.shape[2] == 1 and channels == 3:
        return np.repeat(image, 3, axis=2)
    if image.shape[2] in _MODES and channels in _MODES:
        return from_pillow(to_pillow(image).convert(_MODES[channels]))
    raise CorruptExample(f"cannot turn {image.shape[2]} channels into {channels}")


def resize(
    image: np.ndarray,
    size: tuple[int, int],
    interpolation: Interpolation,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Resizes an image, or a box of it, antialiased when shrinking.

    Args:
      image: uint8 [H, W, C].
      size: (height, width) of the result.
      interpolation: the filter; 'nearest' is not antialiased.
      box: (top, left, bottom, right) in pixels, fractions allowed; None is all of it.

    Returns:
      uint8 [height, width, C].
    """
    height, width = image.shape[:2]
    top, left, bottom, right = box or (0, 0, height, width)
    if (bottom - top, right - left) == size and top == int(top) and left == int(left):
        return image[int(top) : int(bottom), int(left) : int(right)]
    if interpolation == "nearest":
        rows = (top + (np.arange(size[0]) + 0.5) * (bottom - top) / size[0]).astype(np.int64)
        columns = (left + (np.arange(size[1]) + 0.5) * (right - left) / size[1]).astype(np.int64)
        return image[rows[:, None], columns]
    return resample(image, size, interpolation, (top, left, bottom, right))


def to_pillow(image: np.ndarray) -> Image.Image:
    """uint8 [H, W, 1 | 3 | 4] as a Pillow image."""
    return Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image))


def from_pillow(image: Image.Image) -> np.ndarray:
    """A Pillow image as uint8 [H, W, C], writable."""
    array = np.array(image)
    return array[:, :, None] if array.ndim == 2 else array
