"""SQL that moves a job to another model: see `shared.domain.fallback`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    SmallInteger,
    Text,
    bindparam,
    case,
    false,
    func,
    insert,
    literal,
    null,
    select,
    true,
    union,
    union_all,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from shared.domain.events import UpstreamState
from shared.domain.fallback import Availability, FallbackReason
from shared.domain.job import AttemptOutcome, JobStatus, JobSummary, WorkerState
from shared.postgres.followers import (
    CHANGE,
    LEADER_COLUMNS,
    FollowerChange,
    changed_rows,
    read_change,
    release_followers,
)
from shared.postgres.job_attempts import ended_attempt
from shared.postgres.job_conditions import models_of_workers
from shared.postgres.job_row_store import JobRowStore
from shared.postgres.prepared import Prepared
from shared.postgres.tables import JobRow, ModelPauseRow, UpstreamCancellationRow, WorkerRow
from shared.postgres.upstream_cancellations import stored_state


@dataclass(frozen=True, slots=True)
class Move:
    """The move of a job to the model `to`.

    `upstream` is the request of its former model's upstream that is to be cancelled, because it has not ended.
    """

    job: JobSummary
    to: str
    reason: FallbackReason
    upstream: UpstreamState | None = None

    @property
    def conversation(self) -> str | None:
        """The job's conversation, if its route remembers which model answers it."""
        return None if self.job.decisions.route is None else self.job.decisions.route.conversation


def is_movable(to: ColumnElement[Any]) -> ColumnElement[bool]:
    """Condition: one of these models may take over the job, which has no token that its row knows of.

    `to`: an array of texts.
    """
    fallbacks: Any = JobRow.decisions["route"]["fallbacks"]
    takes_over: ColumnElement[bool] = fallbacks.has_any(to)
    return takes_over & JobRow.first_token_at.is_(None) & JobRow.follows.is_(None)


_IS_LIVE = WorkerRow.lease_expires_at > func.clock_timestamp()


def served_models() -> CompoundSelect[str]:
    """Select the models with a live worker whose engine has started."""
    return models_of_workers(_IS_LIVE, WorkerRow.state != WorkerState.LOADING.value)


def paused_models() -> CompoundSelect[Any]:
    """Select the models whose queue is paused.

    The queue of a paused model is also that of its adapters, which its workers report.
    """
    pauses = select(ModelPauseRow.model)
    return union(pauses, select(models_of_workers(_IS_LIVE, WorkerRow.model.in_(pauses)).subquery()))


def _availability() -> Prepared:
    accepting = models_of_workers(
        _IS_LIVE, WorkerRow.state == WorkerState.READY.value, WorkerRow.breaker_since.is_(None)
    ).subquery()
    found = union_all(select(accepting, false().label("paused")), select(paused_models().subquery(), true())).subquery()
    return Prepared(select(found.c.model, found.c.paused))


_AVAILABILITY = _availability()


class ReroutingStore(JobRowStore):
    """The base class of stores that move jobs to other models."""

    async def availability(self) -> Availability:
        """The models that have a worker which accepts jobs, and those whose queues are paused."""
        rows = await _AVAILABILITY.run(self._engine, {})
        paused = frozenset(row.model for row in rows if row.paused)
        return Availability(frozenset(row.model for row in rows) - paused, paused)

    async def _reroute(self, move: Move, *guards: ColumnElement[bool]) -> list[FollowerChange] | None:
        """Move a job if the guards hold and it has not changed since it was read; None if not.

        The running attempt, if there is one, ends. The next model starts without the deaths of the former one; but if
        these used up its attempts, the job runs alone there first. The answer is not that of the former model, so the
        response cache does not get it, and the job's followers, which are returned, are released.
        """
        job, route = move.job, move.job.decisions.route
        assert route is not None
        changed = route.moved(job.model, move.to).model_dump(mode="json", exclude_defaults=True)
        values: dict[Any, Any] = {
            JobRow.model: move.to,
            JobRow.status: JobStatus.QUEUED.value,
            JobRow.worker: None,
            JobRow.attempts: case(
                (JobRow.worker.is_not(None), ended_attempt(0, AttemptOutcome.REROUTED, move.reason.value)),
                else_=JobRow.attempts,
            ),
            JobRow.deaths: 0,
            JobRow.exposures: 0,
            JobRow.suspect: true() if move.reason is FallbackReason.ATTEMPTS_EXHAUSTED else JobRow.suspect,
            # The time until which its submit has put it off counts for each model, that of a busy upstream does not.
            JobRow.not_before: case((JobRow.deferred_since.is_(None), JobRow.not_before)),
            JobRow.deferred_since: None,
            JobRow.cache_key: None,
            JobRow.entry_key: None,
            JobRow.decisions: func.jsonb_set(
                JobRow.decisions, sql_cast(["route"], ARRAY(Text)), sql_cast(literal(changed, JSONB), JSONB)
            ),
        }
        moved = (
            update(JobRow)
            .where(
                JobRow.id == job.id,
                JobRow.attempt == job.attempt,
                JobRow.model == job.model,
                JobRow.status.in_([JobStatus.QUEUED.value, JobStatus.IN_PROGRESS.value]),
                is_movable(sql_cast([move.to], ARRAY(Text))),
                *guards,
            )
            .values(values)
            .returning(*LEADER_COLUMNS)
            .cte("moved")
        )
        statement: Any = select(moved.c.id, *(null().label(name) for name in CHANGE if name != "id"))
        leads = job.decisions.cache is not None
        if leads:
            # In the same statement: the next model's answer is not theirs. They inherit the deaths that the job had.
            deaths = literal(job.deaths, SmallInteger).label("deaths")
            columns = (deaths if one.key == "deaths" else moved.c[one.key] for one in LEADER_COLUMNS)
            released = release_followers(select(*columns).cte("leaders"))
            statement = select(union_all(statement, changed_rows(released)).subquery())
        if move.upstream is not None and (state := stored_state(job.id, move.upstream)) is not None:
            request = select(moved.c.id, literal(job.model), bindparam("state", state, JSONB))
            cancellation = insert(UpstreamCancellationRow).from_select(["job_id", "model", "state"], request)
            statement = statement.add_cte(cancellation.cte("cancellation"))
        rows = await self._all(statement, lambda row: row)
        if not rows:
            return None
        changes = [read_change(row) for row in rows if row.status is not None]
        return [*changes, *await self._settle_after_commit(job.id)] if leads else changes
