"""Small plots as inline SVG: lines with bands, and intervals side by side. Colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 42  # margins


@dataclass(frozen=True)
class Point:
    """A value with its interval."""

    x: float
    y: float
    low: float
    high: float


def lines(series: Mapping[str, Sequence[Point]], x_name: str, y_name: str, y_range: tuple[float, float]) -> str:
    """One line with a band for each series; x on equal steps where it is given at few places."""
    places = sorted({p.x for points in series.values() for p in points})
    across = _scale(LEFT, WIDTH - RIGHT, len(places))
    at = {x: across(i) for i, x in enumerate(places)}
    up = _linear(*y_range, HEIGHT - BOTTOM, TOP)
    parts = [_frame(y_range, up, y_name), _labels(at, x_name)]
    for number, (name, points) in enumerate(series.items()):
        known = sorted((p for p in points if not math.isnan(p.y)), key=lambda p: p.x)
        top = [f"{at[p.x]:.1f},{up(p.high):.1f}" for p in known]
        bottom = [f"{at[p.x]:.1f},{up(p.low):.1f}" for p in reversed(known)]
        middle = " ".join(f"{at[p.x]:.1f},{up(p.y):.1f}" for p in known)
        dots = "".join(f'<circle cx="{at[p.x]:.1f}" cy="{up(p.y):.1f}" r="2.6"/>' for p in known)
        parts.append(
            f'<g class="series s{number % 6}"><title>{escape(name)}</title>'
            f'<polygon points="{" ".join(top + bottom)}"/><polyline points="{middle}"/>{dots}</g>'
        )
    return _svg(parts, HEIGHT) + legend(series)


def intervals(rows: Mapping[str, Mapping[str, Point]], x_range: tuple[float, float] = (0, 100)) -> str:
    """For each row and each of its values a dot with its interval: what overlaps is seen at once."""
    names = list(dict.fromkeys(name for values in rows.values() for name in values))
    step = 10 * len(names) + 10
    height, left = TOP + step * len(rows) + BOTTOM - 10, 130
    along = _linear(*x_range, left, WIDTH - RIGHT)
    parts = [_grid(x_range, along, height)]
    for i, (label, values) in enumerate(rows.items()):
        middle = TOP + step * i + step / 2
        parts.append(f'<text class="row" x="{left - 8}" y="{middle + 4:.1f}">{escape(_short(label, 20))}</text>')
        for j, name in enumerate(names):
            if (p := values.get(name)) and not math.isnan(p.y):
                y = middle + 10 * (j - (len(names) - 1) / 2)
                parts.append(
                    f'<g class="series s{j % 6}"><title>{escape(f"{label}, {name}: {p.y:.1f}")}</title>'
                    f'<line x1="{along(p.low):.1f}" x2="{along(p.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
                    f'<circle cx="{along(p.y):.1f}" cy="{y:.1f}" r="3.4"/></g>'
                )
    return _svg(parts, height) + legend(names)


def legend(names: Sequence[str] | Mapping[str, object]) -> str:
    """The names in their series' colours."""
    items = "".join(f'<span class="key s{i % 6}">{escape(name)}</span>' for i, name in enumerate(names))
    return f'<div class="legend">{items}</div>'


def _svg(parts: Sequence[str], height: float) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img">{"".join(parts)}</svg>'


def _linear(low: float, high: float, start: float, stop: float):
    span = (high - low) or 1.0
    return lambda value: start + (min(max(value, low), high) - low) / span * (stop - start)


def _scale(start: float, stop: float, count: int):
    if count < 2:
        return lambda _: (start + stop) / 2
    inset = 14
    return lambda i: start + inset + i / (count - 1) * (stop - start - 2 * inset)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from low to high, at most `most` steps."""
    raw = (high - low or 1.0) / most
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    return [round(i * step, 10) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _frame(y_range: tuple[float, float], up, y_name: str) -> str:
    marks = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(t):.1f}" y2="{up(t):.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{up(t) + 3.5:.1f}" text-anchor="end">{t:g}</text>'
        for t in ticks(*y_range)
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="rotate(-90 12 {middle})" x="12" y="{middle}"'
    return marks + f'<text class="axis" {turned} text-anchor="middle">{escape(y_name)}</text>'


def _labels(at: Mapping[float, float], x_name: str) -> str:
    skip = max(1, len(at) // 12)
    marks = "".join(
        f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{value:g}</text>'
        for i, (value, x) in enumerate(at.items())
        if i % skip == 0
    )
    middle = (LEFT + WIDTH - RIGHT) / 2
    return marks + f'<text class="axis" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_name)}</text>'


def _grid(x_range: tuple[float, float], along, height: float) -> str:
    bottom = height - BOTTOM + 18
    return "".join(
        f'<line class="grid" x1="{along(t):.1f}" x2="{along(t):.1f}" y1="{TOP}" y2="{bottom}"/>'
        f'<text class="tick" x="{along(t):.1f}" y="{bottom + 14}" text-anchor="middle">{t:g}</text>'
        for t in ticks(*x_range)
    )


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
