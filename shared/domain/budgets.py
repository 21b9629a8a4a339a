"""Budgets: how much may be spent in a window of time, and what a new job reserves of that."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Context, Decimal
from enum import StrEnum
from zoneinfo import ZoneInfo

# Exact for token counts and rates of any length that they have; a sum of money is never rounded down.
MONEY = Context(prec=60, rounding=ROUND_CEILING)
# A budget with this end user has a window for each end user.
EACH_END_USER = "*"
# When the window of `total` begins.
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


class Period(StrEnum):
    """How long the windows of a budget are."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    TOTAL = "total"


class OnExceed(StrEnum):
    """How a hard budget treats a job that would exceed it."""

    REJECT = "reject"
    # Background jobs wait for the next window; others are rejected.
    HOLD = "hold"
    # A job of a route gets a cheaper model of that route; one without is rejected.
    DOWNGRADE = "downgrade"


class BudgetScope(StrEnum):
    """Whose jobs a budget counts."""

    PROJECT = "project"
    KEY = "key"
    END_USER = "end_user"


@dataclass(frozen=True, slots=True)
class Window:
    """A window of time, from `starts_at` until before `ends_at`; None: it does not end."""

    starts_at: datetime
    ends_at: datetime | None


@dataclass(frozen=True, slots=True)
class WindowReservation:
    """What a job reserves in the window of a budget, in dollars."""

    window_id: int
    budget_id: int
    amount: Decimal


def window_at(period: Period, zone: ZoneInfo, moment: datetime) -> Window:
    """The window of a period that contains an aware time. Both of its ends are in UTC.

    Days, weeks (from Monday) and months begin at midnight in the time zone, so a day in which the clocks change has 23
    or 25 hours. If there is no midnight that day, it begins when the clocks are put forward; if there are two, at the
    first.
    """
    local = moment.astimezone(zone)
    if period is Period.TOTAL:
        return Window(_BEGINNING, None)
    if period is Period.HOUR:
        offset = local.utcoffset() or timedelta()
        wall = moment.astimezone(UTC) + offset
        start = wall.replace(minute=0, second=0, microsecond=0) - offset
        return Window(start, start + timedelta(hours=1))
    midnight = datetime(local.year, local.month, local.day)  # a wall clock's time
    if period is Period.DAY:
        first, following = midnight, midnight + timedelta(days=1)
    elif period is Period.WEEK:
        first = midnight - timedelta(days=midnight.weekday())
        following = first + timedelta(days=7)
    else:
        first = midnight.replace(day=1)
        following = (first + timedelta(days=31)).replace(day=1)
    return Window(_in_utc(first, zone), _in_utc(following, zone))


def _in_utc(wall: datetime, zone: ZoneInfo) -> datetime:
    return wall.replace(tzinfo=zone, fold=0).astimezone(UTC)


def dollars(amount: Decimal) -> str:
    """An amount of money for people: with two decimal places, or as many as it has, up to nine."""
    text = f"{amount:.9f}".rstrip("0")
    whole, _, fraction = text.partition(".")
    return f"${whole}.{fraction:0<2}"
