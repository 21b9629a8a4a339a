"""The windows of budgets, also where clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.budgets import Period, dollars, window_at

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("period", "zone", "moment", "starts_at", "ends_at"),
    [
        ("hour", "UTC", "2026-11-30T14:20:59Z", "2026-11-30T14:00Z", "2026-11-30T15:00Z"),
        ("hour", "Asia/Kathmandu", "2026-11-30T14:20Z", "2026-11-30T14:15Z", "2026-11-30T15:15Z"),
        ("day", "UTC", "2026-11-30T00:00Z", "2026-11-30T00:00Z", "2026-12-01T00:00Z"),
        ("day", "Europe/Berlin", "2026-11-30T23:30Z", "2026-11-30T23:00Z", "2026-12-01T23:00Z"),
        ("week", "UTC", "2026-12-06T23:59Z", "2026-11-30T00:00Z", "2026-12-07T00:00Z"),
        ("month", "UTC", "2026-12-31T23:59Z", "2026-12-01T00:00Z", "2027-01-01T00:00Z"),
        ("month", "America/New_York", "2026-03-01T04:59Z", "2026-02-01T05:00Z", "2026-03-01T05:00Z"),
        # The clocks change: days of 23 and of 25 hours, and the months with them.
        ("day", "Europe/Berlin", "2026-03-29T12:00Z", "2026-03-28T23:00Z", "2026-03-29T22:00Z"),
        ("day", "Europe/Berlin", "2026-10-25T12:00Z", "2026-10-24T22:00Z", "2026-10-25T23:00Z"),
        ("week", "Europe/Berlin", "2026-10-25T12:00Z", "2026-10-18T22:00Z", "2026-10-25T23:00Z"),
        ("month", "Europe/Berlin", "2026-10-25T12:00Z", "2026-09-30T22:00Z", "2026-10-31T23:00Z"),
        # Both hours from 2 to 3 o'clock are windows.
        ("hour", "Europe/Berlin", "2026-10-25T00:30Z", "2026-10-25T00:00Z", "2026-10-25T01:00Z"),
        ("hour", "Europe/Berlin", "2026-10-25T01:30Z", "2026-10-25T01:00Z", "2026-10-25T02:00Z"),
        # Without a midnight, and with two.
        ("day", "America/Santiago", "2026-09-06T12:00Z", "2026-09-06T04:00Z", "2026-09-07T03:00Z"),
        ("day", "America/Havana", "2026-11-01T12:00Z", "2026-11-01T04:00Z", "2026-11-02T05:00Z"),
    ],
)
def test_a_window_begins_in_its_time_zone(period: str, zone: str, moment: str, starts_at: str, ends_at: str) -> None:
    window = window_at(Period(period), ZoneInfo(zone), at(moment))
    assert (window.starts_at, window.ends_at) == (at(starts_at), at(ends_at))
    assert window.starts_at.tzinfo is UTC


def test_the_window_of_a_total_budget_does_not_end() -> None:
    early, late = (window_at(Period.TOTAL, BERLIN, at(f"{year}-06-01T00:00Z")) for year in (2026, 2126))
    assert early == late
    assert early.ends_at is None


@given(
    moment=st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC)),
    period=st.sampled_from([Period.HOUR, Period.DAY, Period.WEEK, Period.MONTH]),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/Santiago", "America/Havana", "Asia/Kathmandu"]),
)
def test_each_moment_is_in_one_window_and_windows_have_no_gaps(moment: datetime, period: Period, zone: str) -> None:
    window = window_at(period, ZoneInfo(zone), moment)
    assert window.ends_at is not None
    assert window.starts_at <= moment < window.ends_at
    last = window.ends_at - timedelta(microseconds=1)
    assert window_at(period, ZoneInfo(zone), window.starts_at) == window_at(period, ZoneInfo(zone), last) == window
    assert window_at(period, ZoneInfo(zone), window.ends_at).starts_at == window.ends_at


@pytest.mark.parametrize(
    ("amount", "text"),
    [("1", "$1.00"), ("0.5", "$0.50"), ("100", "$100.00"), ("0.000123", "$0.000123"), ("1234.5678", "$1234.5678")],
)
def test_an_amount_has_as_many_decimal_places_as_it_needs(amount: str, text: str) -> None:
    assert dollars(Decimal(amount)) == text
