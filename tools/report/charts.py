"""Line and bar charts as plain SVG text: no scripts, no fonts, no network."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Callable, Sequence

import numpy as np

# Distinguishable for colour-blind readers, and in print (after Okabe and Ito).
COLORS = ("#1f6feb", "#d9730d", "#0f8a62", "#a23fb5", "#b8860b", "#c4314b")
WIDTH, HEIGHT = 540, 290
LEFT, RIGHT, BOTTOM = 58, 62, 40
MAX_POINTS = 400
LETTER = 6.3  # average width of a letter at 11.5 px


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve: a name for the legend, points, a colour, and whether it is a reference."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    dashed: bool = False


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar: what it is, its value from 0 to 1, its colour."""

    name: str
    value: float
    color: str


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    form: Callable[[float], str] | None = None,
    from_zero: bool = False,
    note: str = "",
) -> str:
    """Curves over steps.

    Args:
      title: above the chart.
      lines: what to draw; points that are not finite interrupt a line. Long ones are averaged over
        equal spans, within a band from their least to their greatest.
      form: shows values on the axis and at the ends of the lines; None is chosen by their size.
      from_zero: whether the axis must begin at 0.
      note: small print beside the title.
    """
    points = [(np.asarray(x.x, float), np.asarray(x.y, float)) for x in lines]
    every_x = np.concatenate([x for x, _ in points])
    every_y = np.concatenate([y for _, y in points])
    every_y = every_y[np.isfinite(every_y)]
    if not every_y.size:
        every_y = np.zeros(1)
    log = form is None and not from_zero and _wants_log(every_y)
    low, high, ticks = _axis(every_y, log, from_zero)
    form = form or _form_for(ticks)
    legend, top = _legend(lines)
    top += 34

    x_ticks = nice_ticks(0, max(every_x.max(), 1), 6)
    x_high = max(every_x.max(), 1)
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - top - BOTTOM
    level = (lambda v: np.log10(np.maximum(v, 1e-300))) if log else (lambda v: v)

    def at_x(x: np.ndarray | float) -> np.ndarray:
        return LEFT + np.asarray(x) / x_high * plot_width

    def at_y(y: np.ndarray | float) -> np.ndarray:
        share = (level(np.asarray(y, float)) - level(low)) / (level(high) - level(low))
        return top + (1 - np.clip(share, 0, 1)) * plot_height

    parts = [_title(title, note), legend]
    for tick in ticks:
        y = at_y(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(svg_text(LEFT - 8, y + 4, form(tick), "tick end"))
    base = top + plot_height
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    for tick in x_ticks:
        if tick <= x_high * 1.001:
            x = at_x(tick)
            parts.append(
                f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>'
            )
            parts.append(svg_text(x, base + 17, count(tick), "tick middle"))
    parts.append(svg_text(LEFT + plot_width / 2, base + 33, "step", "tick middle"))

    ends = []
    for line, (x, y) in zip(lines, points, strict=True):
        x, y, least, most = _shorten(x, y)
        if least is not None:
            edge = list(zip(at_x(x), at_y(most), strict=True))
            edge += list(zip(at_x(x), at_y(least), strict=True))[::-1]
            outline = " ".join(f"{a:.1f},{b:.1f}" for a, b in edge)
            parts.append(f'<polygon points="{outline}" fill="{line.color}" opacity="0.15"/>')
        parts.append(_path(at_x(x), at_y(y), np.isfinite(y), line))
        finite = np.flatnonzero(np.isfinite(y))
        if finite.size:
            ends.append((float(at_y(y[finite[-1]])), form_end(y[finite[-1]], form), line.color))
    parts += _end_labels(ends, top, base)
    return svg_page(HEIGHT, title, parts)


def bar_chart(
    title: str, bars: Sequence[Bar], *, reference: tuple[str, float] | None = None, note: str = ""
) -> str:
    """Horizontal bars of shares, with their percentages, and a dashed line such as chance.

    Args:
      title: above the chart.
      bars: from top to bottom.
      reference: (name, value) of the dashed line.
      note: small print beside the title.
    """
    names = max(len(bar.name) for bar in bars)
    left = min(220, max(90, 20 + names * 7.4))
    width, top, pitch, thick = WIDTH - left - 62, 44, 34, 21
    base = top + pitch * len(bars) - (pitch - thick) + 8
    parts = [_title(title, note)]
    for tick in (0, 0.25, 0.5, 0.75, 1.0):
        x = left + tick * width
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 8}" y2="{base}"/>')
        parts.append(svg_text(x, base + 15, f"{100 * tick:.0f}%", "tick middle"))
    for index, bar in enumerate(bars):
        y = top + index * pitch
        name = bar.name if len(bar.name) <= 28 else bar.name[:27] + "…"
        parts.append(svg_text(left - 10, y + thick / 2 + 4, name, "label end"))
        length = max(0.0, min(1.0, bar.value)) * width
        parts.append(
            f'<rect x="{left:.1f}" y="{y}" width="{length:.1f}" height="{thick}" rx="3" '
            f'fill="{bar.color}"/>'
        )
        parts.append(
            svg_text(left + length + 8, y + thick / 2 + 4, f"{100 * bar.value:.1f}%", "value")
        )
    height = base + 24
    if reference is not None:
        x = left + reference[1] * width
        parts.append(
            f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 8}" y2="{base}"/>'
        )
        parts.append(
            svg_text(x, base + 31, f"{reference[0]} {percent(reference[1])}", "tick middle")
        )
        height += 16
    return svg_page(height, title, parts)


# --- axes -----------------------------------------------------------------------------------------


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that cover [low, high]."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _wants_log(values: np.ndarray) -> bool:
    return bool(values.min() > 0 and values.max() / values.min() > 200)


def _axis(values: np.ndarray, log: bool, from_zero: bool) -> tuple[float, float, list[float]]:
    low, high = float(values.min()), float(values.max())
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [10.0**power for power in powers]
    else:
        if from_zero or (low > 0 and low < 0.25 * high):
            low = 0.0
        ticks = nice_ticks(low, high, 5)
    return ticks[0], ticks[-1], ticks


def count(value: float, space: str = "") -> str:
    """1500 -> '1.5k', 2000000 -> '2M'; `space` goes before the unit."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{space}{unit}"
    return f"{value:.4g}{space}"


def percent(value: float) -> str:
    """0.5 -> '50%', 0.125 -> '12.5%'."""
    return f"{100 * value:.1f}".removesuffix(".0") + "%"


def _form_for(ticks: Sequence[float]) -> Callable[[float], str]:
    largest = max(abs(tick) for tick in ticks)
    if largest >= 1000:
        return count
    if 0 < largest < 0.01:
        return lambda v: "0" if v == 0 else f"{v:.2g}".replace("e-0", "e-")
    return lambda v: f"{v:.6g}"


def form_end(value: float, form: Callable[[float], str]) -> str:
    """The value at a line's end: three digits where the axis would show more."""
    shown = form(value)
    return shown if len(shown) <= 6 else f"{value:.3g}".replace("e-0", "e-")


# --- marks ----------------------------------------------------------------------------------------


def _shorten(x: np.ndarray, y: np.ndarray) -> tuple:
    """At most MAX_POINTS points, and the range they stand for (None where nothing was averaged)."""
    if len(x) <= MAX_POINTS:
        return x, y, None, None
    groups = [g for g in np.array_split(np.arange(len(x)), MAX_POINTS) if np.isfinite(y[g]).any()]
    rows = [(x[g].mean(), np.nanmean(y[g]), np.nanmin(y[g]), np.nanmax(y[g])) for g in groups]
    return tuple(np.array(column) for column in zip(*rows, strict=True))


def _path(x: np.ndarray, y: np.ndarray, there: np.ndarray, line: Line) -> str:
    commands, pen = [], False
    for a, b, real in zip(x, y, there, strict=True):
        if real:
            commands.append(f"{'L' if pen else 'M'}{a:.1f} {b:.1f}")
        pen = bool(real)
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    drawn = f'<path d="{" ".join(commands)}" fill="none" stroke="{line.color}" stroke-width="1.8"'
    drawn += f' stroke-linejoin="round"{dash}/>'
    if len(x) <= 25 and not line.dashed:
        dots = zip(x[there], y[there], strict=True)
        drawn += "".join(
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{line.color}"/>' for a, b in dots
        )
    return drawn


def _end_labels(ends: Sequence[tuple[float, str, str]], top: float, base: float) -> list[str]:
    """Last values at the right, pushed apart where they would overlap."""
    parts, last = [], top - 8.0
    ordered = sorted(ends)
    for index, (y, text, color) in enumerate(ordered):
        y = min(max(y, last + 13), base - 13 * (len(ordered) - 1 - index))
        last = y
        parts.append(svg_text(WIDTH - RIGHT + 6, y + 4, text, "value", color))
    return parts


def _legend(lines: Sequence[Line]) -> tuple[str, int]:
    """The legend, in rows under the title, and its height; nothing for a single line."""
    if len(lines) < 2:
        return "", 0
    parts, x, y = [], float(LEFT), 40.0
    for line in lines:
        name = line.name if len(line.name) <= 40 else line.name[:39] + "…"
        width = 26 + len(name) * LETTER + 16
        if x + width > WIDTH - 8 and x > LEFT:
            x, y = float(LEFT), y + 17
        dash = ' stroke-dasharray="5 3"' if line.dashed else ""
        parts.append(
            f'<line x1="{x:.1f}" x2="{x + 18:.1f}" y1="{y - 4}" y2="{y - 4}" '
            f'stroke="{line.color}" stroke-width="2.4"{dash}/>'
        )
        parts.append(svg_text(x + 24, y, name, "tick"))
        x += width
    return "".join(parts), int(y - 40 + 22)


def _title(title: str, note: str) -> str:
    drawn = svg_text(LEFT - 48, 17, title, "title")
    return drawn + (svg_text(WIDTH - 4, 17, note, "tick end") if note else "")


def svg_text(x: float, y: float, text: str, kind: str, color: str = "") -> str:
    """A text at a place, in one of the classes of report.css."""
    fill = f' style="fill:{color}"' if color else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}"{fill}>{html.escape(text)}</text>'


def svg_page(height: float, title: str, parts: Sequence[str], *, width: float = WIDTH) -> str:
    """A picture of its parts."""
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{html.escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )
