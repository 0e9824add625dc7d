"""Sound files that cannot be used as they are, one of every kind."""

import numpy as np
import soundfile

RATE = 16000

# Why each is refused where clips of one channel and 16 kHz are expected, of 400 samples or more.
REASONS = {
    "stereo": "stereo, expected one channel; set mix",
    "rate": "8,000 samples per second, expected 16,000; set resample",
    "short": "399 samples, expected at least 400",
    "no samples": "no samples",
    "nan": "500 samples are not finite",
    "cut wav": "cut short: 2956 of 6000 bytes",
    "cut flac": "decoded|cut short",
    "empty": "an empty file",
    "text": "no sound file that can be decoded",
}


def tone(samples, pitch=440.0):
    """A sine, int16."""
    return np.round(8000 * np.sin(2 * np.pi * pitch * np.arange(samples) / RATE)).astype(np.int16)


def write_bad(folder, kind):
    """Writes KIND.wav, and returns its path."""
    path, wave = folder / f"{kind}.wav", tone(3000)
    if kind == "stereo":
        soundfile.write(path, np.stack([wave, wave // 2], -1), RATE)
    elif kind == "rate":
        soundfile.write(path, wave, RATE // 2)
    elif kind == "short":
        soundfile.write(path, wave[:399], RATE)
    elif kind == "no samples":
        soundfile.write(path, wave[:0], RATE)
    elif kind == "nan":
        soundfile.write(path, np.array([0.1, np.nan] * 500), RATE, subtype="FLOAT")
    elif kind == "cut wav":
        soundfile.write(path, wave, RATE)
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "cut flac":
        soundfile.write(path, wave, RATE, format="FLAC")
        path.write_bytes(path.read_bytes()[:-200])
    else:
        path.write_bytes({"empty": b"", "text": b"no sound at all"}[kind])
    return path
