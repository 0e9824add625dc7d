"""Inputs of golden values that every machine computes alike, so that none need be stored."""

from __future__ import annotations

import zlib

import numpy as np


def picture(image_size: tuple[int, int], batch: int = 2) -> np.ndarray:
    """Float images [B, H, W, 3] with values in [-1, 1]."""
    count = batch * image_size[0] * image_size[1] * 3
    values = (np.arange(count, dtype=np.int64) * 7919 % 1009) / 504.5 - 1
    return values.reshape(batch, *image_size, 3).astype(np.float32)


def mask_noise(patches: int, batch: int = 2) -> np.ndarray:
    """Distinct numbers [B, N] in [0, 1) that say which patches are masked."""
    order = (np.arange(batch * patches) * 61 % 997).reshape(batch, patches)
    return order.astype(np.float32) / 997


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of a convolutional network under its name: too many of them to be stored."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if name.endswith("running_var"):
        return 1 + np.abs(values)
    if len(shape) > 1:
        return values * np.float32(np.prod(shape[1:]) ** -0.5)
    return 0.1 * values + np.float32(name.endswith("weight"))


def sound(samples: int, batch: int = 2) -> np.ndarray:
    """int16 clips [B, S] at 16 kHz: a falling voice of a few harmonics that swells, and noise."""
    time = np.arange(samples) / 16000
    clips = []
    for row in range(batch):
        phase = 2 * np.pi * ((180 + 40 * row) * time - 120 * time**2)
        voice = sum(np.sin(k * phase) / k for k in range(1, 12)) * np.sin(np.pi * 3 * time) ** 2
        noise = (np.arange(samples, dtype=np.int64) + 37 * row) * 7919 % 1009 / 504.5 - 1
        clips.append(np.round(6000 * voice + 200 * noise))
    return np.stack(clips).astype(np.int16)
