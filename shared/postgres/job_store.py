"""SQL for the client's operations on jobs: submit, read, list, cancel and delete.

Every change of a job's state is one guarded statement, here, in `shared.postgres.claim_store` or in
`shared.postgres.recovery_store`. The two that all of them share, which create and end a job, are in
`shared.postgres.job_inserts` and `shared.postgres.job_ends`. A guard names the states that may be left and, for a
worker, the attempt and worker that own the job, so that a duplicate, late or fenced write changes nothing and reports
that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    JSON,
    BigInteger,
    Boolean,
    Double,
    Integer,
    LargeBinary,
    Select,
    SmallInteger,
    Text,
    and_,
    bindparam,
    case,
    func,
    insert,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.orm import aliased

from shared.domain.answer_options import NO_REQUEST_OPTIONS, RequestOptions
from shared.domain.conversation import ConversationNote, EarlierAnswer
from shared.domain.decisions import NO_DECISIONS, CacheOutcome, Decisions
from shared.domain.errors import ErrorCode, KeyReused
from shared.domain.job import (
    TERMINAL,
    Choice,
    Job,
    JobStatus,
    JobSummary,
    OpenBreaker,
    WorkerState,
    new_job_id,
)
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.request_context import REQUEST_CONTEXT, RequestContext
from shared.domain.response import ResponseFacts
from shared.postgres.engine import transaction
from shared.postgres.followers import COALESCED, LEADER, group_of, with_cache_decision
from shared.postgres.group_commit import GroupCommit
from shared.postgres.job_conditions import IS_QUEUED, IS_RUNNING
from shared.postgres.job_inserts import cached_answers, insert_answered, insert_queued
from shared.postgres.job_purge import purge_statement, release_statement
from shared.postgres.job_row_store import JobRowStore
from shared.postgres.job_rows import COLUMNS, LOG, OUTPUT, SUMMARY_COLUMNS, read_job, to_output, to_summary
from shared.postgres.prepared import Prepared
from shared.postgres.store import Records, json_text, readable, seconds
from shared.postgres.summary_deletion import delete_summaries
from shared.postgres.tables import CachedAnswerRow, IdempotencyKeyRow, JobRow, ResponseRow, WorkerRow
from shared.runtime.offload import off_loop
from shared.runtime.outages import is_database_outage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to create. `start_within_s` and `finish_within_s` count from its creation.

    Until it is admitted, `model` may be a route, and `options` say how it may be answered; admission replaces the route
    by a model, and sets the fields from `requested_model` on. `earlier_answer` is the one that the request continues,
    if it names one. `note` is to be remembered before the job is stored.
    """

    owner: Owner
    model: str
    priority: int
    request: GenerateRequest
    metadata: dict[str, str] = field(default_factory=dict)
    start_within_s: float | None = None
    finish_within_s: float | None = None
    request_context: RequestContext = field(default_factory=REQUEST_CONTEXT.get)
    response: ResponseFacts | None = None
    options: RequestOptions = NO_REQUEST_OPTIONS
    earlier_answer: EarlierAnswer | None = None
    requested_model: str | None = None
    kind: str | None = None
    decisions: Decisions = NO_DECISIONS
    cache_key: bytes | None = None
    note: ConversationNote | None = None


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A client's `Idempotency-Key`, and the digest of the request that it was sent with."""

    key: str
    request_sha256: str


@dataclass(frozen=True, slots=True)
class UnreadableJob:
    """What can be said about a job whose row this version may not be able to read."""

    id: str
    model: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class _Inserted:
    """The values of a new job that the database sets."""

    created_at: datetime
    start_before: datetime | None
    finish_before: datetime | None
    follows: str | None


_NEW = Records(
    "new",
    id=Text,
    project_id=BigInteger,
    key_id=BigInteger,
    end_user=Text,
    model=Text,
    priority=SmallInteger,
    request=JSON,
    request_bytes=Integer,
    prompt_bytes=Integer,
    choices=SmallInteger,
    metadata=JSON,
    start_within_s=Double,
    finish_within_s=Double,
    request_id=Text,
    traceparent=Text,
    requested_model=Text,
    kind=Text,
    decisions=JSONB,
    cache_key=LargeBinary,
    max_age_s=Integer,
    demands_new=Boolean,
    since_lookup_s=Double,
)
_VALUES = {
    JobRow.project_id: _NEW.project_id,
    JobRow.key_id: _NEW.key_id,
    JobRow.end_user: _NEW.end_user,
    JobRow.priority: _NEW.priority,
    JobRow.request_bytes: _NEW.request_bytes,
    JobRow.prompt_bytes: _NEW.prompt_bytes,
    JobRow.start_before: func.now() + seconds(_NEW.start_within_s),
    JobRow.finish_before: func.now() + seconds(_NEW.finish_within_s),
    JobRow.request_id: _NEW.request_id,
    JobRow.traceparent: _NEW.traceparent,
    JobRow.requested_model: _NEW.requested_model,
    JobRow.kind: _NEW.kind,
    JobRow.decisions: _NEW.decisions,
}
_RESPONSES = Records(
    "response", job_id=Text, request_params=JSON, input=JSON, previous_id=Text, background=Boolean, stored=Boolean
)
_RESPONSE_COLUMNS = {
    ResponseRow.job_id: _RESPONSES.job_id,
    ResponseRow.asked: _RESPONSES.request_params,
    ResponseRow.input: _RESPONSES.input,
    ResponseRow.previous_id: _RESPONSES.previous_id,
    ResponseRow.background: _RESPONSES.background,
    ResponseRow.stored: _RESPONSES.stored,
}


def _with_responses(statement: Select[Any], inserted: CTE) -> Prepared:
    """Also insert the responses of the inserted jobs: one statement, one commit."""
    responses = select(*_RESPONSE_COLUMNS.values()).where(_RESPONSES.job_id.in_(select(inserted.c.id)))
    rows = insert(ResponseRow).from_select(list(_RESPONSE_COLUMNS), responses)
    return Prepared(statement.add_cte(rows.cte("responses_inserted")))


class _Insertion:
    """A statement that inserts queued jobs, and the one that inserts their responses too."""

    def __init__(self, insertion: Any) -> None:
        returning = insertion.returning(JobRow.id, JobRow.created_at, JobRow.start_before, JobRow.finish_before, LEADER)
        inserted = returning.cte("inserted")
        self._plain = Prepared(returning)
        self._with_responses = _with_responses(select(*inserted.c), inserted)

    def of(self, new: Sequence[dict[str, Any]]) -> tuple[Prepared, dict[str, Any]]:
        """The statement that inserts these records, and its parameters."""
        for item in new:
            if item["looked_up_at"] is not None:
                item["since_lookup_s"] = time.monotonic() - item["looked_up_at"]
        responses = [item["response"] for item in new if item["response"] is not None]
        if not responses:
            return self._plain, _NEW.parameters(new)
        return self._with_responses, _NEW.parameters(new) | _RESPONSES.parameters(responses)


# An entry has the time at which the statement that wrote it began, and can be read up to this much later.
_END_S = 5
_LEADER = aliased(JobRow, name="leader")


def _may_lead(records: Select[Any]) -> Select[Any]:
    """Those records whose answer was not stored after it was looked up, in the same order as in other statements."""
    # One entry by its key: PostgreSQL could read all entries for an EXISTS.
    stored = (
        select(CachedAnswerRow.key)
        .where(
            CachedAnswerRow.key == _NEW.cache_key,
            CachedAnswerRow.created_at > func.now() - seconds(_NEW.since_lookup_s + _END_S),
            or_(_NEW.max_age_s.is_(None), CachedAnswerRow.created_at > func.now() - seconds(_NEW.max_age_s)),
        )
        .limit(literal_column("1"))
        .scalar_subquery()
    )
    return records.where(or_(_NEW.demands_new, stored.is_(None))).order_by(_NEW.cache_key)


def _with_leader(records: Select[Any]) -> Select[Any]:
    """Those records whose key an open job has."""
    return records.where(
        _LEADER.cache_key == _NEW.cache_key,
        _LEADER.project_id == _NEW.project_id,
        _LEADER.model == _NEW.model,
        _LEADER.follows.is_(None),
        _LEADER.finished_at.is_(None),
    )


# A new job does not follow one that waits with a lower priority, which would delay it, nor if it demands a new answer.
_FOLLOWS = and_(
    ~_NEW.demands_new,
    or_(_LEADER.status != literal_column(f"'{JobStatus.QUEUED.value}'"), _LEADER.priority <= _NEW.priority),
)
# A job that neither leads nor follows. Without a key, it stores no answer either.
_INSERT = _Insertion(insert_queued(_NEW, {**_VALUES, JobRow.entry_key: _NEW.cache_key}))
# Of several open jobs with the same key, one leads. The others are not inserted.
_LEAD = _Insertion(
    insert_queued(_NEW, {**_VALUES, JobRow.cache_key: _NEW.cache_key}, _may_lead).on_conflict_do_nothing()
)
# The others follow it, or run beside it.
_JOIN = _Insertion(
    insert_queued(
        _NEW,
        {
            **_VALUES,
            JobRow.cache_key: case((_FOLLOWS, _NEW.cache_key)),
            JobRow.entry_key: case((~_FOLLOWS, _NEW.cache_key)),
            JobRow.follows: case((_FOLLOWS, group_of(_LEADER))),
            JobRow.dispatched_at: case((~_FOLLOWS, func.now())),
            JobRow.decisions: case(
                (_FOLLOWS, with_cache_decision(_NEW.decisions, outcome=COALESCED, source=_LEADER.id)),
                else_=_NEW.decisions,
            ),
        },
        _with_leader,
    )
)
_ANSWERED, _ANSWER_STATEMENT = insert_answered(_NEW, _VALUES)
_ANSWER = Prepared(_ANSWER_STATEMENT)
_ANSWER_WITH_RESPONSES = _with_responses(_ANSWER_STATEMENT, _ANSWERED)
_LOOKUPS = Records("lookup", id=Text, cache_key=LargeBinary, project_id=BigInteger, model=Text, max_age_s=Integer)
_LOOKUP = Prepared(cached_answers(_LOOKUPS))


def _job_query(columns: Sequence[Any], job_id: str, project_id: int | None) -> Any:
    statement = select(*columns).where(JobRow.id == job_id, JobRow.deleted_at.is_(None))
    return statement if project_id is None else statement.where(JobRow.project_id == project_id)


# Characters of the archived log in one page.
ARCHIVE_PAGE = 128 * 1024


@dataclass(frozen=True, slots=True)
class ArchivePage:
    """Lines of an archived log. `next_start` is the position after them; None if they are the last."""

    text: str
    next_start: int | None


def _archive_query(start: Any) -> Prepared:
    """Read a page of an archived log from a position."""
    page = func.coalesce(func.substr(LOG, start, bindparam("size", type_=Integer)), "")  # none if deleted
    ended = JobRow.status.in_(TERMINAL).label("ended")
    columns = (ended, LEADER, page.label("page"), start.label("start"))
    return Prepared(select(*columns).where(JobRow.id == bindparam("job", type_=Text)))


_ARCHIVE_PAGE = _archive_query(bindparam("position", type_=Integer))
# A line starts with its number. If the cursor's line is missing, Redis had lost the log; then all lines count.
_CURSOR_LINE = func.strpos(LOG, func.concat("\n", bindparam("after", type_=BigInteger), " "))
_ARCHIVE_PAGE_AFTER = _archive_query(func.coalesce(_CURSOR_LINE, 0) + 1)


class JobStore(JobRowStore):
    """Jobs in PostgreSQL."""

    def __init__(self, engine: AsyncEngine, region: str = "") -> None:
        super().__init__(engine, region)
        self._commits = {
            insertion: GroupCommit(partial(self._insert, insertion), weigh=_weight)
            for insertion in (_INSERT, _LEAD, _JOIN)
        }
        self._lookups = GroupCommit(self._look_up)
        self._answers = GroupCommit(self._answer, weigh=lambda record: _weight(record) + int(record["answer_bytes"]))

    async def insert(self, new: NewJob, idempotency: Idempotency | None = None) -> tuple[Job, bool]:
        """Commit a new `queued` job; return it, and True. When this returns, the job is durable.

        If the idempotency key was used before, return the job of its first use, and False. The row of the key is
        committed with the row of its job, and a concurrent use of the same key waits for that.

        Raises:
            KeyReused: the key was used with another request, or its job was deleted.
        """
        created = await self._create(new, idempotency, _INSERT)
        assert created is not None, "it is inserted without conditions"
        return created

    async def coalesce(
        self, new: NewJob, idempotency: Idempotency | None = None, *, looked_up_at: float | None = None
    ) -> tuple[Job, bool] | None:
        """As `insert`, for a job with a cache key: it leads the later ones with the key, or follows an open job that
        has it.

        It does neither if an open job leads that it is not to follow, because it is more urgent or its request demands
        a new answer. None: nothing was written; the leader has ended meanwhile, and the cache may have its answer.
        `looked_up_at`: when the last lookup in the cache began, by the monotonic clock;
        None: just now.
        """
        return await self._create(new, idempotency, _LEAD, looked_up_at) or await self._create(
            new, idempotency, _JOIN, looked_up_at
        )

    async def _create(
        self, new: NewJob, idempotency: Idempotency | None, insertion: _Insertion, looked_up_at: float | None = None
    ) -> tuple[Job, bool] | None:
        """Insert a job; return None if the insertion's conditions do not hold."""
        job_id, record = await self._new_record(new)
        record["looked_up_at"] = looked_up_at
        if idempotency is None:
            inserted = await self._commits[insertion](record)
            return None if inserted is None else (_job(job_id, new, inserted), True)
        async with transaction(self._engine) as connection:
            existing_id = await _claim_key(connection, new.owner, idempotency, job_id)
            if existing_id is None:
                prepared, parameters = insertion.of([record])
                (inserted,) = _in_order(await connection.execute(prepared.statement, parameters), [record])
                if inserted is None:
                    await connection.rollback()
                    return None
                return _job(job_id, new, inserted), True
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
            return None if row is None else (await _answered_job(new, row), True)
        async with transaction(self._engine) as connection:
            existing_id = await _claim_key(connection, new.owner, idempotency, job_id)
            if existing_id is None:
                prepared, parameters = _answer_statement([record])
                row = (await connection.execute(prepared.statement, parameters)).first()
                if row is None:
                    await connection.rollback()
                    return None
        if existing_id is not None:
            return await self._job_of_key(existing_id), False
        return await _answered_job(new, row), True

    async def _new_record(self, new: NewJob) -> tuple[str, dict[str, Any]]:
        job_id = new_job_id(self._region)
        return job_id, await off_loop(new.request.size + new.request.options_size, _record, job_id, new)

    async def find_created(self, owner: Owner, idempotency: Idempotency) -> Job | None:
        """Return the job that an earlier call with an idempotency key created; None if there was none.

        Raises:
            KeyReused: as `insert`.
        """
        async with self._engine.connect() as connection:
            existing_id = await _job_id_of_key(connection, owner, idempotency)
        return None if existing_id is None else await self._job_of_key(existing_id)

    async def _job_of_key(self, job_id: str) -> Job:
        job = await self.get(job_id)
        if job is None:
            raise KeyReused("The job of this Idempotency-Key was deleted.")
        return job

    async def _insert(self, insertion: _Insertion, new: Sequence[dict[str, Any]]) -> list[_Inserted | None]:
        prepared, parameters = insertion.of(new)
        return _in_order(await prepared.run(self._engine, parameters), new)

    async def _answer(self, new: Sequence[dict[str, Any]]) -> list[Any | None]:
        prepared, parameters = _answer_statement(new)
        rows = {row.id: row for row in await prepared.run(self._engine, parameters)}
        return [rows.get(item["id"]) for item in new]

    async def _look_up(self, lookups: Sequence[dict[str, Any]]) -> list[int | None]:
        found = {row.id: row.bytes for row in await _LOOKUP.run(self._engine, _LOOKUPS.parameters(lookups))}
        return [found.get(lookup["id"]) for lookup in lookups]

    async def get(self, job_id: str, project_id: int | None = None) -> Job | None:
        """Return a job; with `project_id`, only if that project owns it.

        Raises:
            UnreadableRow: this version cannot read its row.
        """
        row = await self._first(_job_query(COLUMNS, job_id, project_id))
        return await read_job(row) if row is not None else None

    async def summary(self, job_id: str, project_id: int | None = None) -> JobSummary | None:
        """Return a job without its request and its output; with `project_id`, only if that project owns it."""
        return await self._one(_job_query(SUMMARY_COLUMNS, job_id, project_id), to_summary)

    async def result(self, job_id: str, project_id: int) -> tuple[JobSummary, tuple[Choice, ...]] | None:
        """Return a project's job without its request, and its output."""
        row = await self._first(_job_query((*SUMMARY_COLUMNS, OUTPUT), job_id, project_id))
        if row is None:
            return None
        with readable("job", job_id):
            return to_summary(row), await off_loop(len(row.output or ""), to_output, row.output)

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
            row, text = rows[0], str(rows[0].page)
            if len(text) < size:
                return ArchivePage(text, None)
            if end := text.rfind("\n") + 1:
                return ArchivePage(text[:end], row.start + end)
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

        The summaries of its conversation are deleted too, with those of the jobs that wrote them. Returns the ids of
        the jobs, this one's first; none if there is no such job.
        """
        async with transaction(self._engine) as connection:
            statement = purge_statement(JobRow.id == job_id, JobRow.project_id == project_id)
            row = (await connection.execute(statement)).first()
            if row is None:
                return []
            deleted = [job_id]
            if row.conversation is not None:
                deleted += await delete_summaries(connection, project_id, row.conversation)
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


def _record(job_id: str, new: NewJob) -> dict[str, Any]:
    request = new.request.model_dump_json(exclude_none=True, exclude_defaults=True)
    return {
        "id": job_id,
        "project_id": new.owner.project_id,
        "key_id": new.owner.key_id,
        "end_user": new.owner.end_user,
        "model": new.model,
        "priority": new.priority,
        "request": request,
        "request_bytes": len(request),
        "prompt_bytes": new.request.prompt_bytes,
        "choices": new.request.sampling.n,
        "metadata": new.metadata,
        "start_within_s": new.start_within_s,
        "finish_within_s": new.finish_within_s,
        "request_id": new.request_context.request_id,
        "traceparent": new.request_context.traceparent,
        "requested_model": new.requested_model,
        "kind": new.kind,
        "decisions": new.decisions.stored(),
        "cache_key": new.cache_key,
        "max_age_s": new.options.cache_control.max_age_s,
        "demands_new": new.options.cache_control.no_cache,
        # When the response cache was looked up, by the monotonic clock, and how long ago that is at the insertion.
        "looked_up_at": None,
        "since_lookup_s": 0.0,
        "response": None if new.response is None else _response_record(job_id, new.response),
    }


def _response_record(job_id: str, response: ResponseFacts) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "request_params": json_text(response.request_params),
        "input": json_text(response.input),
        "previous_id": response.previous_id,
        "background": response.background,
        "stored": response.stored,
    }


def _weight(record: dict[str, Any]) -> int:
    response = record["response"]
    return len(record["request"]) * (1 if response is None else 2)  # both rows of a response have its input


def _job(job_id: str, new: NewJob, inserted: _Inserted) -> Job:
    decisions = new.decisions
    if inserted.follows is not None and (cache := decisions.cache) is not None:
        coalesced = cache.model_copy(update={"outcome": CacheOutcome.COALESCED.value, "source": inserted.follows})
        decisions = decisions.model_copy(update={"cache": coalesced})
    return Job(
        id=job_id,
        owner=new.owner,
        model=new.model,
        status=JobStatus.QUEUED,
        priority=new.priority,
        request=new.request,
        choices=new.request.sampling.n,
        metadata=new.metadata,
        created_at=inserted.created_at,
        start_before=inserted.start_before,
        finish_before=inserted.finish_before,
        request_context=new.request_context,
        requested_model=new.requested_model,
        kind=new.kind,
        decisions=decisions,
        follows=inserted.follows,
    )


async def _answered_job(new: NewJob, row: Any) -> Job:
    """The job of a row that `insert_answered` has returned."""
    summary = to_summary(row)
    values = {field.name: getattr(summary, field.name) for field in fields(summary)}
    return Job(**values, request=new.request, output=await off_loop(len(row.output or ""), to_output, row.output))


def _answer_statement(new: Sequence[dict[str, Any]]) -> tuple[Prepared, dict[str, Any]]:
    """The statement that answers these records from the cache, and its parameters."""
    responses = [item["response"] for item in new if item["response"] is not None]
    if not responses:
        return _ANSWER, _NEW.parameters(new)
    return _ANSWER_WITH_RESPONSES, _NEW.parameters(new) | _RESPONSES.parameters(responses)


def _in_order(rows: Iterable[Any], new: Sequence[dict[str, Any]]) -> list[_Inserted | None]:
    """Return the inserted values in the order of the records; None for those that were not inserted."""
    inserted = {row.id: _Inserted(row.created_at, row.start_before, row.finish_before, row.follows) for row in rows}
    return [inserted.get(item["id"]) for item in new]


# How long a transaction that has claimed an idempotency key may wait for this process.
_MAX_IDLE_MS = 10_000


async def _claim_key(connection: AsyncConnection, owner: Owner, idempotency: Idempotency, job_id: str) -> str | None:
    """Claim an idempotency key for a job. If it was used before, return the id of the job that has it."""
    claim = (
        upsert(IdempotencyKeyRow)
        .values(
            project_id=owner.project_id,
            key=idempotency.key,
            key_id=owner.key_id,
            request_sha256=idempotency.request_sha256,
            job_id=job_id,
        )
        .on_conflict_do_nothing()
        # Others may wait for it, whole batches if the job leads: if this process hangs, the server rolls it back.
        .returning(func.set_config("idle_in_transaction_session_timeout", f"{_MAX_IDLE_MS}", true()))
    )
    if (await connection.execute(claim)).first() is not None:
        return None
    existing_id = await _job_id_of_key(connection, owner, idempotency)
    assert existing_id is not None
    return existing_id


async def _job_id_of_key(connection: AsyncConnection, owner: Owner, idempotency: Idempotency) -> str | None:
    """Return the id of the job that has an idempotency key; None if the key was not used."""
    existing = select(IdempotencyKeyRow.request_sha256, IdempotencyKeyRow.job_id).where(
        IdempotencyKeyRow.project_id == owner.project_id, IdempotencyKeyRow.key == idempotency.key
    )
    row = (await connection.execute(existing)).first()
    if row is None:
        return None
    if row.request_sha256 != idempotency.request_sha256:
        raise KeyReused
    return str(row.job_id)
