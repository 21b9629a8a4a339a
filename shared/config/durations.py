"""Durations on command lines."""

from __future__ import annotations

import argparse
import re

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


def duration_s(text: str) -> float:
    """Seconds of a duration such as `90d`, `24h`, `30m` or `45s`.

    Raises:
        argparse.ArgumentTypeError: the text is no duration.
    """
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be a duration such as 90d, 24h, 30m or 45s, got {text!r}")
    return float(match[1]) * _UNITS[match[2]]
