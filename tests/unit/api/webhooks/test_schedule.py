"""When deliveries are tried again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from api.webhooks.schedule import (
    BREAKER_THRESHOLD,
    LAST_RETRY_S,
    LIFETIME_S,
    MAX_BREAKER_S,
    breaker_pause_s,
    retry_after_s,
    retry_pause_s,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_pauses_grow_from_5_seconds_to_12_hours() -> None:
    pauses = [[retry_pause_s(tries) for _ in range(200)] for tries in range(1, 14)]
    assert 4 <= min(pauses[0]) < max(pauses[0]) <= 6, "and vary"
    averages = [sum(some) / len(some) for some in pauses]
    assert averages == sorted(averages)
    assert max(max(some) for some in pauses) == LAST_RETRY_S == 12 * 3600
    assert 12 < sum(1 for _ in _tries()) < 20


def _tries() -> list[float]:
    """When a delivery is tried that never succeeds."""
    times, tries = [0.0], 1
    while (at := times[-1] + retry_pause_s(tries)) <= LIFETIME_S:
        times.append(at)
        tries += 1
    return times


def test_the_receiver_can_ask_for_a_longer_pause_within_bounds() -> None:
    assert retry_pause_s(1, 120.0) == 120
    assert retry_pause_s(1, 0.0) >= 4
    assert retry_pause_s(1, 1e9) == LAST_RETRY_S


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("120", 120.0),
        (" 7 ", 7.0),
        (format_datetime(NOW + timedelta(minutes=2), usegmt=True), 120.0),
        (format_datetime(NOW - timedelta(minutes=2), usegmt=True), 0.0),
        (None, None),
        ("", None),
        ("-5", None),
        ("soon", None),
        ("1e3", None),
        ("²", None),
        ("9" * 65, None),
    ],
)
def test_retry_after(value: str | None, expected: float | None) -> None:
    assert retry_after_s(value, NOW) == expected


def test_an_endpoint_is_left_alone_after_failures_in_a_row() -> None:
    assert breaker_pause_s(BREAKER_THRESHOLD - 1) == 0
    pauses = [breaker_pause_s(BREAKER_THRESHOLD + more) for more in range(40)]
    assert pauses[:3] == [15, 30, 60]
    assert pauses[-1] == MAX_BREAKER_S
