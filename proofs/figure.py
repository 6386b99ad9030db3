"""Draws bars over time as SVG: several rows with one time axis and one scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, LEFT, ROW, GAP, TOP, BOTTOM = 720, 40, 120, 34, 46, 40
FONT = 'font-family="sans-serif" font-size="12" fill="#333"'


@dataclass(frozen=True)
class Row:
    """One row. `bars`: one value for each time step. `marks`: moments (in seconds), each with a label."""

    title: str
    bars: Sequence[int]
    marks: Sequence[tuple[float, str]] = ()


def bars_svg(
    title: str, rows: Sequence[Row], step_s: float, shaded: tuple[float, float], *, tick_s: int = 1
) -> str:
    """Rows of bars. The background is grey during `shaded` (seconds). `tick_s`: the interval of the axis labels."""
    steps = max(len(row.bars) for row in rows)
    most = max(1, *(max(row.bars, default=0) for row in rows))
    height = TOP + len(rows) * (ROW + GAP) + BOTTOM
    per_s = (WIDTH - LEFT - 10) / (steps * step_s)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="20" {FONT} font-weight="bold">{escape(title)}</text>',
    ]
    for number, row in enumerate(rows):
        parts += _row(row, TOP + number * (ROW + GAP), most, step_s, per_s, shaded)
    for second in range(0, int(steps * step_s) + 1, tick_s):
        parts.append(
            f'<text x="{LEFT + second * per_s:.0f}" y="{height - 22}" {FONT} text-anchor="middle">{second}</text>'
        )
    parts.append(f'<text x="{WIDTH / 2}" y="{height - 6}" {FONT} text-anchor="middle">seconds</text>')
    return "\n".join([*parts, "</svg>", ""])


def _row(
    row: Row, top: float, most: int, step_s: float, per_s: float, shaded: tuple[float, float]
) -> list[str]:
    ground = top + ROW
    down, wide = LEFT + shaded[0] * per_s, (shaded[1] - shaded[0]) * per_s
    parts = [
        f'<rect x="{down:.1f}" y="{top + 16}" width="{wide:.1f}" height="{ROW - 16}" fill="#eee"/>',
        f'<text x="{LEFT}" y="{top + 10}" {FONT}>{escape(row.title)}</text>',
        f'<line x1="{LEFT}" y1="{ground}" x2="{WIDTH - 10}" y2="{ground}" stroke="#999"/>',
        f'<text x="{LEFT - 6}" y="{top + 26}" {FONT} text-anchor="end">{most}</text>',
    ]
    for number, value in enumerate(row.bars):
        if value:
            tall = (ROW - 20) * value / most
            left, width = LEFT + number * step_s * per_s, max(1.0, step_s * per_s - 1)
            place = f'x="{left:.1f}" y="{ground - tall:.1f}" width="{width:.1f}" height="{tall:.1f}"'
            parts.append(f'<rect {place} fill="#2b6cb0"/>')
    for at_s, word in row.marks:
        x = LEFT + at_s * per_s
        parts += [
            f'<line x1="{x:.1f}" y1="{top + 16}" x2="{x:.1f}" y2="{ground}" stroke="#c05621" stroke-dasharray="3 3"/>',
            f'<text x="{x + 4:.1f}" y="{top + 28}" {FONT}>{escape(word)}</text>',
        ]
    return parts
