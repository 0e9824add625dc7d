"""Antialiased resizing as two banded matrix products: Pillow's filters at two to three times its
speed.

Resampling is separable and linear, so along one axis it is a matrix [out, in], whose rows have few
non-zeros around a moving centre. A block of neighbouring rows has its non-zeros in a narrow band
of columns, which makes it a small dense product for the BLAS that numpy ships with. Unlike Pillow,
nothing is rounded between the two axes.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable

import numpy as np

_BLOCK = 8  # output rows or columns per product: more multiply more zeros, fewer make more calls
_MAX_PRODUCT = 1 << 18  # m * n * k above which OpenBLAS would start threads of its own
_MAX_KEPT = 1 << 22  # numbers of a work array that a thread keeps


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _bicubic(x: np.ndarray) -> np.ndarray:
    # Keys' kernel with a = -0.5 (IEEE ASSP 29(6), 1981), as Pillow and jax.image have it; torch
    # has -0.75.
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3.0, np.sinc(x) * np.sinc(x / 3.0), 0.0)


# name -> (kernel, half of its width in pixels of the coarser grid)
FILTERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}


def resample(
    image: np.ndarray,
    size: tuple[int, int],
    interpolation: str,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Resizes a box of an image with a filter that widens when shrinking.

    Pixels outside the box contribute nothing when its edges are whole numbers, as if it had been
    cut out first.

    Args:
      image: uint8 [H, W, C].
      size: (height, width) of the result.
      interpolation: key of FILTERS.
      box: (top, left, bottom, right) in pixels, fractions allowed; None is the whole image.

    Returns:
      uint8 [height, width, C].
    """
    height, width, channels = image.shape
    top, left, bottom, right = box or (0, 0, height, width)
    # Only what the box touches is read; fractional edges keep the pixel they cut through.
    y0, x0, y1, x1 = int(top), int(left), int(np.ceil(bottom)), int(np.ceil(right))
    flat = np.ascontiguousarray(image).reshape(height, width * channels)
    pixels = _workspace.array("pixels", y1 - y0, (x1 - x0) * channels)
    np.copyto(pixels, flat[y0:y1, x0 * channels : x1 * channels])
    tall = _workspace.array("tall", size[0], pixels.shape[1])
    _resample_rows(pixels, tall, _bands(y1 - y0, size[0], interpolation, top - y0, bottom - y0))
    out = _workspace.array("out", size[0], size[1] * channels)
    bands = _bands(x1 - x0, size[1], interpolation, left - x0, right - x0)
    _resample_columns(tall, out, bands, channels)
    out += 0.5
    np.clip(out, 0.0, 255.0, out=out)
    return out.astype(np.uint8).reshape(*size, channels)


Bands = tuple[list[int], np.ndarray]


def _resample_rows(pixels: np.ndarray, out: np.ndarray, bands: Bands) -> None:
    """[in, width] -> [out, width]."""
    starts, weights = bands
    weights = weights.transpose(0, 2, 1)  # [blocks, block, taps]
    step = max(1, _MAX_PRODUCT // (_BLOCK * weights.shape[2]))
    for number, start in enumerate(starts):
        rows = slice(number * _BLOCK, min((number + 1) * _BLOCK, len(out)))
        band = weights[number, : rows.stop - rows.start]
        source = pixels[start : start + band.shape[1]]
        for column in range(0, pixels.shape[1], step):
            columns = slice(column, column + step)
            np.matmul(band, source[:, columns], out=out[rows, columns])


def _resample_columns(pixels: np.ndarray, out: np.ndarray, bands: Bands, channels: int) -> None:
    """[height, in * channels] -> [height, out * channels]."""
    starts, weights = bands
    blocks, taps, _ = weights.shape
    # Channels are interleaved in memory: each weight becomes a small diagonal matrix.
    spread = _workspace.array("spread", blocks, taps, channels, _BLOCK, channels)
    spread[...] = 0.0
    for channel in range(channels):
        spread[:, :, channel, :, channel] = weights
    spread = spread.reshape(blocks, taps * channels, _BLOCK * channels)
    step = max(1, _MAX_PRODUCT // (spread.shape[1] * spread.shape[2]))
    for number, start in enumerate(starts):
        first = number * _BLOCK * channels
        columns = slice(first, min(first + _BLOCK * channels, out.shape[1]))
        band = spread[number, :, : columns.stop - columns.start]
        source = pixels[:, start * channels : (start + taps) * channels]
        for row in range(0, len(out), step):
            np.matmul(source[row : row + step], band, out=out[row : row + step, columns])


class _Workspace(threading.local):
    """Memory that a thread uses again: getting it anew takes as long as the arithmetic on it."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def array(self, name: str, *shape: int) -> np.ndarray:
        """An uninitialised float32 array, valid until the next one of that name."""
        count = math.prod(shape)
        if count > _MAX_KEPT:
            return np.empty(shape, np.float32)
        flat = self._arrays.get(name)
        if flat is None or flat.size < count:
            flat = self._arrays[name] = np.empty(count, np.float32)
        return flat[:count].reshape(shape)


_workspace = _Workspace()


@functools.lru_cache(maxsize=512)  # crops come in a few hundred sizes; an entry is about 10 kB
def _bands(length: int, out: int, interpolation: str, low: float, high: float) -> Bands:
    """The resampling matrix from [low, high) of `length` pixels to `out`, cut into blocks.

    Returns:
      The first input pixel of each block, and its weights [blocks, taps, block] (of rows past the
      end: 0).
    """
    kernel, support = FILTERS[interpolation]
    scale = (high - low) / out
    stretch = max(scale, 1.0)
    blocks = -(-out // _BLOCK)
    centres = low + (np.arange(blocks * _BLOCK) + 0.5) * scale
    first = np.maximum(0, (centres - support * stretch + 0.5).astype(np.int64))
    last = np.minimum(length, (centres + support * stretch + 0.5).astype(np.int64))
    starts = first[::_BLOCK]
    ends = last[np.minimum(np.arange(1, blocks + 1) * _BLOCK, out) - 1]
    taps = min(length, int((ends - starts).max()))
    starts = np.minimum(starts, length - taps)
    places = np.repeat(starts, _BLOCK)[:, None] + np.arange(taps)  # [out, taps]
    weights = kernel((places + 0.5 - centres[:, None]) / stretch)
    weights *= (places >= first[:, None]) & (places < last[:, None])
    weights[:out] /= weights[:out].sum(axis=1, keepdims=True)
    weights[out:] = 0.0
    blocked = weights.reshape(blocks, _BLOCK, taps).transpose(0, 2, 1)
    return starts.tolist(), np.ascontiguousarray(blocked, np.float32)
