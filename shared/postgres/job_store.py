"""SQL for the client's operations on jobs: submit, read, list, cancel and delete.

Every change of a job's state is one guarded statement, here, in `claim_store`, `lost_jobs`, `rerouting` or
`recovery_store`. The two that all of them share, which create and end a job, are in `job_inserts` and `job_ends`. A
guard names the states that may be left and, for a worker, the attempt and worker that own the job, so that a duplicate,
late or fenced write changes nothing and reports that.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any

from sqlalchemy import ARRAY, BigInteger, Integer, Text, bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.errors import ErrorCode, KeyReused
from shared.domain.job import TERMINAL, Choice, Job, JobStatus, JobSummary, OpenBreaker, WorkerState, new_job_id
from shared.domain.new_job import Idempotency, NewJob
from shared.domain.owner import Owner
from shared.postgres.budgets import Refused
from shared.postgres.engine import transaction
from shared.postgres.followers import LEADER
from shared.postgres.group_commit import GroupCommit
from shared.postgres.idempotency_keys import claim_key, job_id_of_key
from shared.postgres.job_conditions import IS_QUEUED, IS_RUNNING
from shared.postgres.job_purge import purge_jobs, purge_statement, release_statement
from shared.postgres.job_row_store import JobRowStore
from shared.postgres.job_rows import (
    ARCHIVE_PAGE,
    CHARGE,
    COLUMNS,
    LOG,
    OUTPUT,
    SUMMARY_COLUMNS,
    read_job,
    to_output,
    to_summary,
)
from shared.postgres.new_jobs import (
    INSERT,
    JOIN,
    LEAD,
    LOOKUP,
    LOOKUPS,
    Inserted,
    Insertion,
    answer_statement,
    answered_job,
    created_job,
    in_order,
    new_record,
    weight,
)
from shared.postgres.prepared import Prepared
from shared.postgres.quality_deletion import delete_quality_texts
from shared.postgres.store import readable
from shared.postgres.summary_deletion import delete_summaries
from shared.postgres.tables import JobRow, WorkerRow
from shared.postgres.usage_tables import UsageEventRow
from shared.runtime.offload import off_loop
from shared.runtime.outages import is_database_outage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UnreadableJob:
    """What can be said about a job whose row this version may not be able to read."""

    id: str
    model: str
    created_at: datetime


def _job_query(columns: Sequence[Any], job_id: str, project_id: int | None) -> Any:
    statement = select(*columns).where(JobRow.id == job_id, JobRow.deleted_at.is_(None))
    return statement if project_id is None else statement.where(JobRow.project_id == project_id)


@dataclass(frozen=True, slots=True)
class ArchivePage:
    """Lines of an archived log. `next_start` is the position after them; None if they are the last."""

    text: str
    next_start: int | None

    @classmethod
    def of(cls, text: str, start: int, size: int) -> ArchivePage | None:
        """The lines in a part of a log that was read from `start` on, up to `size` characters; None if there is no
        whole line."""
        if len(text) < size:
            return cls(text, None)
        end = text.rfind("\n") + 1
        return cls(text[:end], start + end) if end else None


def _archive_query(start: Any) -> Prepared:
    """Read a page of an archived log from a position."""
    page = func.coalesce(func.substr(LOG, start, bindparam("size", type_=Integer)), "")  # none if deleted
    ended = JobRow.status.in_(TERMINAL).label("ended")
    columns = (ended, LEADER, page.label("page"), start.label("start"))
    return Prepared(select(*columns).where(JobRow.id == bindparam("job", type_=Text)))


_ARCHIVE_PAGE = _archive_query(bindparam("position", type_=Integer))
_CHARGES = Prepared(
    select(func.sum(UsageEventRow.charge).label("charge"))
    .where(UsageEventRow.job_id == func.any(bindparam("job_ids", type_=ARRAY(Text))), UsageEventRow.final)
    .group_by(UsageEventRow.job_id)
)
# A line starts with its number. If the cursor's line is missing, Redis had lost the log; then all lines count.
_CURSOR_LINE = func.strpos(LOG, func.concat("\n", bindparam("after", type_=BigInteger), " "))
_ARCHIVE_PAGE_AFTER = _archive_query(func.coalesce(_CURSOR_LINE, 0) + 1)


class JobStore(JobRowStore):
    """Jobs in PostgreSQL."""

    def __init__(self, engine: AsyncEngine, region: str = "") -> None:
        super().__init__(engine, region)
        self._commits = {
            insertion: GroupCommit(partial(self._insert, insertion), weigh=weight) for insertion in (INSERT, LEAD, JOIN)
        }
        self._lookups = GroupCommit(self._look_up)
        self._answers = GroupCommit(self._answer, weigh=lambda record: weight(record) + int(record["answer_bytes"]))

    async def insert(self, new: NewJob, idempotency: Idempotency | None = None) -> tuple[Job, bool]:
        """Commit a new `queued` job; return it, and True. When this returns, the job is durable.

        If the idempotency key was used before, return the job of its first use, and False. The row of the key is
        committed with the row of its job, and a concurrent use of the same key waits for that.

        Raises:
            BudgetExceeded: a window in which the job reserves has no room for it; nothing was written.
            KeyReused: the key was used with another request, or its job was deleted.
        """
        created = await self._create(new, idempotency, INSERT)
        assert created is not None, "it is inserted without conditions"
        return created

    async def coalesce(
        self, new: NewJob, idempotency: Idempotency | None = None, *, looked_up_at: float | None = None
    ) -> tuple[Job, bool] | None:
        """As `insert`, for a job with a cache key and without a delay: it leads the later ones with the key, or follows
        an open job that has it.

        It does neither if an open job leads that it is not to follow, because it is more urgent or its request demands
        a new answer. None: nothing was written; the leader has ended meanwhile, and the cache may have its answer.
        `looked_up_at`: when the last lookup in the cache began, by the monotonic clock;
        None: just now.

        Raises:
            BudgetExceeded, KeyReused: as `insert`.
        """
        return await self._create(new, idempotency, LEAD, looked_up_at) or await self._create(
            new, idempotency, JOIN, looked_up_at
        )

    async def _create(
        self, new: NewJob, idempotency: Idempotency | None, insertion: Insertion, looked_up_at: float | None = None
    ) -> tuple[Job, bool] | None:
        """Insert a job; return None if the insertion's conditions do not hold."""
        job_id, record = await self._new_record(new)
        record["looked_up_at"] = looked_up_at
        if idempotency is None:
            inserted = await self._commits[insertion](record)
            if isinstance(inserted, Exception):
                raise inserted
            return None if inserted is None else (created_job(job_id, new, inserted), True)
        async with transaction(self._engine) as connection:
            existing_id = await claim_key(connection, new.owner, idempotency, job_id)
            if existing_id is None:
                prepared, parameters = insertion.of([record])
                (outcome,) = in_order(await connection.execute(prepared.statement, parameters), [record])
                if isinstance(outcome, Refused):
                    assert outcome.error is not None, "it is the only job"
                    raise outcome.error  # rolls back
                if outcome is None:
                    await connection.rollback()
                    return None
                return created_job(job_id, new, outcome), True
        return await self._job_of_key(existing_id), False

    async def cached_bytes(self, new: NewJob) -> int | None:
        """The size of the answer that the response cache has for a job; None if it has none. Nothing is written."""
        record = {
            "id": new_job_id(self._region),
            "cache_key": new.cache_key,
            "project_id": new.owner.project_id,
            "model": new.model,
            "max_age_s": new.options.cache_control.max_age_s,
        }
        return await self._lookups(record)

    async def answer(
        self, new: NewJob, idempotency: Idempotency | None = None, *, answer_bytes: int = 0
    ) -> tuple[Job, bool] | None:
        """Commit a new `completed` job with the answer that the response cache has for it; return it, and True.

        None: there is no such answer, and nothing was written. With an idempotency key that was used before: as
        `insert`, and whether there is an answer does not matter. `answer_bytes`: its size, from `cached_bytes`.

        Raises:
            KeyReused: as `insert`.
        """
        job_id, record = await self._new_record(new)
        if idempotency is None:
            row = await self._answers({**record, "answer_bytes": answer_bytes})
            return None if row is None else (await answered_job(new, row), True)
        async with transaction(self._engine) as connection:
            existing_id = await claim_key(connection, new.owner, idempotency, job_id)
            if existing_id is None:
                prepared, parameters = answer_statement([record])
                row = (await connection.execute(prepared.statement, parameters)).first()
                if row is None:
                    await connection.rollback()
                    return None
        if existing_id is not None:
            return await self._job_of_key(existing_id), False
        return await answered_job(new, row), True

    async def _new_record(self, new: NewJob) -> tuple[str, dict[str, Any]]:
        job_id = new_job_id(self._region)
        return job_id, await off_loop(new.request.size + new.request.options_size, new_record, job_id, new)

    async def find_created(self, owner: Owner, idempotency: Idempotency) -> Job | None:
        """Return the job that an earlier call with an idempotency key created; None if there was none.

        Raises:
            KeyReused: as `insert`.
        """
        async with self._engine.connect() as connection:
            existing_id = await job_id_of_key(connection, owner, idempotency)
        return None if existing_id is None else await self._job_of_key(existing_id)

    async def _job_of_key(self, job_id: str) -> Job:
        job = await self.get(job_id)
        if job is None:
            raise KeyReused("The job of this Idempotency-Key was deleted.")
        return job

    async def _insert(self, insertion: Insertion, new: Sequence[dict[str, Any]]) -> list[Inserted | Exception | None]:
        """Insert jobs that arrived together; return an outcome for each, which may be its error.

        Those that budgets have room for, without others which were refused, are inserted by further statements.
        """
        prepared, parameters = insertion.of(new)
        outcomes = in_order(await prepared.run(self._engine, parameters), new)
        again = [place for place, outcome in enumerate(outcomes) if isinstance(outcome, Refused) and not outcome.error]
        found: list[Inserted | Exception | None] = [
            outcome.error if isinstance(outcome, Refused) else outcome for outcome in outcomes
        ]
        if again:
            try:
                others = await self._insert(insertion, [new[place] for place in again])
            except Exception as error:  # the first statement is committed
                others = [error] * len(again)
            for place, outcome in zip(again, others, strict=True):
                found[place] = outcome
        return found

    async def _answer(self, new: Sequence[dict[str, Any]]) -> list[Any | None]:
        prepared, parameters = answer_statement(new)
        rows = {row.id: row for row in await prepared.run(self._engine, parameters)}
        return [rows.get(item["id"]) for item in new]

    async def _look_up(self, lookups: Sequence[dict[str, Any]]) -> list[int | None]:
        found = {row.id: row.bytes for row in await LOOKUP.run(self._engine, LOOKUPS.parameters(lookups))}
        return [found.get(lookup["id"]) for lookup in lookups]

    async def get(self, job_id: str, project_id: int | None = None) -> Job | None:
        """Return a job; with `project_id`, only if that project owns it.

        Raises:
            UnreadableRow: this version cannot read its row.
        """
        row = await self._first(_job_query((*COLUMNS, CHARGE), job_id, project_id))
        return await read_job(row) if row is not None else None

    async def summary(self, job_id: str, project_id: int | None = None) -> JobSummary | None:
        """Return a job without its request and its output; with `project_id`, only if that project owns it."""
        return await self._one(_job_query(SUMMARY_COLUMNS, job_id, project_id), to_summary)

    async def result(self, job_id: str, project_id: int) -> tuple[JobSummary, tuple[Choice, ...]] | None:
        """Return a project's job without its request, and its output."""
        row = await self._first(_job_query((*SUMMARY_COLUMNS, OUTPUT, CHARGE), job_id, project_id))
        if row is None:
            return None
        with readable("job", job_id):
            return to_summary(row), await off_loop(len(row.output or ""), to_output, row.output)

    async def charge(self, job_ids: Sequence[str]) -> Decimal | None:
        """What ended jobs are charged together, in dollars. None if a part has no price, or a job has no entry."""
        rows = await _CHARGES.run(self._engine, {"job_ids": list(job_ids)})
        charges = [row.charge for row in rows]
        if len(charges) < len(job_ids) or None in charges:
            return None
        return sum(charges, Decimal(0))

    async def archive_page(self, job_id: str, *, after: int = 0, start: int = 0) -> ArchivePage | None:
        """Return the next lines of the archived log of a job that has ended; None if it has not ended.

        `start` is the position from the previous page; without it, the page begins about the event after `after`.
        """
        found = await self.archive_page_or_leader(job_id, after=after, start=start)
        return found if isinstance(found, ArchivePage) else None

    async def archive_page_or_leader(self, job_id: str, *, after: int = 0, start: int = 0) -> ArchivePage | str | None:
        """As `archive_page`; of a job that has not ended, return the job that it follows."""
        size = ARCHIVE_PAGE
        while True:
            values = {"job": job_id, "size": size}
            if after and not start:
                rows = await _ARCHIVE_PAGE_AFTER.run(self._engine, {**values, "after": after})
            else:
                rows = await _ARCHIVE_PAGE.run(self._engine, {**values, "position": start or 1})
            if not rows or not rows[0].ended:
                leader: str | None = rows[0].follows if rows else None
                return leader
            if (page := ArchivePage.of(str(rows[0].page), rows[0].start, size)) is not None:
                return page
            size *= 8  # a line is longer than a page

    async def archived_last_seq(self, job_id: str) -> int | None:
        """Return the number of the last event of a job that has ended; 0 if it has no log, None if it has not ended."""
        last = func.split_part(func.split_part(LOG, "\n", -1), " ", 1)
        statement = select(last.label("seq")).where(JobRow.id == job_id, JobRow.status.in_(TERMINAL))
        return await self._one(statement, lambda row: int(row.seq or 0))

    async def ended(self, job_ids: Sequence[str]) -> set[str]:
        """Return the ids of those jobs that have ended."""
        statement = select(JobRow.id).where(
            JobRow.id == func.any(bindparam("ids", list(job_ids), type_=ARRAY(Text))), JobRow.status.in_(TERMINAL)
        )
        async with self._engine.connect() as connection:
            return set((await connection.execute(statement)).scalars())

    async def has_ended(self, job_id: str) -> tuple[bool, str | None]:
        """Whether a job has ended; if not, also the job that it follows."""
        statement = select(JobRow.status.in_(TERMINAL).label("ended"), LEADER).where(JobRow.id == job_id)
        row = await self._first(statement)
        return (False, None) if row is None else (row.ended, None if row.ended else row.follows)

    async def delete(self, job_id: str, project_id: int) -> Sequence[str]:
        """Delete the input and output of a job that has ended; the row remains, for accounting.

        Its body in the request log is deleted too, as are the summaries of its conversation, with those of the jobs
        that wrote them, and what people and judges have written about its answer. Returns the ids of the jobs whose
        logs are to be deleted, this one's first; none if there is no such job.
        """
        async with transaction(self._engine) as connection:
            statement = purge_statement(JobRow.id == job_id, JobRow.project_id == project_id)
            rows = await purge_jobs(connection, statement)
            if not rows:
                return []
            row, deleted = rows[0], [job_id]
            if row.conversation is not None:
                deleted += await delete_summaries(connection, project_id, row.conversation)
            deleted += await delete_quality_texts(connection, project_id, job_id)
        try:
            await self._changes(release_statement(JobRow.id == job_id))
        except Exception as error:
            if not is_database_outage(error):
                raise
            logger.warning("job=%s was deleted; a sweep will remove its answer: %s", job_id, error)
        return deleted

    async def mark_cancelling(self, job_id: str) -> str | None:
        """Request the cancellation of a running job. Returns its worker, or None if it is not running."""
        statement = (
            update(JobRow)
            .where(JobRow.id == job_id, IS_RUNNING)
            .values({JobRow.status: JobStatus.CANCELLING.value})
            .returning(JobRow.worker)
        )
        async with self._engine.connect() as connection:
            return (await connection.execute(statement)).scalar_one_or_none()

    async def exhausted(self, limit: int = 1000) -> list[JobSummary]:
        """Return the jobs that failed because their workers or engines died too often, newest first."""
        statement = (
            select(*SUMMARY_COLUMNS)
            .where(
                JobRow.status == JobStatus.FAILED.value,
                JobRow.error_code == ErrorCode.ATTEMPTS_EXHAUSTED.value,
                JobRow.deleted_at.is_(None),
            )
            .order_by(JobRow.id.desc())
            .limit(limit)
        )
        return await self._summaries(statement)

    async def unreadable(self, limit: int = 1000) -> list[UnreadableJob]:
        """Return the queued jobs that a worker withheld because it could not read them, newest first."""
        statement = (
            select(JobRow.id, JobRow.model, JobRow.created_at)
            .where(IS_QUEUED, JobRow.unreadable_at.is_not(None))
            .order_by(JobRow.id.desc())
            .limit(limit)
        )
        return await self._all(statement, lambda row: UnreadableJob(row.id, row.model, row.created_at))

    async def live_workers(self) -> dict[str, int]:
        """Count the workers that are alive and ready, by model."""
        states = await self.worker_states()
        return {model: count for (model, state), count in states.items() if state == WorkerState.READY}

    async def worker_states(self) -> dict[tuple[str, str], int]:
        """Count the workers that are alive, by model and state."""
        statement = (
            select(WorkerRow.model, WorkerRow.state, func.count().label("workers"))
            .where(WorkerRow.lease_expires_at > func.clock_timestamp())
            .group_by(WorkerRow.model, WorkerRow.state)
        )
        async with self._engine.connect() as connection:
            return {(row.model, row.state): row.workers for row in await connection.execute(statement)}

    async def open_breakers(self) -> dict[str, OpenBreaker]:
        """The models of which a live worker's circuit breaker is open: since when on the first one, and why."""
        statement = (
            select(WorkerRow.model, WorkerRow.breaker_since, WorkerRow.breaker_reason)
            .where(WorkerRow.lease_expires_at > func.clock_timestamp(), WorkerRow.breaker_since.is_not(None))
            .order_by(WorkerRow.breaker_since.desc())
        )
        async with self._engine.connect() as connection:
            rows = await connection.execute(statement)
            return {row.model: OpenBreaker(row.breaker_since, row.breaker_reason) for row in rows}
