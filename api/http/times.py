"""Times in queries, within limits that PostgreSQL and Python can calculate with."""

from __future__ import annotations

from datetime import UTC, datetime

# No row is older or newer. Searches count from these times.
FIRST, LAST = datetime(1970, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)


def within_limits(moment: datetime) -> datetime:
    """A time within the limits. Without a zone, it is in UTC."""
    return min(max(moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment, FIRST), LAST)
