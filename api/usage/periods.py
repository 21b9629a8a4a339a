"""The periods that usage is reported by: days and months in a time zone, and OpenAI's buckets in UTC."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from shared.domain.errors import InvalidRequest

MAX_DAYS = 400
# No usage is older or newer, and the arithmetic of dates has its own limits.
FIRST, LAST = date(1970, 1, 2), date(9998, 12, 31)
_ZONE = re.compile(r"[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,2}")


@dataclass(frozen=True, slots=True)
class Periods:
    """Consecutive periods: the starts of all of them in ascending order, what they are called, and the end of the last.

    Without names, a report has only the whole time.
    """

    starts: Sequence[datetime]
    end: datetime
    names: Sequence[str] = ()

    @property
    def start(self) -> datetime:
        return self.starts[0]

    @classmethod
    def days(cls, first: date, end: date, zone: ZoneInfo) -> Self:
        """The days from `first` up to, but without, `end`."""
        found = [first + timedelta(days=number) for number in range((end - first).days)]
        return cls([midnight(day, zone) for day in found], midnight(end, zone), [str(day) for day in found])

    @classmethod
    def months(cls, first: date, end: date, zone: ZoneInfo) -> Self:
        """The months of these days. The first and the last may be incomplete."""
        days = [first]
        while (following := _next_month(days[-1])) < end:
            days.append(following)
        names = [f"{day:%Y-%m}" for day in days]
        return cls([midnight(day, zone) for day in days], midnight(end, zone), names)

    @classmethod
    def whole(cls, first: date, end: date, zone: ZoneInfo) -> Self:
        """All of these days together."""
        return cls([midnight(first, zone)], midnight(end, zone))

    @classmethod
    def of_width(cls, start: int, count: int, width_s: int) -> Self:
        """`count` periods of `width_s` seconds from a Unix time on."""
        starts = [datetime.fromtimestamp(start + number * width_s, UTC) for number in range(count)]
        return cls(starts, datetime.fromtimestamp(start + count * width_s, UTC), [""] * count)


def midnight(day: date, zone: ZoneInfo) -> datetime:
    """When a day begins in a time zone."""
    return datetime.combine(day, time.min, zone).astimezone(UTC)


def month_of(text: str) -> tuple[date, date]:
    """The first day of a month such as `2026-11`, and of the one after it.

    Raises:
        InvalidRequest: it is not a month.
    """
    try:
        first = date.fromisoformat(f"{text}-01")
    except ValueError:
        first = LAST
    if not FIRST < first < LAST or f"{first:%Y-%m}" != text:
        raise InvalidRequest(f"month: must be a month such as 2026-11, got {text[:64]!r}", param="month")
    return first, _next_month(first)


def days_of(start: date | None, end: date | None, zone: ZoneInfo, default_days: int) -> tuple[date, date]:
    """The days to report: from `start` up to, but without, `end`. By default up to today.

    Raises:
        InvalidRequest: there is no such day, or there are too many.
    """
    for name, day in (("start", start), ("end", end)):
        if day is not None and not FIRST <= day <= LAST:
            raise InvalidRequest(f"{name}: must be a day from {FIRST} to {LAST}, got {day}", param=name)
    tomorrow = datetime.now(zone).date() + timedelta(days=1)
    end = end or (tomorrow if start is None else max(tomorrow, start + timedelta(days=1)))
    start = start or max(FIRST, end - timedelta(days=default_days))
    if not start < end:
        raise InvalidRequest(f"end: must be after `start`, which is {start}; got {end}", param="end")
    if (end - start).days > MAX_DAYS:
        raise InvalidRequest(f"start: at most {MAX_DAYS} days can be reported at once", param="start")
    return start, end


def zone_of(name: str) -> ZoneInfo:
    """The time zone of this name.

    Raises:
        InvalidRequest: there is none.
    """
    try:
        if _ZONE.fullmatch(name):
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # the last ones: it is a folder or a file of another kind
        pass
    raise InvalidRequest(
        f"time_zone: must be the name of a time zone such as Europe/Berlin, got {name[:64]!r}", param="time_zone"
    )


def _next_month(day: date) -> date:
    return (day.replace(day=1) + timedelta(days=32)).replace(day=1)
