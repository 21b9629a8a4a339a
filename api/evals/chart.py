"""A comparison as an SVG picture, without a library: the difference with its interval, and what the judge preferred.

Pictures are read on light and on dark pages; as an image, one follows the scheme of the browser.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from api.evals.statistics import Difference

WIDTH, LEFT, RIGHT, TOP, ROW, BOTTOM = 720, 200, 40, 64, 44, 56

STYLE = """\
<style>
  text { font: 12px sans-serif; fill: #1f2328 }
  .title { font-size: 14px; font-weight: bold } .soft { fill: #57606a }
  .page { fill: #ffffff } .axis { stroke: #d0d7de } .zero { stroke: #57606a; stroke-dasharray: 3 3 }
  .range { stroke: #0969da; stroke-width: 3 } .mean { fill: #0969da }
  .a { fill: #8c959f } .tie { fill: #d8dee4 } .b { fill: #1f6feb }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .soft { fill: #8d96a0 }
    .page { fill: #0d1117 } .axis { stroke: #30363d } .zero { stroke: #8d96a0 }
    .range { stroke: #58a6ff } .mean { fill: #58a6ff }
    .a { fill: #6e7681 } .tie { fill: #21262d } .b { fill: #58a6ff }
  }
</style>"""


def svg(
    title: str,
    difference: Difference,
    *,
    a: str,
    b: str,
    what: str,
    shares: tuple[int, int, int] | None = None,
) -> str:
    """Draw a comparison. `what`: what the difference is measured in. `shares`: items on which `a` won, neither, `b`."""
    rows = 1 + (shares is not None)
    height = TOP + ROW * rows + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        STYLE,
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
        _text(12, 24, title, "title"),
        _text(12, 44, f"{what}; 95 % interval; n = {difference.n}", "soft"),
    ]
    parts += _interval(difference, a, b, TOP + ROW / 2, TOP + ROW * rows)
    if shares is not None:
        parts += _shares(shares, a, b, TOP + ROW + ROW / 2)
    return "\n".join([*parts, "</svg>", ""])


def _interval(difference: Difference, a: str, b: str, middle: float, bottom: float) -> list[str]:
    mean, interval = difference.mean, difference.interval
    ends = [value for value in (mean, *((interval.low, interval.high) if interval else ())) if value is not None]
    most = max((abs(value) for value in ends), default=1.0) * 1.2 or 1.0
    width = WIDTH - LEFT - RIGHT

    def at(value: float) -> float:
        return LEFT + width * (value + most) / (2 * most)

    parts = [
        _text(LEFT - 12, middle + 4, "difference", anchor="end"),
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom:.1f}" y2="{bottom:.1f}"/>',
        f'<line class="zero" x1="{at(0):.1f}" x2="{at(0):.1f}" y1="{TOP}" y2="{bottom:.1f}"/>',
        _text(at(0), bottom + 16, "0", anchor="middle"),
        _text(LEFT, bottom + 16, f"{_shortened(a)} is better", "soft"),
        _text(WIDTH - RIGHT, bottom + 16, f"{_shortened(b)} is better", "soft", anchor="end"),
    ]
    if interval is not None:
        parts.append(
            f'<line class="range" x1="{at(interval.low):.1f}" x2="{at(interval.high):.1f}"'
            f' y1="{middle:.1f}" y2="{middle:.1f}"/>'
        )
    if mean is not None:
        parts.append(f'<circle class="mean" cx="{at(mean):.1f}" cy="{middle:.1f}" r="5"/>')
        parts.append(_text(at(mean), middle - 10, f"{mean:+.3f}", anchor="middle"))
    return parts


def _shares(shares: Sequence[int], a: str, b: str, middle: float) -> list[str]:
    total = sum(shares) or 1
    x, width = float(LEFT), WIDTH - LEFT - RIGHT
    parts = [_text(LEFT - 12, middle + 4, "preferred", anchor="end")]
    for name, count, kind in zip((a, "neither", b), shares, ("a", "tie", "b"), strict=True):
        part = width * count / total
        parts.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{middle - 9:.1f}" width="{part:.1f}" height="18">'
            f"<title>{escape(name)}: {count}</title></rect>"
        )
        if part > 28:
            parts.append(_text(x + part / 2, middle + 22, str(count), "soft", anchor="middle"))
        x += part
    return parts


def _shortened(name: str) -> str:
    return name if len(name) <= 30 else f"{name[:29]}…"


def _text(x: float, y: float, text: str, kind: str = "", *, anchor: str = "start") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
