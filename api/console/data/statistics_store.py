"""SQL that keeps the statistics of ended jobs."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, DateTime, Text, bindparam, cast, delete, func, literal, select, union_all
from sqlalchemy.dialects.postgresql import JSONB, insert

from api.console.data.job_counts import counted
from shared.postgres.engine import transaction
from shared.postgres.prepared import Prepared
from shared.postgres.store import Store
from shared.postgres.tables import JobRow, JobStatisticsRow, PastPauseRow

# Identifies the advisory lock of the process that counts.
_LOCK = 0x6872_0001
# The model of the row that says that a minute was counted.
MARK = ""
_EMPTY = cast(literal("{}", Text), JSONB)
_LAST_MINUTE = Prepared(select(func.max(JobStatisticsRow.minute).label("minute")))

_FIRST_ENDED = Prepared(
    select(func.min(JobRow.finished_at).label("moment")).where(
        JobRow.finished_at >= bindparam("since", type_=DateTime(timezone=True))
    )
)


class StatisticsStore(Store):
    """Counts jobs minute by minute."""

    async def counted_until(self) -> datetime | None:
        """The end of the last minute that was counted."""
        (row,) = await _LAST_MINUTE.run(self._engine, {})
        last: datetime | None = row.minute
        return None if last is None else last + timedelta(minutes=1)

    async def first_ended(self, since: datetime) -> datetime | None:
        """When the first job ended that has ended since then; None if none has."""
        (row,) = await _FIRST_ENDED.run(self._engine, {"since": since})
        moment: datetime | None = row.moment
        return moment

    async def count(self, start: datetime, end: datetime) -> bool:
        """Count the jobs that ended from the minute `start` to the minute `end`, again if they were counted before.

        False: another process is counting.
        """
        async with transaction(self._engine) as connection:
            if not await connection.scalar(select(func.pg_try_advisory_xact_lock(_LOCK))):
                return False
            await connection.execute(_count(start, end))
            return True

    async def delete(self, before: datetime) -> None:
        """Delete the statistics of earlier minutes, and the pauses that ended earlier."""
        await self._changes(delete(JobStatisticsRow).where(JobStatisticsRow.minute < before))
        await self._changes(delete(PastPauseRow).where(PastPauseRow.resumed_at < before))


def uncounted_from(start: Any) -> Any:
    """A scalar: from which time on jobs that ended after `start` were not counted yet."""
    last = select(func.max(JobStatisticsRow.minute) + timedelta(minutes=1)).scalar_subquery()
    until = select(func.greatest(func.coalesce(last, start), start).label("until")).cte("until")
    return select(until.c.until).scalar_subquery()


def _count(start: datetime, end: datetime) -> Any:
    jobs = counted(start, end).subquery("jobs")

    def by(column: Any) -> Any:
        counts = func.jsonb_object_agg(cast(column, Text), jobs.c.jobs, type_=JSONB).filter(column.is_not(None))
        return func.coalesce(counts, _EMPTY)

    minutes = func.generate_series(start, end - timedelta(minutes=1), timedelta(minutes=1)).column_valued("minute")
    marks = select(
        minutes,
        literal(MARK, Text),
        literal(True),
        _EMPTY,
        _EMPTY,
        cast(0, BigInteger),
        _EMPTY,
        _EMPTY,
    )
    counts = select(
        jobs.c.minute,
        jobs.c.model,
        jobs.c.interactive,
        by(jobs.c.status),
        by(jobs.c.error_code),
        cast(func.coalesce(func.sum(jobs.c.tokens), 0), BigInteger),
        by(jobs.c.first_token),
        by(jobs.c.wait),
    ).group_by(jobs.c.minute, jobs.c.model, jobs.c.interactive)
    columns = [column.key for column in JobStatisticsRow.__table__.columns]
    statement = insert(JobStatisticsRow).from_select(columns, union_all(counts, marks))
    keys = [JobStatisticsRow.minute, JobStatisticsRow.model, JobStatisticsRow.interactive]
    values = {name: statement.excluded[name] for name in columns if name not in ("minute", "model", "interactive")}
    return statement.on_conflict_do_update(index_elements=keys, set_=values)
