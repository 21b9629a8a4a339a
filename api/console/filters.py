"""How values are written on pages: numbers with units, durations, times."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

from markupsafe import Markup, escape

NONE = "–"
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
# A prefix and the time, what is left out, and the end with the region code.
_ID = re.compile(r"([a-z]+[-_][^_]{8})[^_]{3,}([^_]{6}(?:_[a-z0-9]+)?)")
_CODE = re.compile(r"`([^`]+)`")
_TIME_STYLES = {"time": "%H:%M:%S", "day": "%-d %b %Y", "full": "%-d %b %Y, %H:%M:%S"}
_SCALES = ((1e9, "B"), (1e6, "M"), (1e3, "k"))


class Quantity(NamedTuple):
    """A number and its unit, which a page may set apart."""

    number: str
    unit: str

    def __str__(self) -> str:
        return f"{self.number} {self.unit}".strip()


def number(value: float | None) -> str:
    """A number with separated thousands: `1,204`, `0.25`."""
    if value is None:
        return NONE
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:.3g}"


def compact(value: float | None) -> str:
    """A number of at most four characters and a letter: `970`, `1.2k`, `48k`, `3.1M`."""
    if value is None:
        return NONE
    for scale, letter in _SCALES:
        # Values just below a scale round up to it: 999,600 is 1.0M and not 1000k.
        if abs(value) >= scale * 0.9995:
            scaled = value / scale
            return f"{scaled:.1f}{letter}" if abs(scaled) < 9.95 else f"{scaled:.0f}{letter}"
    return number(value if isinstance(value, int) else round(value))


def money(amount: Decimal | int | None) -> str:
    """An amount in dollars: `$1,204.50`, and of small ones two digits: `$0.0042`."""
    if amount is None:
        return NONE
    value = Decimal(amount)
    if not value:
        return "$0"
    decimals = min(12, max(2, 1 - value.adjusted()))
    return f"{'−' if value < 0 else ''}${abs(value):,.{decimals}f}"  # a minus


def percent(share: float | None) -> str:
    """A share of 1 as a percentage: `62 %`, `0.4 %`."""
    if share is None:
        return NONE
    points = share * 100
    return f"{points:.0f} %" if points >= 9.95 or points == 0 else f"{points:.1f} %"


def quantity(seconds: float | None) -> Quantity:
    """A duration in the unit that gives it two or three digits: `184 ms`, `1.8 s`, `2 min 5 s`."""
    if seconds is None:
        return Quantity(NONE, "")
    if seconds < 0.9995:
        return Quantity(f"{seconds * 1000:.0f}" if seconds >= 0.00995 or not seconds else f"{seconds * 1000:.1f}", "ms")
    if seconds < 99.5:
        return Quantity(f"{seconds:.1f}" if seconds < 9.95 else f"{seconds:.0f}", "s")
    for unit, smaller, size, parts in (("min", "s", 60, 60), ("h", "min", 3600, 60), ("d", "h", 86400, 24)):
        whole, rest = divmod(round(seconds / (size / parts)), parts)
        if unit == "d" or whole < (60 if unit == "min" else 24):
            return Quantity(f"{whole}", f"{unit} {rest} {smaller}" if rest else unit)
    raise AssertionError("days are the last unit")


def duration(seconds: float | None) -> str:
    """A duration as text: `184 ms`, `1.8 s`, `2 min 5 s`, `3 h 20 min`, `4 d`."""
    return str(quantity(seconds))


def milliseconds(value: float | None) -> str:
    """A duration in milliseconds as text, as `duration`."""
    return duration(None if value is None else value / 1000)


def size(value: int | None) -> str:
    """A number of bytes: `512 B`, `1.5 KiB`, `12 MiB`."""
    if value is None:
        return NONE
    scaled, unit = float(value), _BINARY[0]
    for unit in _BINARY:
        if scaled < 1023.5 or unit == _BINARY[-1]:
            break
        scaled /= 1024
    return f"{scaled:.0f} {unit}" if scaled >= 9.95 or unit == "B" else f"{scaled:.1f} {unit}"


def plural(count: int | None, one: str, many: str | None = None) -> str:
    """A count and its noun: `1 job`, `1,204 jobs`."""
    return f"{number(count)} {one if count == 1 else many or f'{one}s'}"


def time(moment: datetime | None, style: str = "time") -> Markup:
    """A time that a script rewrites to the viewer's zone; without scripts, in UTC. The exact time is its title.

    `style`: `time` (14:02:11, and the day if it is not today), `day` (30 Nov 2026), or `full` (both).
    """
    if moment is None:
        return escape(NONE)
    utc = moment.astimezone(UTC)
    exact = utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    shown = utc.strftime(_TIME_STYLES[style])
    # Neither has characters that would need an escape. `Markup.format` takes several times as long.
    return Markup(f'<time datetime="{exact}" data-style="{style}" title="{exact}">{shown}</time>')  # noqa: S704


def short_id(text: str) -> str:
    """Both ends of an id, `job_01a2241e…11eaaf`: the first is the time, which ids of one moment have in common."""
    match = _ID.fullmatch(text)
    return f"{match[1]}…{match[2]}" if match else text


def copyable(text: str, shown: str | None = None) -> Markup:
    """An id in a fixed-width font, shortened, which a click copies."""
    whole, label = escape(text), escape(short_id(text) if shown is None else shown)
    button = f'<button type="button" class="copy mono" data-copy="{whole}" title="Copy {whole}">{label}</button>'
    return Markup(button)  # noqa: S704  # escaped


def coded(text: str) -> Markup:
    """A message whose `names` in backticks are code: what the API says is written for logs and clients too."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704  # escaped


def sparkline(values: Sequence[float | None], width: int = 200, height: int = 36) -> Markup:
    """A trend as a small SVG chart. Where there is no value, it has a gap."""
    top = max((value for value in values if value is not None), default=0) * 1.15 or 1.0
    step = width / max(len(values) - 1, 1)
    runs: list[list[str]] = [[]]
    starts: list[float] = []
    for index, value in enumerate(values):
        if value is None:
            runs.append([])
            continue
        if not runs[-1]:
            starts.append(index * step)
        runs[-1].append(f"{index * step:.1f} {height - value / top * height:.1f}")
    runs = [run for run in runs if run]
    line = " ".join(f"M{' L'.join(run if len(run) > 1 else run * 2)}" for run in runs)
    area = " ".join(
        f"M{start:.1f} {height} L{' L'.join(run)} L{start + step * (len(run) - 1):.1f} {height}Z"
        for start, run in zip(starts, runs, strict=True)
    )
    return Markup(
        '<svg class="spark" viewBox="0 0 {w} {h}" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        '<path class="spark-area" d="{area}"/><path class="spark-line" d="{line}"/></svg>'
    ).format(w=width, h=height, line=line, area=area)


FILTERS = {
    "number": number,
    "compact": compact,
    "money": money,
    "percent": percent,
    "quantity": quantity,
    "duration": duration,
    "milliseconds": milliseconds,
    "size": size,
    "plural": plural,
    "time": time,
    "short_id": short_id,
    "copyable": copyable,
    "coded": coded,
    "sparkline": sparkline,
}
