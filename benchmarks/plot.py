"""Plots as SVG, by hand: a few lines and bars need no library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#6b7280")
#: Light or dark as the page around it is; the colours of the lines can be seen on both.
_STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #1f2937 }
.head { font-weight: 600; font-size: 13px }
.grid { stroke: #d1d5db }
@media (prefers-color-scheme: dark) {
text { fill: #e5e7eb }
.grid { stroke: #4b5563 }
}
</style>"""

Points = Sequence[tuple[float, float]]


def lines(title: str, across: str, up: str, series: Mapping[str, Points]) -> str:
    """An SVG with a line for each series over a logarithmic x-axis; y begins at 0."""
    width, height, left, right, top, bottom = 640, 300, 64, 110, 44, 48
    xs = sorted({x for points in series.values() for x, _ in points})
    highest = max(y for points in series.values() for _, y in points) * 1.1 or 1.0
    low, high = math.log(xs[0]), math.log(xs[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        share = (math.log(x) - low) / ((high - low) or 1)
        return (
            left + share * (width - left - right),
            height - bottom - y / highest * (height - top - bottom),
        )

    parts = [
        _text(left, 22, title, kind="head"),
        _text((left + width - right) / 2, height - 10, across, at="middle"),
        _text(left - 8, 40, up, at="end"),
    ]
    for value in _ticks(highest, 8):
        _, y = place(xs[0], value)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{width - right}"/>')
        parts.append(_text(left - 6, y + 4, f"{value:g}", at="end"))
    for x in xs:
        px, py = place(x, 0)
        parts.append(_text(px, py + 16, f"{x:,.0f}", at="middle"))
    for colour, (name, points) in zip(_COLOURS, series.items(), strict=False):
        places = [place(*point) for point in points]
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(
            f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
            for x, y in places
        ]
        parts.append(_text(places[-1][0] + 10, places[-1][1] + 4, name))
    return _svg(title, width, height, parts)


def bars(
    title: str,
    unit: str,
    kinds: Sequence[str],
    groups: Mapping[str, Mapping[str, Sequence[float]]],
) -> str:
    """An SVG of groups of lying bars; each is made of a part for each of the kinds."""
    width, left, right, row = 400, 176, 56, 20
    highest = max(sum(bar) for group in groups.values() for bar in group.values())
    scale = (width - left - right) / highest
    parts = [_text(4, 18, title, kind="head")]
    x = float(left)
    for colour, kind in zip(_COLOURS, kinds, strict=False):
        parts.append(
            f'<rect x="{x}" y="28" width="10" height="10" fill="{colour}"/>'
            + _text(x + 14, 37, kind)
        )
        x += 100
    y = 58.0
    for name, group in groups.items():
        parts.append(_text(4, y, name, kind="head"))
        for label, bar in group.items():
            y += row
            parts.append(_text(left - 6, y, label, at="end"))
            x = left
            for colour, value in zip(_COLOURS, bar, strict=False):
                long = max(value, 0.0) * scale
                parts.append(
                    f'<rect x="{x:.1f}" y="{y - 11:g}" width="{long:.1f}" height="14" '
                    f'fill="{colour}"/>'
                )
                x += long
            parts.append(_text(x + 5, y, f"{sum(bar):.0f} {unit}"))
        y += 30
    return _svg(title, width, round(y - 12), parts)


def _ticks(highest: float, most: int) -> list[float]:
    step = 10 ** math.floor(math.log10(highest))
    tried = (step / 5, step / 2, step, step * 2)
    step = next(each for each in tried if highest / each <= most)
    return [number * step for number in range(int(highest / step) + 1)]


def _text(x: float, y: float, words: str, *, kind: str = "", at: str = "start") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{at}">'
        f"{escape(words)}</text>"
    )


def _svg(title: str, width: int, height: int, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
    )
    return "\n".join(
        [head, f"<title>{escape(title)}</title>", _STYLE, *parts, "</svg>", ""]
    )
