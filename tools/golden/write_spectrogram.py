"""Writes tests/golden/spectrogram.npz: what librosa, transformers and kaldi-native-fbank compute.

    python -m tools.golden.write_spectrogram

Needs librosa, kaldi-native-fbank and transformers. Every array is of the first clip of
`inputs.sound(SAMPLES)`, an odd number of samples, or of `SILENCE` zeros.
"""

from __future__ import annotations

import pathlib

import kaldi_native_fbank as kaldi
import librosa
import numpy as np
import transformers

from tools.golden.inputs import sound

PATH = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "spectrogram.npz"
SAMPLES, SILENCE = 5037, 1601


def _whisper(clip: np.ndarray, num_mels: int) -> np.ndarray:
    extract = transformers.WhisperFeatureExtractor(feature_size=num_mels)
    found = extract(clip, sampling_rate=16000, padding="do_not_pad", return_tensors="np")
    return found["input_features"][0].T


def _ast(clip: np.ndarray) -> np.ndarray:
    """Of 128 filters some are between two frequencies, which kaldi-native-fbank refuses."""
    extract = transformers.ASTFeatureExtractor(max_length=32, do_normalize=False)
    return np.asarray(extract(clip, sampling_rate=16000, return_tensors="np").input_values[0])


def _kaldi(options: object, make: type, clip: np.ndarray) -> np.ndarray:
    options.frame_opts.dither = 0
    computer = make(options)
    computer.accept_waveform(16000, clip.tolist())
    computer.input_finished()
    return np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)])


def _fbank(clip: np.ndarray, num_mels: int, window: str) -> np.ndarray:
    options = kaldi.FbankOptions()
    options.frame_opts.window_type = window
    options.mel_opts.num_bins = num_mels
    options.mel_opts.high_freq = 0
    return _kaldi(options, kaldi.OnlineFbank, clip)


def _mfcc(clip: np.ndarray) -> np.ndarray:
    options = kaldi.MfccOptions()
    options.use_energy = False
    options.mel_opts.num_bins = 23
    options.mel_opts.high_freq = 0
    return _kaldi(options, kaldi.OnlineMfcc, clip)


def main() -> None:
    """Writes the file."""
    clip = sound(SAMPLES)[0].astype(np.float32) / 32768
    silence = np.zeros(SILENCE, np.float32)
    mel = {"n_fft": 512, "hop_length": 128, "n_mels": 40, "pad_mode": "reflect"}
    powers = librosa.feature.melspectrogram(y=clip, sr=16000, **mel)
    htk = {"htk": True, "norm": None, "fmin": 50, "fmax": 7000}
    cepstra = _mfcc(clip).T
    first = librosa.feature.delta(cepstra, width=5, mode="nearest")
    np.savez_compressed(
        PATH,
        whisper=_whisper(clip, 80),
        whisper_v3=_whisper(clip, 128),
        whisper_silence=_whisper(silence, 80),
        librosa_slaney=powers.T,
        librosa_htk=librosa.feature.melspectrogram(y=clip, sr=16000, **mel, **htk).T,
        librosa_cepstra=librosa.feature.mfcc(S=np.log(powers), n_mfcc=20).T,
        kaldi_povey=_fbank(clip * 32768, 80, "povey"),
        kaldi_hanning=_fbank(clip, 40, "hanning"),
        ast=_ast(clip),
        kaldi_hamming=_fbank(clip, 23, "hamming"),
        kaldi_silence=_fbank(silence, 80, "povey"),
        kaldi_mfcc=cepstra.T,
        deltas=first.T,
        delta_deltas=librosa.feature.delta(first, width=5, mode="nearest").T,
    )


if __name__ == "__main__":
    main()
