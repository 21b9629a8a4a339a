"""The base class of stores of jobs: it reads summaries, ends jobs and settles their followers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ARRAY, Integer, Select, Text, bindparam, column, func, select
from sqlalchemy.orm import aliased

from shared.domain.job import TERMINAL, JobSummary
from shared.postgres.followers import FOLLOWS, PORTION_BYTES, Ended, FollowerChange, read_change
from shared.postgres.job_ends import RESULTS, EndStatements, settle_statement
from shared.postgres.job_rows import LOG, to_summary
from shared.postgres.prepared import Prepared
from shared.postgres.store import Store, build_readable
from shared.postgres.tables import JobRow
from shared.runtime.outages import is_database_outage

logger = logging.getLogger(__name__)


def _groups_of_leaders() -> Select[Any]:
    """The groups that the jobs `ids` lead or have led. An id of which there is no job is that of a group."""
    wanted = func.unnest(bindparam("ids", type_=ARRAY(Text))).table_valued(column("id", Text)).render_derived("wanted")
    leader = aliased(JobRow)
    group = func.coalesce(leader.leads, wanted.c.id).label("id")
    return select(group).join_from(wanted, leader, leader.id == wanted.c.id, isouter=True).distinct()


_SETTLE = Prepared(settle_statement(_groups_of_leaders(), portion_bytes=bindparam("portion_bytes", type_=Integer)))
_FOLLOWER = bindparam("follower", type_=Text)
_SETTLE_FOLLOWER = Prepared(
    settle_statement(select(JobRow.follows.label("id")).where(JobRow.id == _FOLLOWER, FOLLOWS), follower=_FOLLOWER)
)


class JobRowStore(Store):
    """The base class of stores of jobs."""

    async def _summaries(self, statement: Select[Any]) -> list[JobSummary]:
        """Build summaries from rows, without those that this version cannot read."""
        return await self._readable(statement, to_summary)

    async def _read_summaries(self, statement: Prepared, **parameters: object) -> list[JobSummary]:
        """As `_summaries`, with a statement that was compiled before."""
        return build_readable(await statement.run(self._engine, parameters), to_summary)

    async def _end(
        self, statements: EndStatements, results: Sequence[dict[str, Any]], **values: object
    ) -> list[Ended | None]:
        """Run an `end_statement`; return for each result what its end has changed, or None if it was not written.

        The caller has to pass these to `_settled`: not here, because an error would mean that nothing was written.
        """
        rows = await statements.of(results).run(self._engine, {**RESULTS.parameters(results), **values})
        leads = {row.id: row.leader is not None for row in rows if row.status is None}
        changes = [read_change(row) for row in rows if row.status is not None]
        return [
            Ended(tuple(change for change in changes if change.leader == item["id"]), leads[item["id"]])
            if item["id"] in leads
            else None
            for item in results
        ]

    async def _settled(self, job_id: str, ended: Ended | None) -> Ended | None:
        """Settle the first portion of the followers of a job that has ended, and add their changes.

        A failure of that is no error: the job has ended, and readers and sweeps settle the others.
        """
        if ended is None or not ended.leads:
            return ended
        return replace(ended, followers=(*ended.followers, *await self._settle_after_commit(job_id)))

    async def _settle_after_commit(self, leader: str) -> list[FollowerChange]:
        """As `settle`; without changes if that fails: the end of the leader has been written."""
        try:
            return await self._settle_portion(leader)
        except Exception as error:
            trace = None if is_database_outage(error) else error
            message = "job=%s cannot settle the jobs that follow it, a sweep will: %s"
            logger.warning(message, leader, error, exc_info=trace)
            return []

    async def _settle_portion(self, leader: str) -> list[FollowerChange]:
        return await self.settle([leader])

    async def settle(self, leaders: Sequence[str]) -> list[FollowerChange]:
        """End or release a portion of the followers that are not to wait any more, of those that these jobs have led.

        Returns the changes. Instead of a job, its group may be given.
        """
        parameters = {"ids": list(leaders), "portion_bytes": PORTION_BYTES // max(1, len(leaders))}
        return [read_change(row) for row in await _SETTLE.run(self._engine, parameters)]

    async def settle_follower(self, follower: str) -> list[FollowerChange]:
        """End or release a follower, if it is not to wait any more. Returns the change, if there is one."""
        rows = await _SETTLE_FOLLOWER.run(self._engine, {"follower": follower})
        return [replace(read_change(row), first=False) for row in rows]

    async def archived_log(self, job_id: str) -> str | None:
        """Return the events of a job that has ended, as lines; None if it has not ended."""
        statement = select(LOG.label("log")).where(JobRow.id == job_id, JobRow.status.in_(TERMINAL))
        return await self._one(statement, lambda row: row.log or "")  # a deleted job has no log
