"""Days and months in time zones."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from api.usage.periods import FIRST, LAST, MAX_DAYS, Periods, days_of, month_of, zone_of
from shared.domain.errors import InvalidRequest

BERLIN = ZoneInfo("Europe/Berlin")


def test_days_begin_at_midnight_of_the_zone() -> None:
    """The day on which the clocks are put back has 25 hours."""
    days = Periods.days(date(2026, 10, 24), date(2026, 10, 27), BERLIN)
    assert days.names == ["2026-10-24", "2026-10-25", "2026-10-26"]
    assert days.starts == [datetime(2026, 10, 23, 22, tzinfo=UTC), datetime(2026, 10, 24, 22, tzinfo=UTC),
                           datetime(2026, 10, 25, 23, tzinfo=UTC)]  # fmt: skip
    assert days.end == datetime(2026, 10, 26, 23, tzinfo=UTC)


def test_a_day_without_midnight_begins_when_the_clocks_are_put_forward() -> None:
    days = Periods.days(date(2026, 9, 6), date(2026, 9, 7), ZoneInfo("America/Santiago"))
    assert days.end - days.start == timedelta(hours=23)


def test_months() -> None:
    months = Periods.months(date(2026, 11, 15), date(2027, 1, 10), BERLIN)
    assert months.names == ["2026-11", "2026-12", "2027-01"]
    assert months.starts[1:] == [datetime(2026, 11, 30, 23, tzinfo=UTC), datetime(2026, 12, 31, 23, tzinfo=UTC)]
    assert month_of("2026-12") == (date(2026, 12, 1), date(2027, 1, 1))


@pytest.mark.parametrize("text", ["2026", "2026-13", "2026-1", "2026-11-01", "", "9999-12", "0000-01", "２０２６-11"])
def test_what_is_no_month(text: str) -> None:
    with pytest.raises(InvalidRequest, match="month: must be a month"):
        month_of(text)


@pytest.mark.parametrize(
    "name", ["", "Mars/Olympus", "../etc/passwd", "/etc/localtime", "Europe", "Europe/", "UTC\0", "utc+1", "a" * 500]
)
def test_what_is_no_time_zone(name: str) -> None:
    with pytest.raises(InvalidRequest, match="time_zone: must be the name"):
        zone_of(name)


def test_time_zones() -> None:
    assert zone_of("America/Argentina/Buenos_Aires") == ZoneInfo("America/Argentina/Buenos_Aires")
    assert zone_of("UTC").utcoffset(datetime.now()) == timedelta(0)


def test_default_days() -> None:
    today = datetime.now(BERLIN).date()
    start, end = days_of(None, None, BERLIN, 30)
    assert end - start == timedelta(days=30)
    assert end - today in (timedelta(days=1), timedelta(days=2))  # the second one if the day has just ended
    assert days_of(None, date(2026, 2, 1), BERLIN, 31) == (date(2026, 1, 1), date(2026, 2, 1))


@pytest.mark.parametrize(
    ("start", "end", "param"),
    [
        (date.min, None, "start"), (date.max, None, "start"), (None, date.min, "end"), (None, date.max, "end"),
        (date(2026, 1, 2), date(2026, 1, 2), "end"), (date(2026, 1, 2), date(2026, 1, 1), "end"),
        (FIRST, LAST, "start"), (date(2026, 1, 1), date(2026, 1, 1) + timedelta(days=MAX_DAYS + 1), "start"),
    ],
)  # fmt: skip
def test_days_that_are_not_possible(start: date | None, end: date | None, param: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        days_of(start, end, BERLIN, 30)
    assert error.value.param == param
