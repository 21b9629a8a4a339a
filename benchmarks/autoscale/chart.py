"""Charts as SVG, without a library: panels with lines over a common time axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, PANEL, LEFT, RIGHT, TOP, BOTTOM, GAP = 900, 130, 64, 150, 48, 40, 26
COLOURS = ("#1f6feb", "#d1242f", "#8250df", "#57606a")
POINTS = 450


@dataclass(frozen=True, slots=True)
class Line:
    """A named series, evenly spaced over the axis. With `step`, each value holds until the next."""

    name: str
    values: Sequence[float]
    step: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: a title, which names the y axis, and lines."""

    title: str
    lines: Sequence[Line]


def svg(title: str, panels: Sequence[Panel], hours: float) -> str:
    """Draw a chart of the panels over `hours`."""
    height = TOP + len(panels) * (PANEL + GAP) + BOTTOM - GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(LEFT, 20, title, size=14),
    ]
    for number, panel in enumerate(panels):
        parts += _panel(panel, TOP + number * (PANEL + GAP))
    foot = height - BOTTOM
    every = 3 if hours > 6 else max(1, round(hours)) / 6
    for mark in range(int(hours / every) + 1):
        x = LEFT + (WIDTH - LEFT - RIGHT) * mark * every / hours
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{foot}" stroke="#d0d7de" stroke-width="0.5"/>')
        parts.append(_text(x, foot + 16, f"{mark * every:g}", anchor="middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, foot + 32, "hours", anchor="middle"))
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, top: float) -> list[str]:
    maximum = ceiling(max((max(line.values, default=0.0) for line in panel.lines), default=0.0))
    right = WIDTH - RIGHT
    parts = [_text(LEFT, top - 5, panel.title)]
    for share in (0.0, 0.5, 1.0):
        y = top + PANEL * (1 - share)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#d0d7de"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{maximum * share:g}", anchor="end"))
    for number, line in enumerate(panel.lines):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<path d="{_path(line, top, maximum)}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
        parts.append(_text(right + 10, top + 14 + 16 * number, line.name, colour=colour))
    return parts


def _path(line: Line, top: float, maximum: float) -> str:
    values = thinned(line.values, POINTS)
    width = (WIDTH - LEFT - RIGHT) / max(1, len(values) - (0 if line.step else 1))
    moves: list[str] = []
    for number, value in enumerate(values):
        x, y = LEFT + number * width, top + PANEL * (1 - value / maximum)
        moves.append(f"{'L' if moves else 'M'}{x:.1f} {y:.1f}")
        if line.step:
            moves.append(f"H{x + width:.1f}")
    return "".join(moves)


def thinned(values: Sequence[float], points: int) -> list[float]:
    """Downsample to at most `points` values, each the maximum of its interval, so that peaks are kept."""
    if len(values) <= points:
        return list(values)
    size = len(values) / points
    return [max(values[int(n * size) : max(int(n * size) + 1, int((n + 1) * size))]) for n in range(points)]


def ceiling(value: float) -> float:
    """Round up to 1, 2, 4, 5, 8 or 10 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= value * (1 - 1e-9))


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = "#1f2328", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{escape(text)}</text>'
    )
