"""Times in queries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from api.http.times import FIRST, LAST, within_limits

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("moment", "found"),
    [
        (NOON, NOON),
        (NOON.replace(tzinfo=None), NOON),
        (datetime(2026, 11, 30, 14, tzinfo=timezone(timedelta(hours=2))), NOON),
        (datetime.min, FIRST),
        (datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))), LAST),
    ],
)
def test_times_are_within_limits(moment: datetime, found: datetime) -> None:
    assert within_limits(moment) == found
