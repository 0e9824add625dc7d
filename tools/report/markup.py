"""Pieces of HTML; every text in them is escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any


def safe(text: Any) -> str:
    """Text for HTML, in attributes too."""
    return html.escape(str(text))


def words(name: str) -> str:
    """'grad_norm' -> 'grad norm'."""
    return name.replace("_", " ")


def share(value: float | None) -> str:
    """0.5 -> '50.00%'; None is a dash."""
    return "–" if value is None else f"{100 * value:.2f}%"


def section(title: str, content: str) -> str:
    """A titled part of the page, or nothing where it would be empty."""
    return f"<section><h2>{safe(title)}</h2>\n{content}\n</section>" if content else ""


def grid(charts: Sequence[str]) -> str:
    """Charts side by side, as many as fit; empty ones are left out."""
    cells = "".join(f'<div class="chart">{chart}</div>' for chart in charts if chart)
    return f'<div class="grid">{cells}</div>' if cells else ""


def table(head: Sequence[str], body: Sequence[Sequence[str]], *, kind: str = "numbers") -> str:
    """A table whose first column names the rows; without a head where that is empty."""

    def row(cells: Sequence[str], tag: str) -> str:
        tags = ["th", *[tag] * (len(cells) - 1)]
        drawn = (f"<{t}>{safe(c)}</{t}>" for t, c in zip(tags, cells, strict=True))
        return f"<tr>{''.join(drawn)}</tr>"

    top = f"<thead>{row(head, 'th')}</thead>" if head else ""
    rows = "".join(row(cells, "td") for cells in body)
    return f'<div class="scroll"><table class="{kind}">{top}<tbody>{rows}</tbody></table></div>'
