"""Durations of requests and on command lines."""

from __future__ import annotations

from argparse import ArgumentTypeError

import pytest

from shared.config.durations import duration_s, seconds_of

ALL = ("", "ms", "s", "m", "h", "d")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("500ms", 0.5), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("7d", 604_800), ("0", 0)],
)
def test_seconds(text: str, seconds: float) -> None:
    assert seconds_of(text, ALL, fractions=True) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "1 s", "1.s", ".5s", "1e3", "1w", "1S", "1000000000s", "\u0661s", "1s\n"]
)
def test_what_is_not_a_duration(text: str) -> None:
    assert seconds_of(text, ALL, fractions=True) is None


def test_units_and_fractions_are_accepted_where_they_are_named() -> None:
    assert seconds_of("90", ("s",)) is None
    assert seconds_of("1d", ("s", "h")) is None
    assert seconds_of("1.5h", ("h",)) is None


def test_arguments() -> None:
    assert duration_s("90d") == 90 * 24 * 3600
    for text in ("90", "1.5h", "500ms", "9999999d"):
        with pytest.raises(ArgumentTypeError, match=r"such as 90d, 24h, 30m or 45s"):
            duration_s(text)
