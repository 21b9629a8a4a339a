"""SQL of a worker: its claims, their results, and its lease."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    Boolean,
    Double,
    Text,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import aliased

from shared.domain.errors import UnreadableRow
from shared.domain.events import UpstreamState
from shared.domain.job import NO_REPORT, AttemptOutcome, Job, JobStatus, OpenBreaker, WorkerReport, WorkerState
from shared.domain.priorities import Hint
from shared.domain.prompt_cache import cache_salt
from shared.domain.result import JobResult
from shared.domain.suspects import Verdict
from shared.postgres.followers import FOLLOWS, Ended, FollowerChange, group_of
from shared.postgres.group_commit import GroupCommit
from shared.postgres.job_attempts import after_death, requeued
from shared.postgres.job_conditions import IS_QUEUED, IS_RUNNING, due, overdue, owned
from shared.postgres.job_ends import EndStatements, result_record
from shared.postgres.job_rows import COLUMNS, LOST, read_job
from shared.postgres.prepared import Prepared
from shared.postgres.rerouting import Move, ReroutingStore
from shared.postgres.store import json_text, seconds
from shared.postgres.tables import JobRow, ModelPauseRow, ProjectRow, WorkerRow
from shared.postgres.upstream_cancellations import Cancellation, UpstreamCancellations

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Claim:
    """A running job and the attempt that holds it."""

    job_id: str
    attempt: int
    status: JobStatus


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """The running jobs of a worker, whose status shows which are being cancelled, and what operators have ordered.

    `drain`: finish the jobs and stop; `paused`: the queue of the worker's model is paused.
    """

    claims: list[Claim]
    drain: bool = False
    paused: bool = False


_ONLY_MODELS = bindparam("only_models", type_=ARRAY(Text))
_PAUSED = exists().where(ModelPauseRow.model == JobRow.model).correlate(JobRow)
# Rows that another transaction has locked are skipped: that transaction decides about them.
_WAITING = (
    select(JobRow.id)
    .where(
        JobRow.id == func.any(bindparam("ids", type_=ARRAY(Text))),
        IS_QUEUED,
        JobRow.follows.is_(None),
        or_(_ONLY_MODELS.is_(None), JobRow.model == func.any(_ONLY_MODELS)),
        ~overdue(),
        due(),
        ~_PAUSED,
        # A suspect runs alone, so a claim for others does not include it.
        or_(bindparam("suspects", type_=Boolean), ~JobRow.suspect),
    )
    .order_by(JobRow.id)
    .with_for_update(skip_locked=True)
    .scalar_subquery()
)
# What keeps the prefix caches of the job's project apart from those of others.
_SALT = (
    select(ProjectRow.salt).where(ProjectRow.id == JobRow.project_id).correlate(JobRow).scalar_subquery().label("salt")
)
_CLAIM = Prepared(
    update(JobRow)
    .where(JobRow.id.in_(_WAITING))
    .values(
        {
            JobRow.status: JobStatus.IN_PROGRESS.value,
            JobRow.attempt: JobRow.attempt + 1,
            JobRow.worker: bindparam("claimant", type_=Text),
            # The same time in both shows which claim has started the job.
            JobRow.attempt_started_at: func.statement_timestamp(),
            JobRow.started_at: func.coalesce(JobRow.started_at, func.statement_timestamp()),
            # A job that was withheld can still be claimed, by a message that was sent before.
            JobRow.dispatched_at: func.coalesce(JobRow.dispatched_at, func.clock_timestamp()),
            JobRow.unreadable_at: None,
            JobRow.not_before: None,
        }
    )
    .returning(*COLUMNS, _SALT)
)
# A claim that leaves no trace: it is no attempt and, if the job had not been started before, no start. A job may have
# been started without an attempt of its own, by the job that it followed.
_UNCLAIMED: dict[Any, Any] = {
    JobRow.status: JobStatus.QUEUED.value,
    JobRow.worker: None,
    JobRow.attempt_started_at: None,
    JobRow.started_at: case(
        (or_(JobRow.attempts != literal([], JSONB), JobRow.started_at < JobRow.attempt_started_at), JobRow.started_at)
    ),
}
_LEADER = aliased(JobRow, name="leader")
_OWNER = bindparam("owner", type_=Text)
_FINISH = EndStatements(JobRow.worker == _OWNER, IS_RUNNING)
_HAND_OVER = EndStatements(JobRow.worker == _OWNER, IS_RUNNING, claimant=_OWNER)


# The columns of a worker that each heartbeat writes, besides its lease.
_BEAT = (
    "slots", "running", "state", "breaker_since", "breaker_reason", "version", "options", "waiting", "kv_cache_usage",
    "tokens_per_s", "last_error", "engine_info",
)  # fmt: skip
_LEASE_END = func.clock_timestamp() + seconds(bindparam("lease_s", type_=Double))


def _new_value(name: str) -> Any:
    kind = WorkerRow.__table__.c[name].type
    if isinstance(kind, JSONB):
        return cast(bindparam(f"new_{name}", type_=Text), JSONB)
    return bindparam(f"new_{name}", type_=kind)


def _heartbeat() -> Prepared:
    renew = upsert(WorkerRow).values(
        id=_OWNER,
        lease_expires_at=_LEASE_END,
        state_since=func.clock_timestamp(),
        **{name: _new_value(name) for name in ("model", *_BEAT)},
    )
    changed = WorkerRow.state.is_distinct_from(renew.excluded.state)
    renewed = renew.on_conflict_do_update(
        index_elements=[WorkerRow.id],
        set_={
            **{name: renew.excluded[name] for name in ("lease_expires_at", *_BEAT)},
            "state_since": case((changed, renew.excluded.state_since), else_=WorkerRow.state_since),
        },
    )
    return Prepared(
        renewed.returning(
            WorkerRow.drain_requested_at.is_not(None).label("drain"),
            exists().where(ModelPauseRow.model == WorkerRow.model).correlate(WorkerRow).label("paused"),
        )
    )


_HEARTBEAT = _heartbeat()
_RENEW_LEASE = Prepared(update(WorkerRow).where(WorkerRow.id == _OWNER).values(lease_expires_at=_LEASE_END))
_LIST_CLAIMS = Prepared(select(JobRow.id, JobRow.attempt, JobRow.status).where(JobRow.worker == _OWNER, IS_RUNNING))


class ClaimStore(ReroutingStore):
    """The claims, results and lease of one worker. Concurrent claims are committed together, and so are results."""

    def __init__(
        self, engine: AsyncEngine, worker: str, model: str | None = None, adapters: Collection[str] = ()
    ) -> None:
        """Only jobs of `model` and of its adapters can be claimed, whatever a message says; None: jobs of any model."""
        super().__init__(engine)
        self._worker = worker
        self._models = None if model is None else [model, *adapters]
        self._adapters = frozenset(adapters)
        self._claims = GroupCommit(self._claim)
        self._suspect_claims = GroupCommit(self._claim_suspects)
        self._cancellations = UpstreamCancellations(engine)
        self._settlements = GroupCommit(self._settle_together)
        self._results = GroupCommit(self._finish, weigh=lambda record: len(record["output"]) + len(record["log"]))

    async def claim(self, job_id: str, *, suspects: bool = True) -> Job | None:
        """Claim a queued job for this worker, as the next attempt.

        None: it is not queued any more, or is overdue or deferred, or is a suspect although `suspects` is false.
        """
        return await (self._suspect_claims if suspects else self._claims)(job_id)

    async def queued_suspect(self, job_id: str) -> Hint | None:
        """A queued job of this model that is a suspect (`shared.domain.suspects`); None if it is not one."""
        statement = select(JobRow.id, JobRow.model, JobRow.priority).where(
            JobRow.id == job_id, IS_QUEUED, JobRow.suspect, due()
        )
        if self._models is not None:
            statement = statement.where(JobRow.model.in_(self._models))
        return await self._one(statement, lambda row: Hint(row.id, row.model, row.priority))

    async def record_token(self, job_id: str, attempt: int, *, cleared: bool) -> None:
        """Record that a job which this attempt owns has a token: it is not deferred any more.

        `cleared`: nor is it a suspect.
        """
        values: dict[Any, Any] = {JobRow.deferred_since: None} | ({JobRow.suspect: False} if cleared else {})
        await self._changes(update(JobRow).where(owned(job_id, attempt, self._worker)).values(values))

    async def drop_inherited(self, job_id: str, attempt: int) -> None:
        """Record that the answer of a job which this attempt owns does not begin with that of another job any more."""
        inherited = literal(["cache", "inherited"], ARRAY(Text))
        values = {JobRow.decisions: JobRow.decisions.op("#-")(inherited)}
        await self._changes(update(JobRow).where(owned(job_id, attempt, self._worker)).values(values))

    async def finish(self, job_id: str, attempt: int, result: JobResult) -> Ended | None:
        """End a job that this attempt owns. None: the attempt does not own it any more, and nothing was written."""
        return await self._settled(job_id, await self._results(result_record(job_id, attempt, result)))

    async def _settle_portion(self, leader: str) -> list[FollowerChange]:
        return await self._settlements(leader)

    async def _settle_together(self, leaders: Sequence[str]) -> list[list[FollowerChange]]:
        changes = await self.settle(leaders)
        return [[change for change in changes if change.leader == leader] for leader in leaders]

    async def has_followers(self, job_id: str) -> bool:
        """Whether open jobs follow a job."""
        group = select(group_of(_LEADER)).where(_LEADER.id == job_id).scalar_subquery()
        return await self._first(select(JobRow.id).where(JobRow.follows == group, FOLLOWS).limit(1)) is not None

    async def hand_over(self, job_id: str, attempt: int, result: JobResult) -> Ended | None:
        """As `finish`, for a job that was cancelled or is late: the follower that takes the lead is claimed by this
        worker."""
        (ended,) = await self._end(_HAND_OVER, [result_record(job_id, attempt, result)], owner=self._worker)
        return await self._settled(job_id, ended)

    async def claimed(self, job_id: str) -> Job | None:
        """Return a running job that this worker owns.

        Raises:
            UnreadableRow: this version cannot read its row.
        """
        row = await self._first(select(*COLUMNS).where(JobRow.id == job_id, JobRow.worker == self._worker, IS_RUNNING))
        return await read_job(row) if row is not None else None

    async def _claim_suspects(self, job_ids: Sequence[str]) -> list[Job | None]:
        return await self._claim(job_ids, suspects=True)

    async def _claim(self, job_ids: Sequence[str], suspects: bool = False) -> list[Job | None]:
        parameters = {
            "ids": list(job_ids), "claimant": self._worker, "only_models": self._models, "suspects": suspects,
        }  # fmt: skip
        rows = await _CLAIM.run(self._engine, parameters)
        claimed: dict[str, Job] = {}
        unreadable: list[str] = []
        for row in rows:
            try:
                job = claimed[row.id] = await read_job(row)
                job.request.cache_salt = cache_salt(row.salt)
                job.request.adapter = job.model if job.model in self._adapters else None
            except UnreadableRow as error:
                logger.error("job=%s cannot be read and waits for another version: %s", row.id, error.reason)
                unreadable.append(row.id)
        if unreadable:
            await self._withhold(unreadable)
        # If a duplicated message puts a job into one batch twice, one of its claims succeeds.
        return [claimed.pop(job_id, None) for job_id in job_ids]

    async def _withhold(self, job_ids: Sequence[str]) -> None:
        """Put claimed jobs that this version cannot read back into the queue, and withhold them from it.

        A process that can read them releases them.
        """
        statement = (
            update(JobRow)
            .where(JobRow.id.in_(job_ids), JobRow.worker == self._worker, JobRow.status == JobStatus.IN_PROGRESS.value)
            .values(
                {
                    JobRow.attempt: JobRow.attempt - 1,
                    **_UNCLAIMED,
                    JobRow.dispatched_at: None,
                    JobRow.unreadable_at: func.clock_timestamp(),
                }
            )
        )
        await self._changes(statement)

    async def _finish(self, results: Sequence[dict[str, Any]]) -> list[Ended | None]:
        return await self._end(_FINISH, results, owner=self._worker)

    async def requeue(
        self,
        job_id: str,
        attempt: int,
        *,
        tokens: int,
        outcome: AttemptOutcome,
        death: Verdict | None = None,
        first_token_at: datetime | None = None,
    ) -> bool:
        """Put a job that this attempt owns back into the queue. False: it is not owned, or is being cancelled.

        `death`: what it means for the job that the engine died while it ran the job; see `shared.domain.suspects`.
        """
        statement = (
            update(JobRow)
            .where(owned(job_id, attempt, self._worker), JobRow.status == JobStatus.IN_PROGRESS.value)
            .values(
                {
                    **requeued(tokens, outcome),
                    **(after_death(death.charged, death.suspect) if death is not None else {}),
                    JobRow.first_token_at: func.coalesce(JobRow.first_token_at, first_token_at),
                }
            )
        )
        return await self._changes(statement)

    async def defer(
        self, job_id: str, attempt: int, delay_s: float, *, tokens: int = 0, first_token_at: datetime | None = None
    ) -> bool:
        """Put a job that this attempt owns back into the queue for at least `delay_s` seconds.

        Without output, it is as if the attempt had not run: only its number remains, so that its later writes are
        fenced. With output, whose first token came at `first_token_at`, it is in the job's history. False: as in
        `requeue`.
        """
        now = func.clock_timestamp()
        values: dict[Any, Any] = {
            **_UNCLAIMED,
            JobRow.deferred_since: func.coalesce(JobRow.deferred_since, now),
        }
        if first_token_at is not None:
            values = {
                **requeued(tokens, AttemptOutcome.DEFERRED),
                JobRow.first_token_at: func.coalesce(JobRow.first_token_at, first_token_at),
                JobRow.deferred_since: now,
            }
        statement = (
            update(JobRow)
            .where(owned(job_id, attempt, self._worker), JobRow.status == JobStatus.IN_PROGRESS.value)
            .values({**values, JobRow.not_before: now + seconds(delay_s)})
        )
        return await self._changes(statement)

    async def reroute(self, move: Move) -> list[FollowerChange] | None:
        """Move a job that this worker runs to another model's queue. Returns the followers that this has released; None
        if the job is not owned, or is being cancelled.
        """
        owner = owned(move.job.id, move.job.attempt, self._worker)
        return await self._reroute(move, owner, JobRow.status == JobStatus.IN_PROGRESS.value)

    async def add_cancellation(self, job_id: str, model: str, state: UpstreamState) -> None:
        """Note that the upstream's request of a job that starts again is to be cancelled.

        The job's log, which only its last attempt can write, must say so already. So no check of the claim is needed.
        """
        await self._cancellations.add(job_id, model, state)

    async def due_cancellations(self, model: str, limit: int, *, job_id: str | None = None) -> list[Cancellation]:
        """Return requests of a model that are to be cancelled now: see `UpstreamCancellations.due`."""
        return await self._cancellations.due(model, limit, job_id=job_id)

    async def remove_cancellations(self, ids: Sequence[int]) -> None:
        """Remove requests that were cancelled."""
        await self._cancellations.remove(ids)

    async def release_claim(self, job_id: str, attempt: int) -> None:
        """Mark a running job as lost with its worker, although this worker is alive."""
        guard = owned(job_id, attempt, self._worker)
        statement = update(JobRow).where(guard).values({JobRow.worker: self._worker + LOST})
        await self._changes(statement)

    async def heartbeat(
        self,
        model: str,
        *,
        slots: int,
        running: int,
        lease_s: float,
        state: WorkerState = WorkerState.READY,
        breaker: OpenBreaker | None = None,
        report: WorkerReport = NO_REPORT,
    ) -> HeartbeatReply:
        """Renew the lease and report on the worker; return its claims and its orders."""
        parameters = {
            "owner": self._worker,
            "lease_s": lease_s,
            "new_model": model,
            "new_slots": slots,
            "new_running": running,
            "new_state": state.value,
            "new_breaker_since": breaker and breaker.since,
            "new_breaker_reason": breaker and breaker.reason,
            "new_version": report.version,
            "new_options": json_text(report.options),
            "new_waiting": report.waiting,
            "new_kv_cache_usage": report.kv_cache_usage,
            "new_tokens_per_s": report.tokens_per_s,
            "new_last_error": report.last_error,
            "new_engine_info": report.engine_info and json_text(report.engine_info.as_json()),
        }
        (orders,) = await _HEARTBEAT.run(self._engine, parameters)
        # Read afterwards: a claim of this worker that was revoked before the lease was renewed must not be among them.
        return HeartbeatReply(await self.list_claims(), orders.drain, orders.paused)

    async def renew_lease(self, lease_s: float) -> None:
        """Extend this worker's lease, if it has one: a lease that was ended stays ended."""
        await _RENEW_LEASE.run(self._engine, {"owner": self._worker, "lease_s": lease_s})

    async def list_claims(self) -> list[Claim]:
        """Return the running jobs that this worker owns."""
        rows = await _LIST_CLAIMS.run(self._engine, {"owner": self._worker})
        return [Claim(row.id, row.attempt, JobStatus(row.status)) for row in rows]

    async def end_lease(self, *, drained: bool = False) -> None:
        """End this worker's lease immediately. The row of a worker that was `drained` is kept for operators."""
        if not drained:
            await self._changes(delete(WorkerRow).where(WorkerRow.id == self._worker))
            return
        now = func.clock_timestamp()
        values = {"state": WorkerState.DRAINED.value, "state_since": now, "lease_expires_at": now, "running": 0}
        await self._changes(update(WorkerRow).where(WorkerRow.id == self._worker).values(values))
