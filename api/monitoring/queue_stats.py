"""SQL that counts queued and running jobs and live workers by model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import case, func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.postgres.job_conditions import IS_QUEUED, IS_RUNNING, not_held
from shared.postgres.prepared import Prepared
from shared.postgres.store import Store
from shared.postgres.tables import JobRow, ModelPauseRow, WorkerRow
from shared.telemetry.definitions.labels import priority_label
from shared.telemetry.metrics import Metrics

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Jobs by model and priority (metric labels), workers by model and state. `oldest`: seconds since submit.

    The model is that of the queue: the jobs of an adapter count for its base. Jobs that a soft limit or a budget lets
    start only later wait from then on.

    `unreadable`: by model, the waiting jobs that are withheld because a worker's version cannot read them; `deferred`:
    those that wait because their upstream was busy. `paused`: the models whose queues are paused.
    """

    waiting: Counter[Key] = field(default_factory=Counter)
    running: Counter[Key] = field(default_factory=Counter)
    oldest: dict[Key, float] = field(default_factory=dict)
    workers: Counter[Key] = field(default_factory=Counter)
    unreadable: Counter[str] = field(default_factory=Counter)
    deferred: Counter[str] = field(default_factory=Counter)
    paused: set[str] = field(default_factory=set)


_JOBS = func.count().label("jobs")
_WAITS_SINCE = func.greatest(JobRow.created_at, case((JobRow.deferred_since.is_(None), JobRow.not_before)))
_QUEUED = Prepared(
    select(
        JobRow.model,
        JobRow.priority,
        _JOBS,
        func.extract("epoch", func.clock_timestamp() - func.min(_WAITS_SINCE)).label("oldest_s"),
    )
    .where(IS_QUEUED, JobRow.follows.is_(None), not_held())
    .group_by(JobRow.model, JobRow.priority)
)
_RUNNING = Prepared(
    select(JobRow.model, JobRow.priority, _JOBS).where(IS_RUNNING).group_by(JobRow.model, JobRow.priority)
)
_ALIVE = Prepared(
    select(WorkerRow.model, WorkerRow.state, func.count().label("workers"))
    .where(WorkerRow.lease_expires_at > func.clock_timestamp())
    .group_by(WorkerRow.model, WorkerRow.state)
)
_UNREADABLE = Prepared(
    select(JobRow.model, _JOBS).where(JobRow.unreadable_at.is_not(None), IS_QUEUED).group_by(JobRow.model)
)
_DEFERRED = Prepared(
    select(JobRow.model, _JOBS)
    .where(JobRow.not_before > func.clock_timestamp(), JobRow.deferred_since.is_not(None), IS_QUEUED)
    .group_by(JobRow.model)
)
_PAUSED = Prepared(select(ModelPauseRow.model))


class QueueStatsStore(Store):
    """Reads the statistics. Each statement uses an index: of queued jobs, of running jobs, of workers."""

    def __init__(self, engine: AsyncEngine, metrics: Metrics, queue_of: Callable[[str], str] = str) -> None:
        """`queue_of`: see `Registry.queue_of`."""
        super().__init__(engine)
        self._metrics = metrics
        self._queue_of = queue_of

    async def read(self) -> QueueStats:
        """Read the current statistics."""
        fleet = QueueStats()
        for row in await _QUEUED.run(self._engine, {}):
            key = self._model_label(row.model), priority_label(row.priority)
            fleet.waiting[key] += row.jobs
            fleet.oldest[key] = max(fleet.oldest.get(key, 0.0), float(row.oldest_s))
        for row in await _RUNNING.run(self._engine, {}):
            fleet.running[self._model_label(row.model), priority_label(row.priority)] += row.jobs
        for row in await _ALIVE.run(self._engine, {}):
            fleet.workers[self._model_label(row.model), row.state] += row.workers
        for row in await _UNREADABLE.run(self._engine, {}):
            fleet.unreadable[self._model_label(row.model)] += row.jobs
        for row in await _DEFERRED.run(self._engine, {}):
            fleet.deferred[self._model_label(row.model)] += row.jobs
        fleet.paused.update(row.model for row in await _PAUSED.run(self._engine, {}))
        return fleet

    def _model_label(self, model: str) -> str:
        return self._metrics.model_label(self._queue_of(model))
