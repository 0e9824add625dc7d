"""Examples whose images an encoder has seen before: its vectors stand in their place."""

from __future__ import annotations

import dataclasses
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from encoders.config import build
from encoders.data.sources.base import CorruptExample, Source
from encoders.errors import DataError


@dataclasses.dataclass(kw_only=True, eq=False)
class Embedded(Source):
    """Another source, with vectors [D] float32 for images.

    Attributes:
      source: config section of the other, opened as `tools.embed` opened it: a vector is found by
        where its image was.
      vectors: the .npz file that `tools.embed` wrote. Images that are not in it, since they could
        not be read then, are corrupt.
      preprocessing: of the run (supplied).
    """

    source: Mapping[str, Any]
    vectors: str
    preprocessing: Any = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        from encoders.data.sources import SOURCES  # which holds this class too

        context = {} if self.preprocessing is None else {"preprocessing": self.preprocessing}
        self.pictured = build(SOURCES, dict(self.source), "data.source.source", **context)
        path = pathlib.Path(self.vectors).expanduser()
        try:
            with np.load(path, allow_pickle=False) as file:
                self._features = np.asarray(file["features"], np.float32)
                names = file["names"].tolist()
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(
                f"data source: vectors '{path}' cannot be read ({error}); expected what "
                "tools.embed writes of images, with 'features' and 'names'."
            ) from error
        self._rows = dict(zip(names, range(len(names)), strict=True))
        if not any(self.pictured.describe(i) in self._rows for i in range(len(self.pictured))):
            raise DataError(
                f"data source: none of the images of '{path}' is in data.source.source; the first "
                f"is '{names[0] if names else ''}' there and '{self.pictured.describe(0)}' here."
            )
        super().__post_init__()

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Those of the other source."""
        return self.pictured.class_names

    def _count(self) -> int:
        return len(self.pictured)

    def _read(self, index: int) -> dict[str, Any]:
        row = self._rows.get(self.pictured.describe(index))
        if row is None:
            raise CorruptExample(f"no vector in {self.vectors}")
        return {**self.pictured[index], "image": self._features[row]}

    def _describe(self, index: int) -> str:
        return self.pictured.describe(index)
