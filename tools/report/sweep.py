"""The page of a sweep: all runs as lines across the axes, and the metric against each axis."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from launch.sweeping.results import Results, Row, shown
from tools.report.charts import LETTER, nice_ticks, svg_page, svg_text
from tools.report.markup import grid, safe, section, table

STYLE = pathlib.Path(__file__).with_name("report.css")
BEST, WORST, GOOD = "#d9730d", (206, 214, 224), (16, 74, 168)
MOST_TICKS = 6
MOST_PICTURED = 1000  # lines; more would be a blot


@dataclasses.dataclass(frozen=True)
class Axis:
    """Where values lie on a line from 0 to 1.

    Attributes:
      name: the field or metric.
      ticks: (place, text), from low to high.
      low, high: ends, in the scale of the axis.
      log: whether that scale is the logarithm.
      categories: text -> place, of an axis that is not of numbers.
    """

    name: str
    ticks: Sequence[tuple[float, str]]
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    categories: dict[str, float] | None = None

    def place(self, value: Any) -> float:
        """From 0 to 1."""
        if self.categories is not None:
            return self.categories[shown(value)]
        value = math.log10(value) if self.log else value
        return (value - self.low) / (self.high - self.low)


def axis_of(name: str, values: Sequence[Any], *, log: bool | None = None) -> Axis:
    """The axis that fits these values: categories, or numbers on a linear or logarithmic scale.

    Args:
      name: the field or metric.
      values: what it has to show.
      log: the scale of numbers; None: logarithmic where that spreads them better.
    """
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values) or not numbers:
        names = sorted({shown(value) for value in values}, key=_natural)
        places = {text: (i + 0.5) / len(names) for i, text in enumerate(names)}
        return Axis(name, [(place, text) for text, place in places.items()], categories=places)
    distinct = sorted(set(map(float, numbers)))
    least, most = distinct[0], distinct[-1]
    log = least > 0 and (_wants_log(distinct) if log is None else log)
    size = max(1.0, abs(least), abs(most))
    if not log and most - least <= 1e-9 * size:  # no eye tells them apart
        distinct, most = [least], least
    scale = math.log10 if log else float
    ends = [scale(least), scale(most)]
    if least == most:
        half = 0.5 if log else 0.5 * size
        ends = [ends[0] - half, ends[1] + half]
    few = len(distinct) <= MOST_TICKS and _spread([scale(v) for v in distinct])
    if few:
        ticks = distinct
    elif log:
        ticks = _log_ticks(least, most)
        ends = [min(ends[0], scale(ticks[0])), max(ends[1], scale(ticks[-1]))]
    else:
        ticks = nice_ticks(least, most, 5)
        ends = [ticks[0], ticks[-1]]
    low, high = ends
    margin = 0.06 * (high - low) if few else 0.0
    low, high = low - margin, high + margin
    texts = [shown(float(tick)) for tick in ticks]
    if len(set(texts)) < len(texts):  # a narrow range far from 0
        texts = [f"{tick:.10g}" for tick in ticks]
    places = [(scale(tick) - low) / (high - low) for tick in ticks]
    placed = list(zip(places, texts, strict=True))
    return Axis(name, placed, low, high, log)


def _natural(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def _wants_log(distinct: Sequence[float]) -> bool:
    """For two decades of values; for a few of them, also where they rather multiply than add."""
    range_ = distinct[-1] / distinct[0]
    if len(distinct) > MOST_TICKS or len(distinct) < 3:
        return range_ >= 100
    ratios = [b / a for a, b in itertools.pairwise(distinct)]
    steps = [b - a for a, b in itertools.pairwise(distinct)]
    return range_ >= 4 and max(ratios) / min(ratios) < max(steps) / min(steps)


def _spread(places: Sequence[float]) -> bool:
    """Whether texts at these places keep clear of each other."""
    width = (places[-1] - places[0]) or 1.0
    return all((b - a) / width >= 0.11 for a, b in itertools.pairwise(places))


def _log_ticks(least: float, most: float) -> list[float]:
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
    if high - low >= 3:
        step = math.ceil((high - low) / MOST_TICKS)
        return [10.0**power for power in range(low, high + 1, step)]
    fine = [m * 10.0**power for power in range(low, high + 1) for m in (1, 2, 5)]
    below = [tick for tick in fine if tick <= least * 1.0001]
    above = [tick for tick in fine if tick >= most * 0.9999]
    return [tick for tick in fine if below[-1] <= tick <= above[0]]


# --- pictures -------------------------------------------------------------------------------------


def parallel_coordinates(results: Results) -> str:
    """One line for each run across all axes and the metric; the best one stands out."""
    rows = [row for row in results.rows if set(results.fields) <= set(row.fields)]
    rows = rows[:MOST_PICTURED]
    done = [row for row in rows if row.value is not None]
    if len(done) < 2:
        return ""
    axes = [_field_axis(results, field) for field in results.fields]
    metric = axis_of(results.metric, [row.value for row in done])
    width, height, top, bottom = 1080.0, 380.0, 62.0, 22.0
    left = 20.0 + LETTER * max(len(_short(text)) for _, text in axes[0].ticks)
    right = 26.0 + LETTER * max(len(text) for _, text in [*metric.ticks, (0, "0.0000")])
    gap = (width - left - right) / len(axes)

    def at(index: int, place: float) -> tuple[float, float]:
        return left + index * gap, top + (1 - place) * (height - top - bottom)

    parts = [svg_text(10, 17, "Every run across the axes", "title")]
    parts.append(svg_text(width - 4, 17, _key(results), "tick end"))
    for row in reversed(rows):  # the best last, on top
        path = [at(i, axis.place(row.fields[axis.name])) for i, axis in enumerate(axes)]
        if row.value is not None:
            path.append(at(len(axes), metric.place(row.value)))
        parts.append(_line(path, row, _color(results, metric, row), row is results.best))
    for index, axis in enumerate([*axes, metric]):
        x, low = at(index, 0)
        _, high = at(index, 1)
        parts.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
        )
        last = index == len(axes)
        kind = "label end" if last else ("label" if index == 0 else "label middle")
        shift = right - 6 if last else (10 - left if index == 0 else 0)
        parts.append(svg_text(x + shift, high - 16, _fit(axis.name, gap - 14), kind))
        for place, text in axis.ticks:
            _, y = at(index, place)
            side = 1 if last else -1
            parts.append(
                f'<line class="axis" x1="{x:.1f}" x2="{x + 4 * side:.1f}" '
                f'y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            parts.append(_on_white(x + 8 * side, y + 4, _short(text), end=not last))
    return svg_page(height, "every run across the axes", parts, width=width)


def metric_against(results: Results, field: str) -> str:
    """The metric of every run over one field, with the median where values repeat."""
    done = [row for row in results.rows if row.value is not None and field in row.fields]
    done = done[:MOST_PICTURED]
    if len(done) < 2:
        return ""
    across = _field_axis(results, field)
    metric = axis_of(results.metric, [row.value for row in done])
    width, height, top, bottom = 540.0, 290.0, 40.0, 44.0
    left = 18.0 + LETTER * max(len(text) for _, text in metric.ticks)
    right = 18.0

    def at(row: Row) -> tuple[float, float]:
        x = left + across.place(row.fields[field]) * (width - left - right)
        return x, top + (1 - metric.place(row.value)) * (height - top - bottom)

    base = height - bottom
    parts = [svg_text(10, 17, _fit(f"{results.metric} over {field}", width - 20), "title")]
    for place, text in metric.ticks:
        y = top + (1 - place) * (base - top)
        parts.append(
            f'<line class="grid" x1="{left:.1f}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(svg_text(left - 8, y + 4, text, "tick end"))
    parts.append(
        f'<line class="axis" x1="{left:.1f}" x2="{width - right}" y1="{base}" y2="{base}"/>'
    )
    room = (width - left - right) / max(len(across.ticks), 1) - 8
    for place, text in across.ticks:
        x = left + place * (width - left - right)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>')
        parts.append(svg_text(x, base + 17, _fit(text, max(room, 30)), "tick middle"))
    scale = f"{field}, logarithmic" if across.log else field
    parts.append(svg_text((left + width - right) / 2, base + 36, scale, "tick middle"))
    groups: dict[str, list[Row]] = {}
    for row in done:
        groups.setdefault(shown(row.fields[field]), []).append(row)
    if 1 < len(groups) <= MOST_TICKS * 2 and len(groups) < len(done):
        middles = sorted(
            (at(rows[0])[0], float(np.median([at(row)[1] for row in rows])))
            for rows in groups.values()
        )
        if across.categories is None:
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in middles)
            parts.append(f'<polyline class="median" points="{points}"/>')
        else:
            parts += [
                f'<line class="median" x1="{x - 14:.1f}" x2="{x + 14:.1f}" y1="{y:.1f}" '
                f'y2="{y:.1f}"/>'
                for x, y in middles
            ]
    for row in reversed(done):
        x, y = at(row)
        best = row is results.best
        color = BEST if best else _color(results, metric, row)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{6 if best else 4.2}" fill="{color}" '
            f'stroke="#fff" stroke-width="1"><title>{safe(_hover(row, results))}</title></circle>'
        )
    return svg_page(height, f"{results.metric} over {field}", parts, width=width)


def _field_axis(results: Results, field: str) -> Axis:
    values = [row.fields[field] for row in results.rows if field in row.fields]
    return axis_of(field, values, log=results.logarithmic.get(field))


def _color(results: Results, metric: Axis, row: Row) -> str:
    """From pale for the worst result to deep blue for the best; grey for a run without one."""
    if row.value is None:
        return "#c4314b"
    places = [metric.place(r.value) for r in results.rows if r.value is not None]
    low, high = min(places), max(places)
    share = (metric.place(row.value) - low) / ((high - low) or 1.0)
    share = 1 - share if results.mode == "min" else share
    red, green, blue = (round(w + share * (g - w)) for w, g in zip(WORST, GOOD, strict=True))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _line(path: Sequence[tuple[float, float]], row: Row, color: str, best: bool) -> str:
    commands = [f"M{path[0][0]:.1f} {path[0][1]:.1f}"]
    for (a, b), (c, d) in itertools.pairwise(path):
        half = (a + c) / 2
        commands.append(f"C{half:.1f} {b:.1f} {half:.1f} {d:.1f} {c:.1f} {d:.1f}")
    color = BEST if best else color
    dash = ' stroke-dasharray="3 4"' if row.value is None else ""
    width, opacity = (3.4, 1) if best else (1.5, 0.85)
    hover = f"{row.name}: {row.state if row.value is None else shown(row.value)}"
    return (
        f'<path d="{" ".join(commands)}" fill="none" stroke="{color}" stroke-width="{width}"'
        f' opacity="{opacity}" stroke-linecap="round"{dash}><title>{safe(hover)}</title></path>'
    )


def _on_white(x: float, y: float, text: str, *, end: bool) -> str:
    """A tick's text that stays legible over lines; `end`: x is where it ends."""
    width = LETTER * len(text) + 4
    left = x - width + 2 if end else x - 2
    box = f'<rect x="{left:.1f}" y="{y - 11:.1f}" width="{width:.1f}" height="15" rx="3"'
    text = svg_text(x, y, text, "tick end" if end else "tick")
    return f'{box} fill="#fff" opacity="0.85"/>{text}'


def _key(results: Results) -> str:
    better = "lower" if results.mode == "min" else "higher"
    lost = any(row.value is None for row in results.rows)
    return f"orange: the best; blue: {better} is better" + ("; red: no result" if lost else "")


def _hover(row: Row, results: Results) -> str:
    return f"{row.name}: {results.metric} {shown(row.value)}"


def _short(text: str) -> str:
    return text if len(text) <= 16 else text[:15] + "…"


def _fit(text: str, width: float) -> str:
    most = max(6, int(width / (LETTER * 1.08)))
    return text if len(text) <= most else "…" + text[len(text) - most + 1 :]


# --- the page -------------------------------------------------------------------------------------

_MORE = """.wide svg { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; } .wide svg { min-width: 720px; }
svg .median { fill: none; stroke: #9aa5b1; stroke-width: 1.6; }
tr.best th, tr.best td { background: #fff4e8; }
"""


def page(results: Results) -> str:
    """The whole page, which needs no script and no network."""
    wide = parallel_coordinates(results)
    charts = [metric_against(results, field) for field in results.fields]
    failed = [[row.name, row.message] for row in results.rows if row.message]
    runs = table(results.head(), results.cells())
    if results.best is not None:
        runs = runs.replace("<tbody><tr>", '<tbody><tr class="best">', 1)
    sections = [
        f"<h1>{safe(results.title)}</h1>",
        f'<p class="what">{safe(results.summary())}</p>',
        section("All at once", f'<div class="wide">{wide}</div>' if wide else ""),
        section("One axis at a time", grid(charts)),
        section("Runs", runs),
        section("What failed", table([], failed, kind="facts") if failed else ""),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{safe(results.title)}</title>\n<style>\n{STYLE.read_text()}{_MORE}</style>\n"
        "</head>\n<body>\n<main>\n" + "\n".join(filter(None, sections)) + "\n</main>\n</body>\n"
        "</html>\n"
    )
