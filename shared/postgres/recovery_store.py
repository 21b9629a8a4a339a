"""SQL for recovery: jobs of dead workers, overdue jobs, and jobs whose message was lost."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Row,
    SmallInteger,
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
    tuple_,
    type_coerce,
    union_all,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import aliased

from shared.domain.errors import UnreadableRow
from shared.domain.job import AttemptOutcome, JobStatus, JobSummary, WorkerState
from shared.domain.priorities import Hint
from shared.domain.result import JobResult
from shared.domain.suspects import Verdict, judge
from shared.postgres.followers import Ended, FollowerChange, leader_of, orphans, with_cache_decision
from shared.postgres.job_attempts import after_death, requeued
from shared.postgres.job_conditions import IS_QUEUED, IS_RUNNING, due, live_workers, models_of_workers, overdue
from shared.postgres.job_ends import EndStatements, result_record
from shared.postgres.job_rows import COLUMNS, LOST, SUMMARY_COLUMNS, read_job
from shared.postgres.rerouting import Move, ReroutingStore, is_movable
from shared.postgres.store import Records, seconds
from shared.postgres.tables import IdempotencyKeyRow, JobRow, Timestamp, UpstreamCancellationRow, WorkerRow
from shared.postgres.upstream_cancellations import Cancellation, UpstreamCancellations


@dataclass(frozen=True, slots=True, kw_only=True)
class RequeuedJob(Hint):
    """The queue message of a requeued job, and the attempt that ended when `worker` was lost."""

    attempt: int
    worker: str
    suspect: bool
    request_id: str | None


@dataclass(frozen=True, slots=True)
class LostJob:
    """A running job whose worker is dead, or has released it (`worker` ends with `LOST`).

    `ends`: it is not run again, because it is being cancelled or is overdue.
    """

    job_id: str
    attempt: int
    worker: str
    deaths: int
    suspect: bool
    exposures: int
    ends: bool


@dataclass(frozen=True, slots=True)
class Withheld:
    """A queued job that a worker withheld because its version could not read it."""

    job_id: str
    since: datetime


def verdicts(lost: Sequence[LostJob], generated: Collection[str], max_attempts: int) -> dict[str, Verdict]:
    """What the deaths of their workers mean for jobs. `generated`: those that had a token since their last start.

    A claim that a live worker has released says nothing about the job's effect on a worker: it is only counted.
    """
    found: dict[str, Verdict] = {}
    for worker, group in groupby(sorted(lost, key=_worker), key=_worker):
        jobs = list(group)
        if worker.endswith(LOST):
            found |= {job.job_id: Verdict(charged=True, suspect=job.suspect) for job in jobs}
        else:
            found |= judge(jobs, (job.job_id for job in jobs if job.job_id not in generated), max_attempts)
    return found


def out_of_attempts(lost: Sequence[LostJob], generated: Collection[str], max_attempts: int) -> set[str]:
    """The jobs that have died too often; the arguments are those of `verdicts`."""
    judged = verdicts(lost, generated, max_attempts)
    return {job.job_id for job in lost if judged[job.job_id].charged and job.deaths + 1 >= max_attempts}


def _worker(job: LostJob) -> str:
    return job.worker


# More than any worker has slots, so that all jobs of a worker are judged together.
LOST_LIMIT = 10_000
_JUDGED = Records("judged", id=Text, attempt=SmallInteger, charged=Boolean, suspect=Boolean)
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
_END_LOST = EndStatements(IS_RUNNING, JobRow.worker.endswith(LOST))


class RecoveryStore(ReroutingStore):
    """Jobs that no live worker owns."""

    async def end_queued(
        self, job_id: str, attempt: int, result: JobResult, *, follows: str | None = None
    ) -> Ended | None:
        """End a queued job. None: it is not queued any more, another attempt was made, or it does not follow another
        job any more. `follows`: the job that it followed when it was read."""
        (ended,) = await self._end(_END_QUEUED, [result_record(job_id, attempt, result)], follows=follows)
        return await self._settled(job_id, ended)

    async def revoke_claim(self, job_id: str, attempt: int) -> bool:
        """Revoke a dead worker's claim for good, so that the job can be ended. False: the worker is alive.

        If the caller dies before it ends the job, the job is still lost, and another process can end it.
        """
        statement = (
            update(JobRow)
            .where(
                JobRow.id == job_id,
                JobRow.attempt == attempt,
                IS_RUNNING,
                JobRow.worker.not_in(live_workers()),
            )
            .values({JobRow.worker: func.regexp_replace(JobRow.worker, f"{LOST}$", "").concat(LOST)})
        )
        return await self._changes(statement)

    async def end_lost(self, job_id: str, attempt: int, result: JobResult) -> Ended | None:
        """End a job whose claim was revoked. None: it was ended meanwhile."""
        (ended,) = await self._end(_END_LOST, [result_record(job_id, attempt, result)])
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

    async def stranded(
        self, limit: int, available: Collection[str], *, without: Collection[str] = ()
    ) -> list[JobSummary]:
        """Return queued jobs that have waited for more than half of the time until `start_before`, and whose model has
        no live worker, but that can move to an available model.

        `without` are the ids of jobs to leave out.
        """
        unserved = set(await self.queued_models()) - await self.served_models()
        if not unserved:
            return []
        statement = (
            select(*SUMMARY_COLUMNS)
            .where(
                JobRow.id.not_in(without),
                JobRow.model.in_(unserved),
                IS_QUEUED,
                JobRow.start_before > func.now(),
                func.now() - JobRow.created_at > JobRow.start_before - func.now(),
                JobRow.started_at.is_(None),
                is_movable(available),
                _HAS_NO_BEGINNING,
            )
            .limit(limit)
        )
        return await self._summaries(statement)

    async def movable(
        self, model: str, limit: int, available: Collection[str], *, without: Collection[str] = ()
    ) -> list[JobSummary]:
        """Return the next queued jobs of a model that can move to an available one.

        `without` are the ids of jobs to leave out.
        """
        statement = (
            select(*SUMMARY_COLUMNS)
            .where(
                IS_QUEUED, JobRow.model == model, JobRow.id.not_in(without), is_movable(available), _HAS_NO_BEGINNING
            )
            .order_by(JobRow.priority, JobRow.id)
            .limit(limit)
        )
        return await self._summaries(statement)

    async def lost(self) -> list[LostJob]:
        """Return the running jobs of dead workers, and those that workers have released."""
        statement = (
            select(
                JobRow.id,
                JobRow.attempt,
                JobRow.worker,
                JobRow.deaths,
                JobRow.suspect,
                JobRow.exposures,
                or_(JobRow.status == JobStatus.CANCELLING.value, overdue()).label("ends"),
            )
            .where(_is_lost())
            .limit(LOST_LIMIT)
        )
        return await self._all(statement, _lost_job)

    async def requeue_stalled(
        self, max_attempts: int, lost: Sequence[LostJob] | None = None, generated: Collection[str] = ()
    ) -> list[RequeuedJob]:
        """Put the jobs of dead workers back into the queue, except those that must end (`stalled_to_end`).

        `lost` and `generated` are as in `verdicts`; without `lost`, it is read here.
        """
        lost = await self.lost() if lost is None else lost
        judged, dead = verdicts(lost, generated, max_attempts), out_of_attempts(lost, generated, max_attempts)
        records = [
            {"id": job.job_id, "attempt": job.attempt, "charged": verdict.charged, "suspect": verdict.suspect}
            for job, verdict in ((job, judged[job.job_id]) for job in lost)
            if not job.ends and job.job_id not in dead
        ]
        if not records:
            return []
        locked = (
            select(JobRow.id, _JUDGED.charged, _JUDGED.suspect)
            .where(
                JobRow.id == _JUDGED.id,
                JobRow.attempt == _JUDGED.attempt,
                JobRow.status == JobStatus.IN_PROGRESS.value,
                _is_lost(),
                ~overdue(),
            )
            .with_for_update(skip_locked=True, of=JobRow)
            .cte("locked")
        )
        statement = (
            update(JobRow)
            .where(JobRow.id == locked.c.id)
            .values(
                {
                    **requeued(0, AttemptOutcome.WORKER_LOST),
                    **after_death(locked.c.charged, locked.c.suspect),
                }
            )
            .returning(
                JobRow.id,
                JobRow.model,
                JobRow.priority,
                JobRow.attempt,
                type_coerce(JobRow.attempts, JSONB)[-1]["worker"].astext.label("lost_by"),
                JobRow.request_id,
                JobRow.suspect,
            )
        )
        async with self._engine.connect() as connection:
            return [
                RequeuedJob(
                    job_id=row.id,
                    model=row.model,
                    priority=row.priority,
                    attempt=row.attempt,
                    worker=row.lost_by,
                    suspect=row.suspect,
                    request_id=row.request_id,
                )
                for row in await connection.execute(statement, _JUDGED.parameters(records))
            ]

    async def stalled_to_end(
        self,
        max_attempts: int,
        lost: Sequence[LostJob] | None = None,
        generated: Collection[str] = (),
        limit: int = 100,
        *,
        without: Collection[str] = (),
    ) -> list[JobSummary]:
        """Return the jobs of dead workers that are not retried: being cancelled, overdue, or out of attempts.

        `without` are the ids of jobs to leave out.
        """
        lost = await self.lost() if lost is None else lost
        dead = out_of_attempts(lost, generated, max_attempts)
        ids = [job.job_id for job in lost if (job.ends or job.job_id in dead) and job.job_id not in without]
        if not ids:
            return []
        return await self._summaries(select(*SUMMARY_COLUMNS).where(JobRow.id.in_(ids[:limit]), _is_lost()))

    async def overdue(self, limit: int = 500, *, without: Collection[str] = ()) -> list[JobSummary]:
        """Return queued jobs that were not started by `start_before` or not finished by `finish_before`.

        `without` are the ids of jobs to leave out.
        """
        # In this form the indexes of the deadlines are used: the condition itself would be checked for all queued jobs.
        candidates = or_(
            JobRow.start_before < func.now(), and_(JobRow.finish_before < func.now(), JobRow.finished_at.is_(None))
        )
        # A job that follows another one was started when that one was.
        row = aliased(JobRow)
        by_id = select(row.started_at).where(row.id == leader_of(JobRow.follows))
        leader = by_id.limit(literal_column("1")).lateral("leader")
        started_at = case((JobRow.follows.is_not(None), leader.c.started_at), else_=JobRow.started_at)
        columns = [started_at.label("started_at") if one is JobRow.started_at else one for one in SUMMARY_COLUMNS]
        statement = (
            select(*columns)
            .join_from(JobRow, leader, true(), isouter=True)
            .where(JobRow.id.not_in(without), IS_QUEUED, candidates, overdue(started_at))
            .limit(limit)
        )
        return await self._summaries(statement)

    async def orphans(self, limit: int = 500, *, without: Collection[str] = ()) -> list[str]:
        """Return the groups with open followers that have no leader, or one that they are not to wait for.

        `without` are the groups to leave out.
        """
        return await self._all(orphans(limit, without), lambda row: str(row.id))

    async def deferred_for(
        self, model: str, longest_s: float, limit: int, *, without: Collection[str] = ()
    ) -> list[JobSummary]:
        """Return queued jobs of a model that an upstream has kept waiting for longer than that.

        `without` are the ids of jobs to leave out.
        """
        statement = (
            select(*SUMMARY_COLUMNS)
            .where(
                JobRow.id.not_in(without),
                JobRow.model == model,
                IS_QUEUED,
                JobRow.not_before.is_not(None),  # the index of deferred jobs
                JobRow.deferred_since < func.now() - seconds(longest_s),
            )
            .limit(limit)
        )
        return await self._summaries(statement)

    async def withheld(self, older_than_s: float, *, after: Withheld | None, limit: int) -> list[Withheld]:
        """Return the queued jobs that a worker withheld as unreadable, the oldest first: those after `after`."""
        statement = (
            select(JobRow.id, JobRow.unreadable_at)
            .where(IS_QUEUED, JobRow.unreadable_at < func.now() - seconds(older_than_s))
            .order_by(JobRow.unreadable_at, JobRow.id)
            .limit(limit)
        )
        if after is not None:
            statement = statement.where(tuple_(JobRow.unreadable_at, JobRow.id) > (after.since, after.job_id))
        return await self._all(statement, lambda row: Withheld(row.id, row.unreadable_at))

    async def release_if_readable(self, job_id: str) -> Hint | None:
        """Release a withheld job to the queue if this version can read it."""
        row = await self._first(select(*COLUMNS).where(JobRow.id == job_id, JobRow.unreadable_at.is_not(None)))
        if row is None:
            return None
        try:
            await read_job(row)
        except UnreadableRow:
            return None
        release = (
            update(JobRow)
            .where(JobRow.id == job_id, IS_QUEUED, JobRow.unreadable_at.is_not(None))
            .values({JobRow.unreadable_at: None, JobRow.dispatched_at: func.clock_timestamp()})
            .returning(JobRow.id, JobRow.model, JobRow.priority)
        )
        return await self._one(release, _hint)

    async def delete_idempotency_keys(self, older_than_s: int) -> None:
        """Delete old keys, so that they can be used again."""
        statement = delete(IdempotencyKeyRow).where(IdempotencyKeyRow.created_at < func.now() - seconds(older_than_s))
        await self._changes(statement)

    async def delete_dead_workers(self, silent_for_s: int) -> None:
        """Delete the rows of workers whose lease expired at least `silent_for_s` ago."""
        await self._changes(delete(WorkerRow).where(WorkerRow.lease_expires_at < func.now() - seconds(silent_for_s)))

    async def abandon_cancellations(self, older_than_s: float) -> list[Cancellation]:
        """Remove the upstream's requests that no worker could cancel for so long, and return them."""
        return await UpstreamCancellations(self._engine).abandon(older_than_s)

    async def waiting(self, models: Sequence[str], *, limit: int, older_than_s: float, priorities: range) -> list[Hint]:
        """Return the next queued jobs of these models that were released to the queue, in the order of service.

        A deferred job is among them once it has been due for `older_than_s`: its worker sends its message by then.
        """
        return await self._released(
            models,
            JobRow.priority.between(priorities[0], priorities[-1]),
            JobRow.created_at < func.now() - seconds(older_than_s),
            due(older_than_s),
            limit=limit,
        )

    async def has_unfinished(self, model: str) -> bool:
        """Whether a model has jobs that run anywhere, or that are queued and can be read by this version, or requests
        of its upstream that no worker has tried to cancel yet."""
        row = UpstreamCancellationRow
        # In the order of an index: otherwise PostgreSQL may expect to find a row soon in the whole table.
        queued = (
            select(true())
            .where(JobRow.model == model, IS_QUEUED, JobRow.unreadable_at.is_(None))
            .order_by(JobRow.priority, JobRow.id)
        )
        running = select(true()).where(JobRow.model == model, IS_RUNNING).order_by(JobRow.worker)
        uncancelled = select(true()).where(row.model == model, row.tries == 0).order_by(row.due_at)
        found = (one.limit(literal_column("1")).scalar_subquery() for one in (queued, running, uncancelled))
        async with self._engine.connect() as connection:
            return bool(await connection.scalar(select(func.coalesce(*found))))

    async def queued_models(self) -> list[str]:
        """Return the models that have queued jobs, without reading all of these."""
        first = select(JobRow.model).where(IS_QUEUED).order_by(JobRow.model).limit(1)
        found = select(first.scalar_subquery().label("model")).cte("found", recursive=True)
        following = first.where(JobRow.model > found.c.model).scalar_subquery()
        found = found.union_all(select(following).where(found.c.model.is_not(None)))
        return await self._all(select(found.c.model).where(found.c.model.is_not(None)), lambda row: str(row.model))

    async def served_models(self) -> set[str]:
        """Return the models with a live worker whose engine has started."""
        started = WorkerRow.state != WorkerState.LOADING.value
        statement = models_of_workers(WorkerRow.lease_expires_at > func.clock_timestamp(), started)
        return set(await self._all(statement, lambda row: str(row.model)))

    async def queued_of(self, model: str, *, limit: int, without: Collection[str] = ()) -> list[JobSummary]:
        """Return queued jobs of a model that follow no other one, the next ones first.

        `without` are the ids of jobs to leave out.
        """
        statement = (
            select(*SUMMARY_COLUMNS)
            .where(IS_QUEUED, JobRow.model == model, JobRow.follows.is_(None), JobRow.id.not_in(without))
            .order_by(JobRow.priority, JobRow.id)
            .limit(limit)
        )
        return await self._summaries(statement)

    async def queued_before(
        self, models: Sequence[str], priority: int, before: str, *, due_for_s: float, limit: int
    ) -> list[Hint]:
        """Return released, queued jobs that precede the job `before`, which was served: their messages were lost.

        A job that was deferred, requeued or released later is among them once it has been due for `due_for_s`.
        """
        requeued_at = sql_cast(type_coerce(JobRow.attempts, JSONB)[-1]["ended_at"].astext, Timestamp)
        long_ago = func.clock_timestamp() - seconds(due_for_s)
        return await self._released(
            models,
            JobRow.priority == priority,
            JobRow.id < before,
            JobRow.dispatched_at <= long_ago,
            due(due_for_s),
            func.coalesce(requeued_at <= long_ago, True),
            limit=limit,
        )

    async def _released(self, models: Sequence[str], *conditions: ColumnElement[bool], limit: int) -> list[Hint]:
        """Return queued jobs of these models in the order of service. Jobs that a dispatcher withholds are not among
        them: they have no message that could be lost."""

        def of(model: str) -> Any:
            return (
                select(JobRow.id, JobRow.model, JobRow.priority)
                .where(
                    IS_QUEUED,
                    JobRow.model == model,
                    JobRow.dispatched_at.is_not(None),
                    *conditions,
                )
                .order_by(JobRow.priority, JobRow.id)
                .limit(limit)
            )

        if len(models) == 1:
            return await self._all(of(models[0]), _hint)
        # An index has the order of each model's jobs, but not that of several models'.
        found = union_all(*(select(of(model).subquery()) for model in models)).subquery()
        ordered = select(found).order_by(found.c.priority, found.c.id).limit(limit)
        return await self._all(ordered, _hint)


def _is_lost() -> ColumnElement[bool]:
    """Condition: the job is running, and its worker is dead or has released it."""
    return and_(IS_RUNNING, JobRow.worker.not_in(live_workers()))


def _lost_job(row: Row[Any]) -> LostJob:
    return LostJob(row.id, row.attempt, row.worker, row.deaths, row.suspect, row.exposures, row.ends)


def _hint(row: Row[Any]) -> Hint:
    return Hint(row.id, row.model, row.priority)
