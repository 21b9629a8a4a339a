"""Durations such as `90s`, in requests and on command lines."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection

_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 24 * 3600.0}

# A later time could not be represented.
_MAX_ARGUMENT_S = 1_000_000 * 24 * 3600


def seconds_of(text: str, units: Collection[str], *, fractions: bool = False) -> float | None:
    """Seconds of a duration in one of these units, of which "" is none at all; None if the text is not a duration."""
    match = re.fullmatch(r"([0-9]{1,9})(\.[0-9]{1,6})?([a-z]*)", text)
    if match is None or match[3] not in units or (match[2] is not None and not fractions):
        return None
    return float(match[1] + (match[2] or "")) * _UNITS[match[3]]


def duration_s(text: str) -> float:
    """Seconds of a duration on the command line, such as `90d`, `24h`, `30m` or `45s`.

    Raises:
        argparse.ArgumentTypeError: the text is not a duration.
    """
    seconds = seconds_of(text, ("s", "m", "h", "d"))
    if seconds is None or seconds > _MAX_ARGUMENT_S:
        raise argparse.ArgumentTypeError(f"must be a duration such as 90d, 24h, 30m or 45s, got {text!r}")
    return seconds
