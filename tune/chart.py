"""The results as an SVG chart, without a library: a row for each candidate, a panel of bars for each figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from tune.candidates import BASELINE, COMBINED
from tune.proposal import perplexity_rise, reference_of
from tune.results import Row

WIDTH, LABELS, GAP, TOP, ROW, BAR, BOTTOM = 960, 250, 30, 64, 26, 14, 16
# Room for the number behind the longest bar.
NUMBER = 48

# Readers see the chart on a light or a dark page; an image follows the scheme of the browser.
STYLE = """\
<style>
  text { font: 12px sans-serif; fill: #1f2328 }
  .title { font-size: 14px; font-weight: bold }
  .page { fill: #ffffff } .bar { fill: #6e9fe6 } .baseline { fill: #8c959f } .combined { fill: #1f6feb }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .page { fill: #0d1117 } .bar { fill: #2f5f9e } .baseline { fill: #6e7681 } .combined { fill: #58a6ff }
  }
</style>"""


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars of one figure. `value`: None if a row does not have it."""

    title: str
    value: Callable[[Row], float | None]
    text: Callable[[float], str]


def svg(title: str, rows: Sequence[Row]) -> str:
    """Draw the candidates that ran."""
    shown = [row for row in rows if row.figures.speed]
    reference = reference_of(rows)
    streams = sorted({number for row in shown for number in row.figures.speed})
    panels = [
        Panel(f"tokens/s, {number} stream{'s' if number > 1 else ''}", _speed(number), lambda value: f"{value:.0f}")
        for number in streams
        if number in (1, 16, max(streams))
    ]
    panels.append(Panel("peak memory, MB", _memory, lambda value: f"{value:.0f}"))
    height = TOP + ROW * len(shown) + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        STYLE,
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
        _text(12, 22, title, "title"),
    ]
    for number, row in enumerate(shown):
        rise = perplexity_rise(row, reference)
        name = row.name if len(row.name) <= 30 else f"{row.name[:29]}…"
        if rise is not None and rise > 0.01:
            name += f" (perplexity {rise:+.0%})"
        parts.append(_text(LABELS - 8, _middle(number) + 4, name[:48], anchor="end"))
    width = (WIDTH - LABELS) / len(panels)
    for number, panel in enumerate(panels):
        parts += _panel(panel, shown, LABELS + number * width, width - GAP)
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, rows: Sequence[Row], left: float, width: float) -> list[str]:
    values = [panel.value(row) for row in rows]
    longest = max((value for value in values if value is not None), default=0.0) or 1.0
    parts = [_text(left, TOP - 12, panel.title)]
    for number, (row, value) in enumerate(zip(rows, values, strict=True)):
        if value is None:
            parts.append(_text(left, _middle(number) + 4, "–"))
            continue
        length = (width - NUMBER) * value / longest
        kind = {BASELINE: "baseline", COMBINED: "combined"}.get(row.group, "bar")
        top = _middle(number) - BAR / 2
        parts.append(f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{length:.1f}" height="{BAR}" rx="2"/>')
        parts.append(_text(left + length + 5, _middle(number) + 4, panel.text(value)))
    return parts


def _middle(number: int) -> float:
    return TOP + ROW * (number + 0.5)


def _speed(streams: int) -> Callable[[Row], float | None]:
    return lambda row: row.figures.speed.get(streams)


def _memory(row: Row) -> float | None:
    value = row.figures.gpu_memory or row.figures.memory
    return None if value is None else value / 1e6


def _text(x: float, y: float, text: str, kind: str = "", *, anchor: str = "start") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
