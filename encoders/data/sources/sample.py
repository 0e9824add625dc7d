"""The small real data sets that ship with the project."""

from __future__ import annotations

import dataclasses
from typing import Literal

from encoders.data.paths import SAMPLES
from encoders.data.sources.array_record import ArrayRecord


@dataclasses.dataclass(kw_only=True, eq=False)
class Sample(ArrayRecord):
    """A bundled data set, written by tools/make_samples.py.

    fashion_mnist: 10,000 train and 2,000 test images, grey 28×28, 10 balanced classes (Xiao, Rasul
      & Vollgraf, arXiv 1708.07747; MIT).
    banking77: 10,003 train and 3,080 test questions to a bank, {'text', 'label'} of 77 intents
      (Casanueva et al., arXiv 2003.04807; CC BY 4.0).
    emoji: 1,529 train and 383 test pictures of Noto Emoji, RGB 72×72, {'image', 'text', 'name',
      'emoji'} with two captions each: the name in Unicode's CLDR, and the name with the keywords
      there (Apache-2.0; Unicode-3.0). Its tokenizer is 'sample:emoji'.

    Clips of sound ship for source "audio": its path "sample:digits" has 720 train and 300 test
    recordings of spoken digits at 8 kHz, {'audio', 'transcript', 'label', 'speaker'} by six
    speakers (Free Spoken Digit Dataset; CC BY-SA 4.0), and "sample:ljspeech" two sentences at
    16 kHz in its split 'test' (LJSpeech; public domain).

    Text to pre-train on ships as tokens: source "tokens" with path "sample:peps".

    Attributes:
      dataset: its name.
      split: 'train' or 'test'.
    """

    dataset: Literal["fashion_mnist", "banking77", "emoji"] = "fashion_mnist"
    split: Literal["train", "test"] = "train"
    path: str = dataclasses.field(init=False)
    in_memory: bool | None = dataclasses.field(init=False, default=None)
    text_field: str | None = dataclasses.field(init=False, default=None)

    def __post_init__(self) -> None:
        self.path = str(SAMPLES / self.dataset)
        super().__post_init__()
