"""The runs of a sweep side by side: ranked by one metric, as a table for a terminal or a page."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

COLORS = {"finished": "green", "running": "cyan", "failed": "red", "stopped": "yellow"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
      name: of its directory.
      fields: config field -> value.
      state: 'waiting', 'submitted', or as in status.json.
      value: the metric, once the run has finished.
      progress: 'step/total', or ''.
      message: why it failed, or ''.
    """

    name: str
    fields: Mapping[str, Any]
    state: str
    value: float | None
    progress: str = ""
    message: str = ""


@dataclasses.dataclass(frozen=True)
class Results:
    """All runs of a sweep.

    Attributes:
      title: of the sweep.
      metric: what `Row.value` is.
      mode: 'min' or 'max': which values are better.
      rows: the best first, then those without a value.
      logarithmic: field -> whether it is to be seen on that scale; those left out are guessed.
    """

    title: str
    metric: str
    mode: str
    rows: Sequence[Row]
    logarithmic: Mapping[str, bool] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        title: str,
        metric: str,
        mode: str,
        rows: Sequence[Row],
        logarithmic: Mapping[str, bool] | None = None,
    ) -> Results:
        """Results with their rows in order."""
        sign = 1 if mode == "min" else -1
        worst = math.inf
        ordered = sorted(rows, key=lambda r: (worst if r.value is None else sign * r.value, r.name))
        return cls(title, metric, mode, ordered, logarithmic or {})

    @property
    def best(self) -> Row | None:
        return self.rows[0] if self.rows and self.rows[0].value is not None else None

    @property
    def fields(self) -> list[str]:
        """The fields that some run sets."""
        return sorted({field for row in self.rows for field in row.fields})

    def head(self) -> list[str]:
        return ["run", self.metric, *self.fields, "state", "step"]

    def cells(self) -> list[list[str]]:
        """The table's body, as text."""
        return [
            [
                row.name,
                "–" if row.value is None else shown(row.value),
                *(shown(row.fields[f]) if f in row.fields else "–" for f in self.fields),
                row.state,
                row.progress,
            ]
            for row in self.rows
        ]

    def table(self) -> Table:
        """For a terminal; the best run is bold, what failed is red."""
        table = Table(box=None, pad_edge=False, header_style="dim")
        for index, name in enumerate(self.head()):
            table.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
        for row, cells in zip(self.rows, self.cells(), strict=True):
            style = "bold" if row is self.best else ""
            texts = [Text(cell, style=style) for cell in cells]
            texts[-2].stylize(COLORS.get(row.state, "dim"))
            table.add_row(*texts)
        return table

    def markdown(self) -> str:
        """The table as Markdown, with what failed below it."""
        lines = [f"# {self.title}", "", self.summary(), ""]
        rows = [self.head(), ["---"] * len(self.head()), *self.cells()]
        lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
        failed = [f"- {row.name}: {_cell(row.message)}" for row in self.rows if row.message]
        return "\n".join([*lines, *(["", *failed] if failed else []), ""])

    def summary(self) -> str:
        """One sentence: how many runs, and which is the best."""
        done = sum(row.value is not None for row in self.rows)
        text = f"{done} of {len(self.rows)} runs have a result"
        if self.best is None:
            return f"{text}."
        better = "lowest" if self.mode == "min" else "highest"
        return f"{text}; the {better} {self.metric} is {shown(self.best.value)}: {self.best.name}."


def shown(value: Any) -> str:
    """A value as a reader wants it: four digits, text without quotes."""
    if isinstance(value, float):
        return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e")
    return value if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
