"""Text of models, clients and files, made safe for a terminal; and numbers with units."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

# C0 without tab and newline, DEL, and C1: with these, a text could move the cursor, rename the window, or more.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Besides those: what breaks a line, and what makes a terminal show text in another order than it is stored in.
_NOT_IN_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# JSON may contain these as they are, but a terminal must not receive them, and UTF-8 cannot encode the last.
_NOT_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def without_controls(text: str) -> str:
    """Remove control characters other than tab and newline; what is left of an escape sequence is plain text."""
    return _CONTROL.sub("", text)


def one_line(text: object) -> str:
    """A value for a table or a message: line breaks and control characters become spaces."""
    return _NOT_IN_LINE.sub(" ", str(text))


def to_json(value: Any) -> str:
    """Encode as JSON on one line, readable, and without characters that a terminal interprets."""
    text = json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
    return _NOT_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def with_param(message: str, param: str | None) -> str:
    """An error's message that also names the parameter: `must be positive (limit)`, `There is none (model).`"""
    if not param or param in message:
        return message
    sentence = message.removesuffix(".")
    return f"{sentence} ({param}){message[len(sentence) :]}"


def count(number: float | None) -> str:
    """A number with separators, or `-` if it is unknown."""
    return "-" if number is None else f"{number:,.0f}"


def duration(seconds: float | None) -> str:
    """A duration in the unit that fits: `213 ms`, `1.24 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`."""
    if seconds is None:
        return "-"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def milliseconds(value: float | None) -> str:
    """A duration that is given in milliseconds."""
    return duration(None if value is None else value / 1000)


def age(timestamp: str | float | None, now: datetime | None = None) -> str:
    """Time since a timestamp, in one unit: `12 s`, `5 min`, `3 h`, `2 d`; `-` if there is none."""
    if timestamp is None:
        return "-"
    then = parse_time(timestamp)
    seconds = max(0.0, ((now or datetime.now(UTC)) - then).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def local_time(timestamp: str | float | None) -> str:
    """A timestamp in the local time zone, to the second; `-` if there is none."""
    return "-" if timestamp is None else f"{parse_time(timestamp).astimezone():%Y-%m-%d %H:%M:%S}"


def parse_time(timestamp: str | float) -> datetime:
    """Parse a timestamp of the API: ISO 8601, or Unix time in seconds."""
    if isinstance(timestamp, str):
        return datetime.fromisoformat(timestamp)
    return datetime.fromtimestamp(timestamp, UTC)


def size(number: float) -> str:
    """A number of bytes in the unit that fits."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def percent(share: float | None) -> str:
    """A share from 0 to 1 in per cent, or `-` if it is unknown."""
    return "-" if share is None else f"{share:.0%}".replace("%", " %")


def dollars(amount: float | None) -> str:
    """An amount of money: with cents, or with four digits if it is small; `-` if it is unknown."""
    if amount is None:
        return "-"
    decimals = 2
    while decimals < 9 and 0 < abs(amount) * 10 ** (decimals - 3) < 1:
        decimals += 1
    return f"{'-' if amount < 0 else ''}${abs(amount):,.{decimals}f}"


def rate(tokens_per_s: float | None) -> str:
    """A speed, or `-` if it is unknown."""
    return "-" if tokens_per_s is None else f"{tokens_per_s:,.1f} tokens/s"
