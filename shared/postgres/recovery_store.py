"""SQL for recovery: jobs that no live worker owns."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import (
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
from shared.domain.job import JobStatus, JobSummary, WorkerState
from shared.domain.result import JobResult
from shared.postgres.followers import Ended, FollowerChange, leader_of, orphans, with_cache_decision
from shared.postgres.job_conditions import IS_QUEUED, models_of_workers, overdue
from shared.postgres.job_ends import EndStatements, result_record
from shared.postgres.job_rows import LOST, SUMMARY_COLUMNS
from shared.postgres.lost_jobs import LostJobStore
from shared.postgres.message_store import MessageStore
from shared.postgres.rerouting import Move, ReroutingStore, is_movable
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

    async def stranded(self, limit: int, models: Availability, *, without: Collection[str] = ()) -> list[JobSummary]:
        """Return queued jobs that have waited for more than half of the time until `start_before`, and whose model has
        no live worker or is paused, but that can move to an available model.

        `without` are the ids of jobs to leave out.
        """
        unserved = set(await self.queued_models()) - (await self.served_models() - models.paused)
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
                is_movable(models.available),
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
