"""Sound files: decoding by libsndfile, resampling by soxr."""

from __future__ import annotations

import io
import math
import pathlib
import re

import numpy as np

from encoders.data.sources.base import CorruptExample
from encoders.errors import ConfigError

SUFFIXES = (".flac", ".wav", ".ogg", ".mp3")
# What libsndfile logs where a header promises more than the file has.
_CUT_SHORT = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN = 0xFFFF0000  # sizes from here on are of files that were written to a pipe


def decode(file: bytes) -> tuple[np.ndarray, int]:
    """A sound file -> (int16 or float32 [samples, channels], samples per second).

    Raises:
      CorruptExample: it is empty, cut short or no sound file.
    """
    import soundfile

    if not file:
        raise CorruptExample("an empty file")
    try:
        with soundfile.SoundFile(io.BytesIO(file)) as opened:
            cut = _CUT_SHORT.search(opened.extra_info)
            if cut and int(cut[2]) < int(cut[1]) < _UNKNOWN:
                raise CorruptExample(f"cut short: {cut[2]} of {cut[1]} bytes of samples")
            # libsndfile would round floats to integers without scaling them.
            dtype = "float32" if opened.subtype in ("FLOAT", "DOUBLE") else "int16"
            samples = opened.read(dtype=dtype, always_2d=True)
            if len(samples) < opened.frames:
                raise CorruptExample(f"cut short: {len(samples)} of {opened.frames} samples")
            return samples, opened.samplerate
    except soundfile.SoundFileError as error:
        reason = str(error).rstrip(".").split(": ", 1)[-1]
        raise CorruptExample(f"no sound file that can be decoded ({reason})") from error


def samples_of(path: pathlib.Path, rate: int) -> int:
    """Samples that a file has at a rate, by its header; 0 where it has none that can be read."""
    import soundfile

    try:
        info = soundfile.info(str(path))
    except (OSError, soundfile.SoundFileError):
        return 0
    return -(-info.frames * rate // info.samplerate)


def encode_flac(waveform: np.ndarray, sample_rate: int) -> bytes:
    """int16 [samples] -> a FLAC file, from which the same samples come back."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def one_channel(samples: np.ndarray, *, mix: bool) -> np.ndarray:
    """[samples] or [samples, channels] -> [samples], averaged over channels if `mix`.

    Raises:
      CorruptExample: there are several, and they may not be mixed.
    """
    if samples.ndim == 1:
        return samples
    channels = samples.shape[-1]
    if channels == 1:
        return samples[:, 0]
    if not mix:
        raise CorruptExample(
            f"{'stereo' if channels == 2 else f'{channels} channels'}, expected one channel; set "
            "mix to average them"
        )
    scale = 1 if np.issubdtype(samples.dtype, np.floating) else 32768
    return samples.mean(-1, dtype=np.float32) / np.float32(scale)


def to_int16(waveform: np.ndarray) -> np.ndarray:
    """Samples as int16: floats in [-1, 1] are scaled by 32768 and clipped.

    Raises:
      CorruptExample: a float is not finite, or an integer has more bits.
    """
    if waveform.dtype == np.int16:
        return waveform
    if np.issubdtype(waveform.dtype, np.integer):
        if len(waveform) and (waveform.min() < -32768 or waveform.max() > 32767):
            raise CorruptExample("samples of more than 16 bits")
        return waveform.astype(np.int16)
    if not np.isfinite(waveform).all():
        raise CorruptExample(f"{int((~np.isfinite(waveform)).sum())} samples are not finite")
    return np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)


def resample(waveform: np.ndarray, rate: float, wanted: float) -> np.ndarray:
    """[samples] at `rate` -> [samples] at the wanted rate, of the same type (soxr, HQ)."""
    import soxr

    return waveform if rate == wanted else soxr.resample(waveform, rate, wanted)


def clip_of(
    audio: bytes | np.ndarray,
    rate: int | None,
    *,
    wanted: int,
    may_resample: bool,
    mix: bool,
    least: int = 1,
) -> np.ndarray:
    """A file or samples -> int16 [samples] of one channel, at the wanted rate.

    Args:
      audio: a sound file, or [samples] or [samples, channels] integers of 16 bits or floats.
      rate: of samples; None is the wanted one. A file has its own.
      wanted: samples per second.
      may_resample: whether another rate is resampled.
      mix: whether several channels are averaged.
      least: samples that a clip has at least.

    Raises:
      CorruptExample: it cannot be used.
    """
    if isinstance(audio, bytes):
        audio, rate = decode(audio)
    samples = one_channel(np.asarray(audio), mix=mix)
    rate = wanted if rate is None else int(rate)
    if rate != wanted and not may_resample:
        raise CorruptExample(
            f"{rate:,} samples per second, expected {wanted:,}; set resample to convert them"
        )
    if not len(samples):
        raise CorruptExample("no samples")
    waveform = resample(to_int16(samples), rate, wanted)
    check_length(waveform, least)
    return waveform


def check_length(waveform: np.ndarray, least: int) -> None:
    """Raises a CorruptExample where there are fewer samples."""
    if len(waveform) < least:
        raise CorruptExample(f"{len(waveform)} samples, expected at least {least}")


def check_speeds(least: float, most: float, where: str) -> None:
    """Raises a ConfigError, which begins with `where`, unless speeds can be drawn between these."""
    if not 0 < least <= most:
        raise ConfigError(f"{where}: expected 0 < least <= most, got {least} and {most}.")


def draw_speed(least: float, most: float, rng: np.random.Generator) -> float:
    """A speed from least to most, its logarithm drawn uniformly."""
    return math.exp(rng.uniform(math.log(least), math.log(most)))
