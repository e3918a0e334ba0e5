"""Plots as SVG, by hand: a few lines need no library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 150, 40, 48
_COLOURS = ("#6b7280", "#d97706", "#2563eb", "#059669", "#dc2626", "#7c3aed", "#0891b2")

Points = Sequence[tuple[float, float]]


def lines(title: str, across: str, up: str, series: Mapping[str, Points]) -> str:
    """An SVG with a line for each series over a logarithmic x-axis; y begins at 0."""
    xs = sorted({x for points in series.values() for x, _ in points})
    top = max(y for points in series.values() for _, y in points) * 1.1 or 1.0
    low, high = math.log(xs[0]), math.log(xs[-1])

    def place(x: float, y: float) -> str:
        share = (math.log(x) - low) / ((high - low) or 1)
        px = _LEFT + share * (_WIDTH - _LEFT - _RIGHT)
        py = _HEIGHT - _BOTTOM - y / top * (_HEIGHT - _TOP - _BOTTOM)
        return f"{px:.1f},{py:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="22" font-size="15">{escape(title)}</text>',
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 10}" '
        f'text-anchor="middle">{escape(across)}</text>',
        f'<text transform="translate(16 {_HEIGHT / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(up)}</text>',
    ]
    step = 10 ** math.floor(math.log10(top))
    step = next(s for s in (step / 5, step / 2, step, step * 2) if top / s <= 8)
    for number in range(int(top / step) + 1):
        px, py = place(xs[0], number * step).split(",")
        parts.append(
            f'<path d="M{px} {py}H{_WIDTH - _RIGHT}" stroke="#e5e7eb"/>'
            f'<text x="{_LEFT - 6}" y="{float(py) + 4}" text-anchor="end">'
            f"{number * step:g}</text>"
        )
    for x in xs:
        px, py = place(x, 0).split(",")
        parts.append(
            f'<text x="{px}" y="{float(py) + 16}" text-anchor="middle">{x:,.0f}</text>'
        )
    for number, (name, points) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        way = " ".join(place(x, y) for x, y in points)
        y = _TOP + 18 * number + 8
        parts.append(
            f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        for point in points:
            px, py = place(*point).split(",")
            parts.append(f'<circle cx="{px}" cy="{py}" r="3" fill="{colour}"/>')
        parts.append(
            f'<text x="{_WIDTH - _RIGHT + 12}" y="{y}" fill="{colour}">'
            f"{escape(name)}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])
