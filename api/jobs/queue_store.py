"""SQL about queues: the order of queued jobs, and the rate at which they are served."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, Protocol

from sqlalchemy import (
    ARRAY,
    Integer,
    Text,
    and_,
    bindparam,
    case,
    column,
    func,
    or_,
    select,
    true,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.config.models.loader import Registry
from shared.domain.job import SUCCEEDED, JobSummary, WorkerState
from shared.domain.priorities import BATCH_PRIORITY
from shared.postgres.job_conditions import IS_QUEUED, IS_RUNNING
from shared.postgres.job_rows import SUMMARY_COLUMNS, to_summary
from shared.postgres.prepared import Prepared
from shared.postgres.store import Store, seconds
from shared.postgres.tables import JobRow, ModelPauseRow, WorkerRow

# Positions up to this one are exact; beyond it, only every `STEP`th job is listed.
EXACT = 1000
STEP = 100
# The service time of a model is the mean of its last `SAMPLE` jobs of the last `SAMPLE_S` seconds that succeeded.
SAMPLE = 200
SAMPLE_S = 3600
# They are taken from this many ended jobs, some of which never ran, such as those that the response cache answered.
SEARCHED = 20 * SAMPLE


@dataclass(slots=True)
class QueueOrder:
    """A model's queue in the order of service: the first `EXACT` jobs, then every `STEP`th.

    `not_before` has those of them that were deferred, and when they can be claimed again. `paused`: an operator has
    paused the queue; not known of an empty one.
    """

    keys: list[tuple[int, str]] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    not_before: dict[str, datetime] = field(default_factory=dict)
    paused: bool = False

    def position(self, priority: int, job_id: str, *, known_queued: bool) -> int | None:
        """Return the number of jobs before this one; None if it was not queued.

        Beyond the first `EXACT` jobs, membership is unknown: the position of a job that is `known_queued` is rounded
        down by less than `STEP`, that of others is None.
        """
        key = (priority, job_id)
        at = bisect_left(self.keys, key)
        if at < len(self.keys) and self.keys[at] == key:
            return self.positions[at]
        if at >= EXACT and known_queued:
            return self.positions[at - 1]
        return None


@dataclass(frozen=True, slots=True)
class ServiceRate:
    """The rate at which a model's jobs are served.

    `slots` is the total of its live workers whose circuit breaker is closed, `running` the number of running jobs,
    `urgent` that of running jobs not in a batch. `service_s` is the mean service time of recent jobs; None if there are
    none. `workers` is the number of its live workers. `paused`: an operator has paused its queue.
    """

    slots: int
    running: int
    urgent: int
    service_s: float | None
    workers: int
    paused: bool = False

    def wait_s(self, position: int, occupied: int) -> float | None:
        """Estimate the seconds until the job at a position starts, if `occupied` slots are not preempted for it.

        0 if a slot is free. Otherwise assumes that one job per slot ends in each service time. None if there is no
        live worker, the queue is paused or the service time is unknown.
        """
        turns = position + 1 - max(0, self.slots - occupied)
        if not self.slots or self.paused:
            return None
        if turns <= 0:
            return 0.0
        return round(turns * self.service_s / self.slots, 1) if self.service_s is not None else None


class QueuedJob(Protocol):
    """A job's place in its queue."""

    @property
    def model(self) -> str: ...

    @property
    def priority(self) -> int: ...

    @property
    def id(self) -> str: ...


# The models whose jobs are on the queue, and the one that the queue and its workers belong to.
_MODELS = bindparam("models", type_=ARRAY(Text))
_IN_QUEUE = JobRow.model == func.any(_MODELS)


def _position() -> Prepared:
    priority = bindparam("priority", type_=Integer)
    is_older = and_(JobRow.priority == priority, JobRow.id < bindparam("job", type_=Text))
    ahead = (
        select(JobRow.id)
        .where(IS_QUEUED, JobRow.follows.is_(None), _IN_QUEUE, or_(JobRow.priority < priority, is_older))
        .limit(EXACT)
        .subquery()
    )
    return Prepared(select(func.count().label("ahead")).select_from(ahead))


def _pace() -> Prepared:
    queue = bindparam("queue", type_=Text)
    workers = (
        select(WorkerRow.slots, WorkerRow.breaker_since)
        .where(
            WorkerRow.model == queue,
            WorkerRow.lease_expires_at > func.clock_timestamp(),
            WorkerRow.state == WorkerState.READY.value,
        )
        .cte("workers")
    )
    slots = select(func.coalesce(func.sum(workers.c.slots), 0)).where(workers.c.breaker_since.is_(None))
    running = select(JobRow.priority).where(_IN_QUEUE, IS_RUNNING).cte("running")
    # An index has the order of each model's jobs, but not that of several models'.
    models = func.unnest(_MODELS).table_valued(column("model", Text)).render_derived(name="models")
    of_one = (
        select(JobRow.status, JobRow.attempt_started_at, JobRow.finished_at)
        .where(JobRow.model == models.c.model, JobRow.finished_at > func.now() - seconds(SAMPLE_S))
        .order_by(JobRow.finished_at.desc())
        .limit(SEARCHED)
        .lateral("of_one")
    )
    ended = select(of_one).join_from(models, of_one, true()).subquery()
    recent = (
        select(ended.c.status, (ended.c.finished_at - ended.c.attempt_started_at).label("took"))
        .where(ended.c.attempt_started_at.is_not(None))
        .order_by(ended.c.finished_at.desc())
        .limit(SAMPLE)
        .subquery()
    )
    return Prepared(
        select(
            select(func.count()).select_from(workers).scalar_subquery().label("workers"),
            slots.scalar_subquery().label("slots"),
            select(func.count()).select_from(running).scalar_subquery().label("running"),
            select(func.count()).where(running.c.priority < BATCH_PRIORITY).scalar_subquery().label("urgent"),
            select(func.avg(func.extract("epoch", recent.c.took)))
            .where(recent.c.status.in_(SUCCEEDED))
            .scalar_subquery()
            .label("service_s"),
            select(func.count()).where(ModelPauseRow.model == queue).scalar_subquery().label("pauses"),
        )
    )


@lru_cache(maxsize=16)
def _orders(adapters: tuple[tuple[str, str], ...]) -> Prepared:
    """`adapters`: the names of adapters, and the models whose queues their jobs lie on."""
    queue: Any = JobRow.model
    if adapters:
        queue = case(dict(adapters), value=JobRow.model, else_=JobRow.model).label("model")
    position = func.row_number().over(partition_by=queue, order_by=(JobRow.priority, JobRow.id)) - 1
    waiting = (
        select(queue, JobRow.priority, JobRow.id, JobRow.not_before, position.label("position"))
        .where(IS_QUEUED, JobRow.follows.is_(None), _IN_QUEUE)
        .subquery()
    )
    known = or_(waiting.c.position < EXACT, waiting.c.position % STEP == 0)
    return Prepared(
        select(waiting, ModelPauseRow.model.is_not(None).label("paused"))
        .join_from(waiting, ModelPauseRow, ModelPauseRow.model == waiting.c.model, isouter=True)
        .where(known)
        .order_by(waiting.c.model, waiting.c.position)
    )


# Routes wait for these, or share their process's time with them.
_POSITION = _position()
_PACE = _pace()


class QueueStore(Store):
    """Reads the order and the service rate of queued jobs from PostgreSQL.

    The queue of a model is the one that its jobs lie on: that of its base, if it is an adapter.
    """

    def __init__(self, engine: AsyncEngine, registry: Registry | None = None) -> None:
        """Without a registry, each model has a queue of its own."""
        super().__init__(engine)
        self._registry = registry

    def _queue_of(self, model: str) -> str:
        return model if self._registry is None else self._registry.queue_of(model)

    def _names_on(self, queue: str) -> list[str]:
        return [queue] if self._registry is None else list(self._registry.names_on(queue))

    async def position(self, job: QueuedJob) -> int:
        """Count the jobs of the same queue that are served before this one, up to `EXACT`."""
        models = self._names_on(self._queue_of(job.model))
        (row,) = await _POSITION.run(self._engine, {"models": models, "priority": job.priority, "job": job.id})
        return int(row.ahead)

    async def leader(self, job: JobSummary) -> JobSummary | None:
        """Return the job that a job follows, if it is queued."""
        statement = select(*SUMMARY_COLUMNS).where(JobRow.id == job.follows, IS_QUEUED)
        return await self._one(statement, to_summary)

    async def queued_at(self, job_ids: Sequence[str]) -> dict[str, str]:
        """Return the models of those of these jobs that are queued."""
        ids = bindparam("ids", list(job_ids), type_=ARRAY(Text))
        statement = select(JobRow.id, JobRow.model).where(JobRow.id == func.any(ids), IS_QUEUED)
        return dict(await self._all(statement, lambda row: (str(row.id), str(row.model))))

    async def orders(self, models: Sequence[str]) -> dict[str, QueueOrder]:
        """Read the queues of these models, by model, in one index scan."""
        queues = {self._queue_of(model): QueueOrder() for model in models}
        names = {name: queue for queue in queues for name in self._names_on(queue)}
        adapters = {name: queue for name, queue in names.items() if name != queue}
        for row in await _orders(tuple(sorted(adapters.items()))).run(self._engine, {"models": list(names)}):
            order = queues[row.model]
            order.keys.append((row.priority, row.id))
            order.positions.append(row.position)
            order.paused = row.paused
            if row.not_before is not None:
                order.not_before[row.id] = row.not_before
        return {model: queues[self._queue_of(model)] for model in models}

    async def pace(self, model: str) -> ServiceRate:
        """Read the current pace of a model's queue."""
        queue = self._queue_of(model)
        (row,) = await _PACE.run(self._engine, {"queue": queue, "models": self._names_on(queue)})
        service_s = None if row.service_s is None else float(row.service_s)
        return ServiceRate(row.slots, row.running, row.urgent, service_s, row.workers, bool(row.pauses))
