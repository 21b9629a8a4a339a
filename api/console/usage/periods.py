"""The time range of the page: hours or days, as they begin in a time zone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from api.usage.periods import Periods

RangeName = Literal["24h", "7d", "30d", "90d"]
DEFAULT_RANGE: RangeName = "30d"
_HOUR_S = 3600


class Span(NamedTuple):
    """A time range: its length in words, the number of its buckets, and what they are called."""

    text: str
    length: int
    bucket: str


RANGES: Mapping[RangeName, Span] = {
    "24h": Span("24 hours", 24, "hour"),
    "7d": Span("7 days", 7, "day"),
    "30d": Span("30 days", 30, "day"),
    "90d": Span("90 days", 90, "day"),
}


@dataclass(frozen=True, slots=True)
class Buckets:
    """The buckets of a time range, and their labels."""

    periods: Periods
    labels: Sequence[str]


def buckets_until(now: datetime, range_name: RangeName, zone: ZoneInfo) -> Buckets:
    """The buckets of a range that ends with the hour or the day in which `now` is."""
    span = RANGES[range_name]
    if span.bucket == "hour":
        first = (int(now.timestamp()) // _HOUR_S + 1 - span.length) * _HOUR_S
        hours = Periods.of_width(first, span.length, _HOUR_S)
        local = [start.astimezone(zone) for start in hours.starts]
        # With the offset: when clocks are put back, an hour is there twice.
        names = [start.isoformat(timespec="minutes") for start in local]
        return Buckets(replace(hours, names=names), [f"{start:%-d %b, %H:%M}" for start in local])
    tomorrow = now.astimezone(zone).date() + timedelta(days=1)
    days = Periods.days(tomorrow - timedelta(days=span.length), tomorrow, zone)
    return Buckets(days, [f"{start.astimezone(zone):%-d %b}" for start in days.starts])
