"""Spectrograms and cepstra against librosa, transformers and kaldi-native-fbank."""

import functools
import pathlib

import jax
import numpy as np
import pytest

from encoders.errors import ConfigError
from encoders.layers import spectrogram
from tools.golden.inputs import sound

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "spectrogram.npz")
SAMPLES, SILENCE, BATCHED = 5037, 1601, 6000
HTK = {"scale": "htk", "area": False, "low": 50.0, "high": 7000.0}
LIBROSA = {"fft_size": 512, "hop": 128, "num_mels": 40}
FEATURES = {
    "whisper": functools.partial(spectrogram.whisper_log_mel),
    "whisper_v3": functools.partial(spectrogram.whisper_log_mel, num_mels=128),
    "librosa_slaney": functools.partial(spectrogram.mel_spectrogram, **LIBROSA),
    "librosa_htk": functools.partial(spectrogram.mel_spectrogram, **LIBROSA, **HTK),
    "kaldi_povey": functools.partial(spectrogram.kaldi_fbank),
    "kaldi_hanning": functools.partial(spectrogram.kaldi_fbank, window="hanning", num_mels=40),
    "kaldi_hamming": functools.partial(spectrogram.kaldi_fbank, window="hamming", num_mels=23),
    "ast": functools.partial(spectrogram.kaldi_fbank, window="hanning", num_mels=128),
    "kaldi_mfcc": functools.partial(spectrogram.kaldi_mfcc),
    "hubert": functools.partial(spectrogram.hubert_mfcc),
    "hubert_normalized": functools.partial(spectrogram.hubert_mfcc, normalize=True),
}


def clips() -> np.ndarray:
    return sound(SAMPLES)[:1].astype(np.float32) / 32768


@functools.cache
def features(name: str, samples: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Of the clip alone or, padded, of the clip and a shorter one."""
    x = clips()
    scale = 32768 if name == "kaldi_povey" else 1
    function = jax.jit(FEATURES[name])
    if samples is None:
        return tuple(np.asarray(y) for y in function(x * scale))
    mask = np.arange(samples) < np.array([[SAMPLES], [SILENCE]])
    x = np.pad(np.repeat(x, 2, 0), ((0, 0), (0, samples - SAMPLES)))
    x = np.where(mask, x, np.float32(0.9))  # what padding holds does not matter
    return tuple(np.asarray(y) for y in function(x * scale, mask))


def expected(name: str) -> np.ndarray:
    if not name.startswith("hubert"):
        return GOLDEN[name]
    parts = [GOLDEN[k] for k in ("kaldi_mfcc", "deltas", "delta_deltas")]
    if name == "hubert_normalized":  # slopes are of the same scale, and no mean moves them
        mean, variance = parts[0].mean(0), parts[0].var(0)
        parts[0] = parts[0] - mean
        parts = [part / np.sqrt(variance + 1e-5) for part in parts]
    return np.concatenate(parts, -1)


@pytest.mark.parametrize("name", FEATURES)
def test_alone(name):
    found, mask = features(name)
    theirs = expected(name)[: found.shape[1]]  # the extractor of AST adds zeros
    assert found.shape[1:] == theirs.shape
    assert mask.all()
    np.testing.assert_allclose(found[0], theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", FEATURES)
def test_in_a_batch(name):
    alone, _ = features(name)
    found, masks = features(name, BATCHED)
    real = alone.shape[1]
    assert found.shape[1] > real
    np.testing.assert_array_equal(masks[0], np.arange(found.shape[1]) < real)
    np.testing.assert_allclose(found[0, :real], alone[0], atol=5e-5, rtol=1e-6)
    assert not found[~masks].any()


def test_silence():
    silence = np.zeros((1, SILENCE), np.float32)
    for name, theirs in (("whisper", "whisper_silence"), ("kaldi_povey", "kaldi_silence")):
        found, _ = jax.jit(FEATURES[name])(silence)
        np.testing.assert_allclose(found[0], GOLDEN[theirs], atol=1e-5)


def test_cepstra_are_those_of_librosa():
    powers = GOLDEN["librosa_slaney"]
    found = spectrogram.cepstrum(np.log(powers)[None], 20)[0]
    np.testing.assert_allclose(found, GOLDEN["librosa_cepstra"], atol=1e-4)


def test_bad_input():
    short, ints = np.zeros((1, 399), np.float32), np.zeros((1, 800), np.int16)
    with pytest.raises(ConfigError, match="399 samples are less than one frame of 400"):
        spectrogram.kaldi_fbank(short)
    with pytest.raises(ConfigError, match="200 samples cannot be mirrored by 200"):
        spectrogram.whisper_log_mel(short[:, :200])
    with pytest.raises(ConfigError, match=r"expected float \[B, S\], got int16 \[1, 800\]"):
        spectrogram.kaldi_fbank(ints)
    with pytest.raises(ConfigError, match="to 9000 Hz is no band below half of 16000 Hz"):
        spectrogram.mel_filters(16000, 400, 80, high=9000)
