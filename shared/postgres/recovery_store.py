"""SQL for recovery: jobs that no live worker owns."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from sqlalchemy import (
    ARRAY,
    Boolean,
    ColumnElement,
    Double,
    Integer,
    Select,
    Text,
    and_,
    bindparam,
    case,
    delete,
    func,
    literal_column,
    or_,
    select,
    true,
)
from sqlalchemy.orm import aliased

from shared.domain.fallback import Availability
from shared.domain.job import JobStatus, JobSummary
from shared.domain.result import JobResult
from shared.postgres.followers import Ended, FollowerChange, leader_of, orphans, with_cache_decision
from shared.postgres.job_conditions import IS_QUEUED, is_kept, not_held, overdue
from shared.postgres.job_ends import EndStatements, result_record
from shared.postgres.job_rows import LOST, SUMMARY_COLUMNS
from shared.postgres.lost_jobs import LostJobStore, lost_jobs
from shared.postgres.message_store import MessageStore, withheld_for
from shared.postgres.prepared import Prepared
from shared.postgres.rerouting import Move, ReroutingStore, is_movable, paused_models, served_models
from shared.postgres.store import seconds
from shared.postgres.tables import IdempotencyKeyRow, JobRow, WorkerRow
from shared.postgres.upstream_cancellations import Cancellation, UpstreamCancellations

_FOLLOWED = bindparam("follows", type_=Text)
_END_QUEUED = EndStatements(
    IS_QUEUED,
    JobRow.follows.is_(None) == _FOLLOWED.is_(None),
    values={
        # The leader of its group may change; this is the one that the job's beginning is from.
        JobRow.decisions: case(
            (_FOLLOWED.is_not(None), with_cache_decision(JobRow.decisions, source=_FOLLOWED)), else_=JobRow.decisions
        )
    },
)
# Condition: the job's readers have no events of a job that it followed; with output, it could not move.
_HAS_NO_BEGINNING = or_(JobRow.continues.is_(None), JobRow.continues == literal_column("''"))

# Most jobs, or groups of followers, that one sweep reads.
SWEEP_LIMIT = 500

_MODEL = bindparam("model", type_=Text)
_LIMIT = bindparam("limit", type_=Integer)
_AVAILABLE = bindparam("available", type_=ARRAY(Text))


def _overdue(*columns: Any) -> Select[Any]:
    """Select queued jobs that were not started by `start_before` or not finished by `finish_before`."""
    # In this form the indexes of the deadlines are used: the condition itself would be checked for all queued jobs.
    candidates = or_(
        JobRow.start_before < func.now(), and_(JobRow.finish_before < func.now(), JobRow.finished_at.is_(None))
    )
    # A job that follows another one was started when that one was.
    row = aliased(JobRow)
    by_id = select(row.started_at).where(row.id == leader_of(JobRow.follows))
    leader = by_id.limit(literal_column("1")).lateral("leader")
    started_at = case((JobRow.follows.is_not(None), leader.c.started_at), else_=JobRow.started_at)
    return (
        select(*(started_at.label("started_at") if one is JobRow.started_at else one for one in columns))
        .join_from(JobRow, leader, true(), isouter=True)
        .where(IS_QUEUED, candidates, overdue(started_at))
        .limit(literal_column(str(SWEEP_LIMIT)))
    )


def _queued_models() -> Select[str]:
    first = select(JobRow.model).where(IS_QUEUED).order_by(JobRow.model).limit(literal_column("1"))
    found = select(first.scalar_subquery().label("model")).cte("found", recursive=True)
    following = first.where(JobRow.model > found.c.model).scalar_subquery()
    found = found.union_all(select(following).where(found.c.model.is_not(None)))
    return select(found.c.model).where(found.c.model.is_not(None))


def _unserved_models(is_paused: Callable[[ColumnElement[str]], ColumnElement[bool]]) -> Select[str]:
    """Select the models that have queued jobs, but are paused or have no live worker whose engine has started."""
    queued = _queued_models()
    model = queued.selected_columns.model
    return queued.where(or_(model.not_in(served_models()), is_paused(model)))


def _has_work() -> Prepared:
    def any_of(statement: Any) -> ColumnElement[bool]:
        # All that a sweep would read: PostgreSQL may read a whole table if it expects to find one row soon.
        count = select(func.count()).select_from(statement.subquery()).scalar_subquery()
        return count > literal_column("0")

    unserved = _unserved_models(lambda model: model.in_(paused_models()))
    withheld = withheld_for(bindparam("withheld_for_s", type_=Double)).limit(literal_column("1"))
    work = or_(
        and_(bindparam("recover", type_=Boolean), any_of(lost_jobs(JobRow.id))),
        any_of(_overdue(JobRow.id)),
        any_of(unserved),
        any_of(orphans(SWEEP_LIMIT)),
        any_of(withheld),
    )
    return Prepared(select(work.label("has_work")))


_HAS_WORK = _has_work()
_OVERDUE = Prepared(_overdue(*SUMMARY_COLUMNS).where(is_kept(JobRow.id)))
_ORPHANS = Prepared(orphans(SWEEP_LIMIT, is_kept(JobRow.follows)))
_QUEUED_MODELS = Prepared(_queued_models())
_SERVED_MODELS = Prepared(served_models())
_UNSERVED = Prepared(_unserved_models(lambda model: model == func.any(bindparam("paused", type_=ARRAY(Text)))))
_STRANDED = Prepared(
    select(*SUMMARY_COLUMNS)
    .where(
        is_kept(JobRow.id),
        JobRow.model == func.any(bindparam("models", type_=ARRAY(Text))),
        IS_QUEUED,
        JobRow.start_before > func.now(),
        func.now() - JobRow.created_at > JobRow.start_before - func.now(),
        JobRow.started_at.is_(None),
        is_movable(_AVAILABLE),
        _HAS_NO_BEGINNING,
    )
    .limit(_LIMIT)
)
_MOVABLE = Prepared(
    select(*SUMMARY_COLUMNS)
    .where(IS_QUEUED, JobRow.model == _MODEL, is_kept(JobRow.id), not_held(), is_movable(_AVAILABLE), _HAS_NO_BEGINNING)
    .order_by(JobRow.priority, JobRow.id)
    .limit(_LIMIT)
)
_DEFERRED = Prepared(
    select(*SUMMARY_COLUMNS)
    .where(
        is_kept(JobRow.id),
        JobRow.model == _MODEL,
        IS_QUEUED,
        JobRow.not_before.is_not(None),  # the index of deferred jobs
        JobRow.deferred_since < func.now() - seconds(bindparam("longest_s", type_=Double)),
    )
    .limit(_LIMIT)
)
_QUEUED_OF = Prepared(
    select(*SUMMARY_COLUMNS)
    .where(IS_QUEUED, JobRow.model == _MODEL, JobRow.follows.is_(None), is_kept(JobRow.id))
    .order_by(JobRow.priority, JobRow.id)
    .limit(_LIMIT)
)
_DELETE_IDEMPOTENCY_KEYS = Prepared(
    delete(IdempotencyKeyRow).where(
        IdempotencyKeyRow.created_at < func.now() - seconds(bindparam("older_than_s", type_=Double))
    )
)
_DELETE_DEAD_WORKERS = Prepared(
    delete(WorkerRow).where(WorkerRow.lease_expires_at < func.now() - seconds(bindparam("silent_for_s", type_=Double)))
)


class RecoveryStore(LostJobStore, MessageStore, ReroutingStore):
    """Jobs that no live worker owns: lost ones, queued ones, and the messages of these."""

    async def end_queued(
        self, job_id: str, attempt: int, result: JobResult, *, follows: str | None = None
    ) -> Ended | None:
        """End a queued job. None: it is not queued any more, another attempt was made, or it does not follow another
        job any more. `follows`: the job that it followed when it was read."""
        (ended,) = await self._end(_END_QUEUED, [result_record(job_id, attempt, result)], follows=follows)
        return await self._settled(job_id, ended)

    async def reroute_queued(self, move: Move) -> list[FollowerChange] | None:
        """Move a queued job to another model's queue. Returns the followers that this has released; None if the job has
        changed since it was read.
        """
        return await self._reroute(move, IS_QUEUED)

    async def reroute_lost(self, move: Move) -> list[FollowerChange] | None:
        """Move a job whose claim was revoked to another model's queue; as `reroute_queued`."""
        lost = JobRow.worker.endswith(LOST)
        return await self._reroute(move, JobRow.status == JobStatus.IN_PROGRESS.value, lost)

    async def has_work(self, *, recover: bool, withheld_for_s: float) -> bool:
        """Whether a sweep may find anything: lost jobs (if it recovers these), overdue or stranded ones, followers of
        ended jobs, or jobs that have been withheld for so long.

        It may be true for jobs that the sweep leaves out or cannot move, and is false only if there is nothing.
        """
        parameters = {"recover": recover, "withheld_for_s": withheld_for_s}
        (row,) = await _HAS_WORK.run(self._engine, parameters)
        return bool(row.has_work)

    async def stranded(self, limit: int, models: Availability, *, without: Collection[str] = ()) -> list[JobSummary]:
        """Return queued jobs that have waited for more than half of the time until `start_before`, and whose model has
        no live worker or is paused, but that can move to an available model.

        `without` are the ids of jobs to leave out.
        """
        unserved = [row.model for row in await _UNSERVED.run(self._engine, {"paused": list(models.paused)})]
        if not unserved:
            return []
        return await self._read_summaries(
            _STRANDED, models=unserved, available=list(models.available), without=list(without), limit=limit
        )

    async def movable(
        self, model: str, limit: int, available: Collection[str], *, without: Collection[str] = ()
    ) -> list[JobSummary]:
        """Return the next queued jobs of a model that can move to an available one, and could start now.

        `without` are the ids of jobs to leave out.
        """
        return await self._read_summaries(
            _MOVABLE, model=model, available=list(available), without=list(without), limit=limit
        )

    async def overdue(self, *, without: Collection[str] = ()) -> list[JobSummary]:
        """Return queued jobs that were not started by `start_before` or not finished by `finish_before`, at most
        `SWEEP_LIMIT`.

        `without` are the ids of jobs to leave out.
        """
        return await self._read_summaries(_OVERDUE, without=list(without))

    async def orphans(self, *, without: Collection[str] = ()) -> list[str]:
        """Return the groups with open followers that have no leader, or one that they are not to wait for, at most
        `SWEEP_LIMIT`.

        `without` are the groups to leave out.
        """
        return [row.id for row in await _ORPHANS.run(self._engine, {"without": list(without)})]

    async def deferred_for(
        self, model: str, longest_s: float, limit: int, *, without: Collection[str] = ()
    ) -> list[JobSummary]:
        """Return queued jobs of a model that an upstream has kept waiting for longer than that.

        `without` are the ids of jobs to leave out.
        """
        return await self._read_summaries(
            _DEFERRED, model=model, longest_s=longest_s, without=list(without), limit=limit
        )

    async def delete_idempotency_keys(self, older_than_s: int) -> None:
        """Delete old keys, so that they can be used again."""
        await _DELETE_IDEMPOTENCY_KEYS.run(self._engine, {"older_than_s": older_than_s})

    async def delete_dead_workers(self, silent_for_s: int) -> None:
        """Delete the rows of workers whose lease expired at least `silent_for_s` ago."""
        await _DELETE_DEAD_WORKERS.run(self._engine, {"silent_for_s": silent_for_s})

    async def abandon_cancellations(self, older_than_s: float) -> list[Cancellation]:
        """Remove the upstream's requests that no worker could cancel for so long, and return them."""
        return await UpstreamCancellations(self._engine).abandon(older_than_s)

    async def queued_models(self) -> list[str]:
        """Return the models that have queued jobs, without reading all of these."""
        return [row.model for row in await _QUEUED_MODELS.run(self._engine, {})]

    async def served_models(self) -> set[str]:
        """Return the models with a live worker whose engine has started."""
        return {row.model for row in await _SERVED_MODELS.run(self._engine, {})}

    async def queued_of(self, model: str, *, limit: int, without: Collection[str] = ()) -> list[JobSummary]:
        """Return queued jobs of a model that follow no other one, the next ones first.

        `without` are the ids of jobs to leave out.
        """
        return await self._read_summaries(_QUEUED_OF, model=model, without=list(without), limit=limit)
