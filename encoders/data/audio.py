"""What an encoder of sound expects of its input; it travels with the weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from encoders.data.characters import Characters
from encoders.data.transforms.audio import CropAudio, DecodeAudio, SpellTranscript
from encoders.errors import ConfigError

FULL_SCALE = 32768  # what int16 samples are divided by


@dataclasses.dataclass(frozen=True)
class AudioPreprocessing:
    """Rate, length and transcripts of clips.

    A batch has `waveform` int16 [B, S], zeros after `length` int32 [B] samples.

    Attributes:
      sample_rate: samples per second.
      max_samples: S; longer clips are cropped, shorter ones padded.
      bucket_samples: static lengths in training, ascending, of which the last is `max_samples`:
        every batch is of clips that fit one of them; None pads all to `max_samples`.
      min_samples: shorter clips are corrupt: the receptive field of the encoder, or more.
      resample: whether clips of another rate are resampled; else they are corrupt.
      mix: whether channels are averaged; else clips that have several are corrupt.
      units_per_second: rate of `units`, where clips have them: targets of frames.
      characters: 'letters', or the path or content of a vocab.json, of characters or phones, see
        `Characters.load`: spells transcripts for CTC; None where they are not read.
      max_targets: U, to which spelt transcripts are padded; longer ones are corrupt.
      samples_per_frame: the encoder's stride: CTC needs a frame per character, and one more between
        two that are equal, so that clips with longer transcripts are corrupt.
      strip_punctuation: whether ASCII punctuation outside the vocabulary is taken out of
        transcripts; else it makes them corrupt, as other characters outside it do.
    """

    modality = "audio"  # of the encoders that it is for

    sample_rate: int = 16000
    max_samples: int = 250_000
    bucket_samples: tuple[int, ...] | None = None
    min_samples: int = 400
    resample: bool = False
    mix: bool = False
    units_per_second: float = 50.0
    characters: str | None = None
    max_targets: int = 512
    samples_per_frame: int = 320
    strip_punctuation: bool = False

    def __post_init__(self) -> None:
        positive = ("sample_rate", "min_samples", "max_targets", "samples_per_frame")
        for name in (*positive, "units_per_second"):
            if getattr(self, name) <= 0:
                raise ConfigError(
                    f"preprocessing.{name}: expected a positive number, got {getattr(self, name)}."
                )
        if self.max_samples < self.min_samples:
            raise ConfigError(
                f"preprocessing.max_samples: expected at least min_samples={self.min_samples}, got "
                f"{self.max_samples}."
            )
        sizes = self.bucket_samples
        if sizes is not None and (
            sorted(set(sizes)) != list(sizes)
            or not sizes
            or sizes[0] < self.min_samples
            or sizes[-1] != self.max_samples
        ):
            raise ConfigError(
                f"preprocessing.bucket_samples: expected ascending lengths from min_samples="
                f"{self.min_samples} to max_samples={self.max_samples}, got {sizes}."
            )

    def check(self, encoder: Any) -> None:
        """Compares what an encoder says of itself with what clips will be.

        Raises:
          ConfigError: it hears another rate, needs longer clips or takes none as long, or has
            several tokens of one time or another stride than transcripts are measured by.
        """
        rate = getattr(encoder, "sample_rate", self.sample_rate)
        if rate != self.sample_rate:
            raise ConfigError(
                f"preprocessing.sample_rate: the encoder hears {rate} samples per second, got "
                f"{self.sample_rate}."
            )
        if self.min_samples < encoder.receptive_field:
            raise ConfigError(
                f"preprocessing.min_samples: the encoder makes a token of no less than "
                f"{encoder.receptive_field} samples, got {self.min_samples}."
            )
        most = getattr(encoder, "max_samples", self.max_samples)
        if most is not None and self.max_samples > most:
            raise ConfigError(
                f"preprocessing.max_samples: the encoder takes clips of up to {most} samples, got "
                f"{self.max_samples}."
            )
        at_once = getattr(encoder, "tokens_per_time", 1)
        if self.characters is not None and at_once > 1:
            raise ConfigError(
                "preprocessing.characters: 'ctc' spells by one token after another in time, and "
                f"{type(encoder).__name__} makes {at_once} of the same time; expected a model of "
                "frames, such as 'wav2vec2'."
            )
        if self.characters is not None and self.samples_per_frame != encoder.stride:
            raise ConfigError(
                f"preprocessing.samples_per_frame: the encoder's stride is {encoder.stride}, got "
                f"{self.samples_per_frame}."
            )

    @functools.cached_property
    def opened(self) -> Characters:
        """The vocabulary of transcripts.

        Raises:
          ConfigError: there is none.
          DataError: it is not there, or no vocabulary.
        """
        if self.characters is None:
            raise ConfigError(
                "preprocessing.characters: expected a vocabulary to spell transcripts with, such "
                "as 'letters', got None."
            )
        return Characters.load(self.characters)

    def num_units(self, samples: int) -> int:
        """F, the number of targets of frames that so many samples have."""
        return -(-round(samples * self.units_per_second) // self.sample_rate)

    @property
    def input_size(self) -> int:
        """S, what FLOPs are counted for."""
        return self.max_samples

    @property
    def for_objectives(self) -> dict[str, Any]:
        """What objectives may ask for by a parameter of that name."""
        rates = {"sample_rate": self.sample_rate, "units_per_second": self.units_per_second}
        return rates if self.characters is None else {**rates, "characters": self.opened}

    @property
    def for_transforms(self) -> dict[str, Any]:
        """What transforms may ask for by a parameter of that name."""
        return {"preprocessing": self}

    @property
    def for_sources(self) -> dict[str, Any]:
        """What sources may ask for by a parameter of that name."""
        return {"preprocessing": self}

    def eval_transforms(self) -> list[Callable]:
        """File or array -> int16 [max_samples], its length, and the targets of its transcript."""
        spell = [] if self.characters is None else [SpellTranscript(preprocessing=self)]
        crop = CropAudio(preprocessing=self, random=False)
        return [DecodeAudio(preprocessing=self), *spell, crop]

    def example_batch(self, rows: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the shapes and types that training will see."""
        targets = {}
        if self.characters is not None:
            targets = {
                "targets": np.full((rows, self.max_targets), self.opened.blank, np.int32),
                "target_length": np.zeros(rows, np.int32),
            }
        return {
            "waveform": np.zeros((rows, self.max_samples), np.int16),
            "length": np.full(rows, self.max_samples, np.int32),
            **targets,
            "label": np.zeros(rows, np.int32),
            "row": np.arange(rows, dtype=np.int32),
        }

    @staticmethod
    def encoder_inputs(batch: Mapping[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """The arguments (positional, by name) that an encoder is called with for a batch."""
        return (batch["waveform"],), {"mask": sample_mask(batch)}

    def normalize(self, waveform: Any) -> Any:
        """int16 [..., S] -> float32 in [-1, 1), numpy or jax; floats pass."""
        if not np.issubdtype(waveform.dtype, np.integer):
            return waveform
        return waveform.astype(np.float32) / np.float32(FULL_SCALE)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, the vocabulary with its content."""
        fields = dataclasses.asdict(self)
        characters = None if self.characters is None else self.opened.to_json()
        buckets = None if self.bucket_samples is None else list(self.bucket_samples)
        return {"name": "audio", **fields, "characters": characters, "bucket_samples": buckets}


def sample_mask(batch: Mapping[str, Any]) -> Any:
    """[B, S] bool, numpy or jax as the batch is: True for the samples that are no padding."""
    waveform = batch["waveform"]
    arange = waveform.__array_namespace__().arange  # numpy's would be a constant of a traced step
    return arange(waveform.shape[-1]) < batch["length"][..., None]
