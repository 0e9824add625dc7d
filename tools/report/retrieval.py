"""The part of a report on retrieval between images and texts: recall over steps, against chance."""

from __future__ import annotations

import re

from tools.report.charts import COLORS, Line, line_chart, percent
from tools.report.markup import share, table
from tools.report.runs import Run

KIND = "image_text_retrieval"
DIRECTIONS = {"image_to_text": "Image to text", "text_to_image": "Text to image"}


def retrieval_sentence(run: Run, key: str) -> str:
    """Recall at the smallest k in one sentence, against chance."""
    values = run.values(key)
    at = _ks(values)
    if not at:
        return ""
    parts = []
    for name, title in DIRECTIONS.items():
        found, chance = (values.get(f"{prefix}{name}@{at[0]}") for prefix in ("", "chance_"))
        if found is not None and chance:
            parts.append(
                f"{title.lower()} R@{at[0]} is <b>{percent(found)}</b>, "
                f"<b>{found / chance:.1f} times</b> chance"
            )
    return "Of what was held out, " + "; ".join(parts) + "." if parts else ""


def retrieval_charts(run: Run, key: str) -> list[str]:
    """Recall over steps, one chart for each direction."""
    charts = []
    for name, title in DIRECTIONS.items():
        lines, end = [], 1
        for number, k in enumerate(_ks(run.values(key))):
            steps, values = run.curve(f"eval/{key}/{name}@{k}")
            end = max(end, *steps)
            lines.append(Line(f"R@{k}", steps, values, COLORS[number % len(COLORS)]))
        if all(len(line.x) < 2 for line in lines):
            continue
        chance = run.last(f"eval/{key}/chance_{name}@{_ks(run.values(key))[0]}")
        if chance is not None:
            first = f"chance of {lines[0].name}"
            lines.append(Line(first, [0, end], [chance, chance], "#9aa5b1", dashed=True))
        charts.append(line_chart(f"{title} ({key})", lines, form=percent))
    return charts


def retrieval_table(run: Run, key: str) -> str:
    """Recall and chance of both directions."""
    values = run.values(key)
    at = _ks(values)
    rows = [
        [f"{title}{suffix}", *(share(values.get(f"{prefix}{name}@{k}")) for k in at)]
        for name, title in DIRECTIONS.items()
        for prefix, suffix in (("", ""), ("chance_", ", chance"))
    ]
    return table([f"{key} of {run.name}", *(f"R@{k}" for k in at)], rows) if at else ""


def _ks(values: dict[str, float]) -> list[int]:
    found = (re.fullmatch(r"(?:image_to_text|text_to_image)@(\d+)", name) for name in values)
    return sorted({int(match[1]) for match in found if match})
