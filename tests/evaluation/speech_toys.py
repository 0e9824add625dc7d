"""Clips whose pitch is their class and whose loudness is their speaker, and a small encoder."""

import dataclasses

import jax
import numpy as np

from encoders.data import PREPROCESSING, SOURCES, CorruptExample
from encoders.data.sources.base import Source
from encoders.models.wav2vec2 import Wav2Vec2

RATE = 8000
PITCHES = (300, 700, 1500, 3000)
WORDS = ("do", "re", "mi", "fa")


@dataclasses.dataclass(kw_only=True, eq=False)
class Tones(Source):
    """Sines in noise, 1000 to 1600 samples long; clip `broken` is empty.

    Of the first `unnamed` the speaker is not known.
    """

    number: int = 40
    seed: int = 0
    broken: int = -1
    unnamed: int = 0

    def _count(self):
        return self.number

    @property
    def samples(self):
        return np.random.default_rng(self.seed).integers(1000, 1601, self.number)

    def lengths(self, rate):
        return self.samples[self._permuted(np.arange(len(self)))]

    def _read(self, index):
        if index == self.broken:
            raise CorruptExample("no samples")
        rng = np.random.default_rng([self.seed, index])
        label, speaker = index % 4, int(rng.integers(2))
        time = np.arange(self.samples[index]) / RATE
        wave = np.sin(2 * np.pi * PITCHES[label] * time + rng.uniform(0, 6))
        wave = 3000 * (1 + 4 * speaker) * (wave + 0.1 * rng.normal(size=len(time)))
        found = {"audio": wave.astype(np.int16), "label": label, "speaker": speaker}
        if index < self.unnamed:
            found["speaker"] = -1
        return {**found, "transcript": WORDS[label]}

    def _describe(self, index):
        return f"tone {self.seed}/{index}"


@dataclasses.dataclass(kw_only=True, eq=False)
class Tunes(Tones):
    """Clips of two notes, another one from the middle on, with the note as the unit of a frame."""

    clusters = len(PITCHES)

    def _read(self, index):
        other = (index + 1 + index // 4) % self.number
        first, second = (super(Tunes, self)._read(number) for number in (index, other))
        middle = len(first["audio"]) // 2
        wave = np.concatenate([first["audio"][:middle], second["audio"][:middle]])
        units = np.repeat([first["label"], second["label"]], middle // (RATE // 100))
        return {"audio": wave, "units": units}


SOURCES["tones"] = Tones
SOURCES["tunes"] = Tunes


def preprocessing(**fields):
    sizes = dict(sample_rate=RATE, max_samples=1600, min_samples=400, samples_per_frame=160)
    return PREPROCESSING["audio"](**sizes, **fields)


def encoder(**fields):
    small = dict(
        width=16, depth=2, mlp_dim=32, num_heads=2, conv_dim=16, conv_kernels=(10, 8, 4),
        conv_strides=(5, 8, 4), position_kernel=8, position_groups=4,
    )  # fmt: skip
    return Wav2Vec2(**{**small, **fields})


def init(module):
    return jax.jit(module.init)(jax.random.key(0), np.zeros((1, 1600), np.float32))
