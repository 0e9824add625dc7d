"""The small real data sets that ship with the project."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Literal

from encoders.data.sources.array_record import ArrayRecord

SAMPLES = pathlib.Path(__file__).resolve().parents[1] / "samples"


@dataclasses.dataclass(kw_only=True, eq=False)
class Sample(ArrayRecord):
    """A bundled data set, written by tools/make_samples.py.

    fashion_mnist: 10,000 train and 2,000 test images, grey 28×28, 10 balanced classes (Xiao, Rasul
      &
    Vollgraf, arXiv 1708.07747; MIT).

    Attributes:
      dataset: its name.
      split: 'train' or 'test'.
    """

    dataset: Literal["fashion_mnist"] = "fashion_mnist"
    split: Literal["train", "test"] = "train"
    path: str = dataclasses.field(init=False)
    in_memory: bool | None = dataclasses.field(init=False, default=None)

    def __post_init__(self) -> None:
        self.path = str(SAMPLES / self.dataset)
        super().__post_init__()
