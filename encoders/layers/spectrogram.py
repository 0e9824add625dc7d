"""Sound to spectrograms, on the device: mel spectrograms, Kaldi's filterbanks, and cepstra.

All in float32, whatever the rest of a step computes in, and products at full precision: logarithms
of small powers show every error. Of padded clips only the real samples count: a batch gives what
its clips give alone. Padding is at the end, `mask` [B, S] says which samples are real, and frames
of padding are zero.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from encoders.errors import ConfigError
from encoders.layers.norm import normalized_over_time

MelScale = Literal["htk", "slaney"]
KaldiWindow = Literal["povey", "hanning", "hamming"]
# Of the least power that Kaldi takes a logarithm of, and of Whisper's and librosa's.
_KALDI_FLOOR = float(np.finfo(np.float32).eps)
_FLOOR = 1e-10

# --- frames -------------------------------------------------------------------------------------


def frame(waveform: jax.Array, size: int, hop: int) -> jax.Array:
    """Frames of `size` samples that begin every `hop`: [B, S] -> [B, num_frames, size].

    Raises:
      ConfigError: the clips are shorter than one frame.
    """
    count = num_frames(waveform.shape[1], size, hop)
    if count < 1:
        raise ConfigError(
            f"waveform: {waveform.shape[1]} samples are less than one frame of {size}."
        )
    # Of pieces that both lengths are made of, so that nothing is gathered sample by sample.
    piece = math.gcd(size, hop)
    needed = (count - 1) * hop + size
    x = waveform[:, :needed].reshape(waveform.shape[0], needed // piece, piece)
    step, last = hop // piece, (count - 1) * (hop // piece) + 1
    return jnp.concatenate([x[:, i : i + last : step] for i in range(size // piece)], axis=-1)


def num_frames(samples: int | jax.Array, size: int, hop: int) -> int | jax.Array:
    """How many frames lie within that many samples; of an array for each."""
    if isinstance(samples, int):
        return max((samples - size) // hop + 1, 0)
    return jnp.maximum((samples - size) // hop + 1, 0)


def real_samples(waveform: jax.Array, mask: jax.Array | None) -> jax.Array:
    """int32 [B]: how many samples of each clip [B, S] are real."""
    if mask is None:
        return jnp.full(waveform.shape[:1], waveform.shape[1], jnp.int32)
    return mask.sum(1, dtype=jnp.int32)


def reflected(waveform: jax.Array, mask: jax.Array | None, reach: int) -> jax.Array:
    """Clips with `reach` samples before and after that mirror theirs: [B, S] -> [B, S + 2 reach].

    The mirror stands at the last real sample; clips must be longer than `reach`.
    """
    if mask is None:
        return jnp.pad(waveform, ((0, 0), (reach, reach)), mode="reflect")
    x = jnp.pad(jnp.where(mask, waveform, 0), ((0, 0), (reach, reach)))
    head = x[:, reach + 1 : 2 * reach + 1][:, ::-1]

    def one(row: jax.Array, length: jax.Array) -> jax.Array:
        tail = jax.lax.dynamic_slice(row, (length - 1,), (reach,))[::-1]
        return jax.lax.dynamic_update_slice(row, tail, (length + reach,))

    return jax.vmap(one)(x.at[:, :reach].set(head), real_samples(waveform, mask))


def _float32(waveform: jax.Array) -> jax.Array:
    if waveform.ndim != 2 or not jnp.issubdtype(waveform.dtype, jnp.floating):
        raise ConfigError(
            f"waveform: expected float [B, S], got {waveform.dtype} {list(waveform.shape)}."
        )
    return waveform.astype(jnp.float32)


def _masked(features: jax.Array, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Features [B, T, C] of which `frames` [B] are real: the others zero, and a mask [B, T]."""
    mask = jnp.arange(features.shape[1]) < frames[:, None]
    return jnp.where(mask[..., None], features, 0), mask


def _dot(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    return jnp.dot(x, jnp.asarray(matrix), precision=jax.lax.Precision.HIGHEST)


# --- filters ------------------------------------------------------------------------------------


def _mel(hertz: np.ndarray, scale: MelScale) -> np.ndarray:
    if scale == "htk":
        return 2595.0 * np.log10(1.0 + hertz / 700.0)
    # Linear below 1 kHz, then logarithmic with 27 mels to a factor of 6.4.
    linear = hertz / (200.0 / 3)
    return np.where(hertz < 1000, linear, 15 + np.log(np.maximum(hertz, 1000) / 1000) * _SLANEY)


def _hertz(mel: np.ndarray, scale: MelScale) -> np.ndarray:
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    return np.where(mel < 15, mel * 200.0 / 3, 1000 * np.exp((np.maximum(mel, 15) - 15) / _SLANEY))


_SLANEY = 27.0 / np.log(6.4)


def mel_filters(
    sample_rate: int,
    fft_size: int,
    num_mels: int,
    *,
    low: float = 0.0,
    high: float | None = None,
    scale: MelScale = "slaney",
    area: bool = True,
) -> np.ndarray:
    """Triangles on the frequencies of a spectrum, float32 [fft_size // 2 + 1, num_mels].

    Args:
      sample_rate: Hz.
      fft_size: samples of the transform.
      num_mels: filters.
      low, high: Hz, where the first begins and the last ends; None for half the rate.
      scale: on which the corners are equally far apart: 'htk', 2595 log10(1 + f / 700), or
        'slaney' (Auditory Toolbox, 1998), linear up to 1 kHz.
      area: whether every triangle has the same area (Slaney's, 2 / its width in Hz), or height 1.

    Raises:
      ConfigError: there is no such band.
    """
    high = _upper(sample_rate, low, high)
    corners = _hertz(np.linspace(*_mel(np.array([low, high]), scale), num_mels + 2), scale)
    frequencies = np.arange(fft_size // 2 + 1) * (sample_rate / fft_size)
    triangles = _triangles(frequencies, corners)
    if area:
        triangles *= 2 / (corners[2:] - corners[:-2])
    return triangles.astype(np.float32)


def kaldi_mel_filters(
    sample_rate: int, fft_size: int, num_mels: int, low: float = 20.0, high: float | None = None
) -> np.ndarray:
    """Kaldi's triangles: straight on the mel scale rather than in Hz, without the last frequency.

    The scale is HTK's in natural logarithms, 1127 ln(1 + f / 700). Arguments and result as of
    `mel_filters`.
    """
    mel = lambda f: 1127.0 * np.log1p(np.asarray(f) / 700.0)  # noqa: E731
    corners = np.linspace(mel(low), mel(_upper(sample_rate, low, high)), num_mels + 2)
    frequencies = np.arange(fft_size // 2 + 1) * (sample_rate / fft_size)
    triangles = _triangles(mel(frequencies), corners)
    triangles[-1] = 0
    return triangles.astype(np.float32)


def _upper(sample_rate: int, low: float, high: float | None) -> float:
    high = sample_rate / 2 if high is None else high
    if not 0 <= low < high <= sample_rate / 2:
        raise ConfigError(
            f"mel filters: {low} to {high} Hz is no band below half of {sample_rate} Hz."
        )
    return high


def _triangles(x: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Triangles from corner i over i + 1 (height 1) to i + 2, at x [F]: [F, corners - 2]."""
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    rising = (x[:, None] - left) / (centre - left)
    falling = (right - x[:, None]) / (right - centre)
    return np.maximum(np.minimum(rising, falling), 0)


# --- spectrograms -------------------------------------------------------------------------------


def power_spectrum(frames: jax.Array, window: np.ndarray, fft_size: int) -> jax.Array:
    """|FFT|^2 of frames [B, T, size] times a window [size]: [B, T, fft_size // 2 + 1]."""
    spectrum = jnp.fft.rfft(frames * jnp.asarray(window, jnp.float32), n=fft_size)
    return jnp.square(spectrum.real) + jnp.square(spectrum.imag)


def mel_spectrogram(
    waveform: jax.Array,
    mask: jax.Array | None = None,
    *,
    sample_rate: int = 16000,
    fft_size: int = 400,
    hop: int = 160,
    num_mels: int = 80,
    low: float = 0.0,
    high: float | None = None,
    scale: MelScale = "slaney",
    area: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Power in mel bands, of frames centred on every `hop`-th sample, mirrored at both ends.

    As librosa's with pad_mode='reflect': a periodic Hann window as long as the transform.

    Args:
      waveform: [B, S] float.
      mask: [B, S] bool, or None where all samples are real.
      sample_rate: Hz.
      fft_size, hop: samples.
      num_mels, low, high, scale, area: see `mel_filters`.

    Returns:
      [B, S // hop + 1, num_mels] float32, and a mask of its frames.

    Raises:
      ConfigError: not [B, S] float, or no longer than half a frame.
    """
    x = _float32(waveform)
    if x.shape[1] <= fft_size // 2:
        raise ConfigError(
            f"waveform: {x.shape[1]} samples cannot be mirrored by {fft_size // 2}; they must be "
            "more."
        )
    frames = frame(reflected(x, mask, fft_size // 2), fft_size, hop)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft_size) / fft_size)
    filters = mel_filters(
        sample_rate, fft_size, num_mels, low=low, high=high, scale=scale, area=area
    )
    power = _dot(power_spectrum(frames, window, fft_size), filters)
    return _masked(power, real_samples(x, mask) // hop + 1)


def whisper_log_mel(
    waveform: jax.Array, mask: jax.Array | None = None, *, num_mels: int = 80
) -> tuple[jax.Array, jax.Array]:
    """What Whisper hears (arXiv 2212.04356, section 2.2; the constants of its code).

    Of 16 kHz: 25 ms every 10 ms, the last frame left out; log10 of at least 1e-10 and of no less
    than the clip's maximum - 8; (x + 4) / 4.

    Args:
      waveform: [B, S] float in [-1, 1].
      mask: [B, S] bool, or None where all samples are real.
      num_mels: 80, or 128 of large-v3.

    Returns:
      [B, S // 160, num_mels] float32, and a mask of its frames.
    """
    power, mask = mel_spectrogram(waveform, mask, num_mels=num_mels)
    # The frame that is left out is the last real one: of a clip, not of the batch.
    mask = mask[:, 1:]
    x = jnp.log10(jnp.maximum(power[:, :-1], _FLOOR))
    peak = jnp.where(mask[..., None], x, -jnp.inf).max((1, 2), keepdims=True)
    x = (jnp.maximum(x, peak - 8) + 4) / 4
    return jnp.where(mask[..., None], x, 0), mask


_KALDI_WINDOWS = {"povey": (0.5, 0.85), "hanning": (0.5, 1.0), "hamming": (0.54, 1.0)}


def kaldi_fbank(
    waveform: jax.Array,
    mask: jax.Array | None = None,
    *,
    num_mels: int = 80,
    sample_rate: int = 16000,
    window: KaldiWindow = "povey",
    preemphasis: float = 0.97,
    low: float = 20.0,
    high: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Kaldi's log mel filterbank without dither or energy: 25 ms every 10, whole (snip_edges).

    Of every frame its mean is taken off, then `preemphasis` times the sample before; the window is
    symmetric and the transform of the next power of two. Kaldi's samples are those of int16; others
    give it ones in [-1, 1] (AST and Audio-MAE, with window='hanning'; HuBERT).

    Args:
      waveform: [B, S] float.
      mask: [B, S] bool, or None where all samples are real.
      num_mels, low, high: see `kaldi_mel_filters`.
      sample_rate: Hz.
      window: 'povey' (Hann's to the power of .85), 'hanning' or 'hamming'.
      preemphasis: see above.

    Returns:
      [B, T, num_mels] float32 natural logarithms, and a mask of its frames.

    Raises:
      ConfigError: not [B, S] float, or shorter than one frame.
    """
    x = _float32(waveform)
    frame_size, hop = sample_rate * 25 // 1000, sample_rate * 10 // 1000
    frames = frame(x, frame_size, hop)
    frames = frames - frames.mean(-1, keepdims=True)
    before = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
    frames = frames - preemphasis * before
    offset, power = _KALDI_WINDOWS[window]
    turn = 2 * np.pi * np.arange(frame_size) / (frame_size - 1)
    shape = (offset - (1 - offset) * np.cos(turn)) ** power
    fft_size = 1 << (frame_size - 1).bit_length()
    filters = kaldi_mel_filters(sample_rate, fft_size, num_mels, low, high)
    mel = _dot(power_spectrum(frames, shape, fft_size), filters)
    log_mel = jnp.log(jnp.maximum(mel, _KALDI_FLOOR))
    return _masked(log_mel, num_frames(real_samples(x, mask), frame_size, hop))


# --- cepstra ------------------------------------------------------------------------------------


def cepstrum(log_mel: jax.Array, count: int, lifter: float = 0.0) -> jax.Array:
    """The first `count` coefficients of an orthonormal DCT-II: [B, T, M] -> [B, T, count].

    Args:
      log_mel: logarithms.
      count: coefficients.
      lifter: L of Kaldi's factors 1 + L / 2 sin(pi i / L); 0 for none.
    """
    mels = log_mel.shape[-1]
    index = np.arange(count)
    matrix = np.cos(np.pi / mels * (np.arange(mels)[:, None] + 0.5) * index) * math.sqrt(2 / mels)
    matrix[:, 0] *= math.sqrt(0.5)
    if lifter:
        matrix *= 1 + lifter / 2 * np.sin(np.pi * index / lifter)
    return _dot(log_mel, matrix.astype(np.float32))


def kaldi_mfcc(
    waveform: jax.Array,
    mask: jax.Array | None = None,
    *,
    num_cepstra: int = 13,
    num_mels: int = 23,
    lifter: float = 22.0,
    sample_rate: int = 16000,
) -> tuple[jax.Array, jax.Array]:
    """Kaldi's MFCC without energy: [B, T, num_cepstra] and a mask; see `kaldi_fbank`."""
    log_mel, mask = kaldi_fbank(waveform, mask, num_mels=num_mels, sample_rate=sample_rate)
    return cepstrum(log_mel, num_cepstra, lifter), mask


def deltas(features: jax.Array, mask: jax.Array, reach: int = 2) -> jax.Array:
    """Slopes over time, of the best line through 2 reach + 1 frames; the ends are repeated.

    Args:
      features: [B, T, C].
      mask: [B, T] bool, which frames are real.
      reach: frames on either side.

    Returns:
      [B, T, C], zero where no frame is real.
    """
    last = jnp.maximum(mask.sum(1, dtype=jnp.int32) - 1, 0)[:, None]
    time = jnp.arange(features.shape[1])
    total = jnp.zeros_like(features)
    for step in range(1, reach + 1):
        after, before = (
            jnp.take_along_axis(features, jnp.clip(time + shift, 0, last)[..., None], axis=1)
            for shift in (step, -step)
        )
        total += step * (after - before)
    slope = total / (2 * sum(step * step for step in range(1, reach + 1)))
    return jnp.where(mask[..., None], slope, 0)


def hubert_mfcc(
    waveform: jax.Array,
    mask: jax.Array | None = None,
    *,
    sample_rate: int = 16000,
    normalize: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """What HuBERT's first clusters are of (arXiv 2106.07447, section IV.A), 100 frames a second.

    13 cepstra as of `kaldi_mfcc` of samples in [-1, 1], their deltas, and the deltas of these.

    Args:
      waveform: [B, S] float in [-1, 1].
      mask: [B, S] bool, or None where all samples are real.
      sample_rate: Hz.
      normalize: gives each cepstrum mean 0 and variance 1 over the clip, before deltas are taken;
        in clips of several words that takes away much of who speaks. HuBERT does not.

    Returns:
      [B, T, 39] float32, and a mask of its frames.
    """
    cepstra, mask = kaldi_mfcc(waveform, mask, sample_rate=sample_rate)
    cepstra = normalized_over_time(cepstra, mask) if normalize else cepstra
    first = deltas(cepstra, mask)
    return jnp.concatenate([cepstra, first, deltas(first, mask)], axis=-1), mask
