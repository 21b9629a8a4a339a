"""SQL that counts queued and running jobs and live workers by model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.postgres.job_conditions import IS_QUEUED, IS_RUNNING
from shared.postgres.store import Store
from shared.postgres.tables import JobRow, ModelPauseRow, WorkerRow
from shared.telemetry.definitions.labels import priority_label
from shared.telemetry.metrics import Metrics

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Jobs by model and priority (metric labels), workers by model and state. `oldest`: seconds since submit.

    The model is that of the queue: the jobs of an adapter count for its base.

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


class QueueStatsStore(Store):
    """Reads the statistics. Each statement uses an index: of queued jobs, of running jobs, of workers."""

    def __init__(self, engine: AsyncEngine, metrics: Metrics, queue_of: Callable[[str], str] = str) -> None:
        """`queue_of`: see `Registry.queue_of`."""
        super().__init__(engine)
        self._metrics = metrics
        self._queue_of = queue_of

    async def read(self) -> QueueStats:
        """Read the current statistics."""
        age = func.extract("epoch", func.clock_timestamp() - func.min(JobRow.created_at))
        queued = (
            select(JobRow.model, JobRow.priority, func.count(), age)
            .where(IS_QUEUED, JobRow.follows.is_(None))
            .group_by(JobRow.model, JobRow.priority)
        )
        running = (
            select(JobRow.model, JobRow.priority, func.count())
            .where(IS_RUNNING)
            .group_by(JobRow.model, JobRow.priority)
        )
        alive = (
            select(WorkerRow.model, WorkerRow.state, func.count())
            .where(WorkerRow.lease_expires_at > func.clock_timestamp())
            .group_by(WorkerRow.model, WorkerRow.state)
        )
        unreadable = (
            select(JobRow.model, func.count())
            .where(JobRow.unreadable_at.is_not(None), IS_QUEUED)
            .group_by(JobRow.model)
        )
        deferred = (
            select(JobRow.model, func.count())
            .where(JobRow.not_before > func.clock_timestamp(), JobRow.deferred_since.is_not(None), IS_QUEUED)
            .group_by(JobRow.model)
        )
        fleet = QueueStats()
        async with self._engine.connect() as connection:
            for model, priority, count, oldest_s in await connection.execute(queued):
                key = self._model_label(model), priority_label(priority)
                fleet.waiting[key] += count
                fleet.oldest[key] = max(fleet.oldest.get(key, 0.0), float(oldest_s))
            for model, priority, count in await connection.execute(running):
                fleet.running[self._model_label(model), priority_label(priority)] += count
            for model, state, count in await connection.execute(alive):
                fleet.workers[self._model_label(model), state] += count
            for model, count in await connection.execute(unreadable):
                fleet.unreadable[self._model_label(model)] += count
            for model, count in await connection.execute(deferred):
                fleet.deferred[self._model_label(model)] += count
            fleet.paused.update((await connection.execute(select(ModelPauseRow.model))).scalars())
        return fleet

    def _model_label(self, model: str) -> str:
        return self._metrics.model_label(self._queue_of(model))
