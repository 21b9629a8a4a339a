"""SQL about queues: the order of the queued jobs, and how fast a model's workers serve them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import ARRAY, Text, and_, bindparam, func, literal_column, or_, select

from shared.domain.job import RUNNING, SUCCEEDED, Job, JobStatus, WorkerState
from shared.domain.priorities import BATCH_PRIORITY
from shared.postgres.store import Store, seconds
from shared.postgres.tables import JobRow, WorkerRow

# Positions are exact up to this one; beyond it, that of every `STEP`th job is known.
EXACT = 1000
STEP = 100
# Literals instead of parameters, so that every plan can use the partial indexes.
_QUEUED = JobRow.status == literal_column(f"'{JobStatus.QUEUED}'")
_RUNNING = JobRow.status.in_([literal_column(f"'{status}'") for status in RUNNING])
# The service time of a model is the mean of its last `SAMPLE` successful jobs of the last `SAMPLE_S` seconds.
SAMPLE = 200
SAMPLE_S = 3600


@dataclass(frozen=True, slots=True)
class Order:
    """A model's queue in the order of service: the first `EXACT` jobs and every `STEP`th after them."""

    keys: list[tuple[int, str]] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)

    def position(self, priority: int, job_id: str, *, known_queued: bool) -> int | None:
        """The number of jobs before this one; None if it was not queued.

        Beyond the first `EXACT` jobs the queue does not show whether a job is in it: the position of a job that is
        `known_queued` is then rounded down by less than `STEP`.
        """
        key = (priority, job_id)
        at = bisect_left(self.keys, key)
        if at < len(self.keys) and self.keys[at] == key:
            return self.positions[at]
        if at >= EXACT and known_queued:
            return self.positions[at - 1]
        return None


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a model is served.

    `slots` are those of its live workers. `running` counts running jobs, `urgent` those of them that belong to no
    batch. `service_s` is the mean time of its last jobs; None if none has ended lately.
    """

    slots: int
    running: int
    urgent: int
    service_s: float | None

    def wait_s(self, position: int, occupied: int) -> float | None:
        """Seconds until the job at a position starts, if `occupied` slots are not preempted for it.

        0 if a slot is free for it. Otherwise, as many jobs as there are slots end per service time. None if that is
        unknown: there is no live worker, or no job of the model has ended lately.
        """
        turns = position + 1 - max(0, self.slots - occupied)
        if not self.slots:
            return None
        if turns <= 0:
            return 0.0
        return round(turns * self.service_s / self.slots, 1) if self.service_s is not None else None


class QueueStore(Store):
    """Queues in PostgreSQL."""

    async def position(self, job: Job) -> int:
        """The number of jobs of the same model that are served before this one, at most `EXACT`."""
        ahead = (
            select(JobRow.id)
            .where(
                _QUEUED,
                JobRow.model == job.model,
                or_(JobRow.priority < job.priority, and_(JobRow.priority == job.priority, JobRow.id < job.id)),
            )
            .limit(EXACT)
            .subquery()
        )
        row = await self._first(select(func.count().label("ahead")).select_from(ahead))
        return int(row.ahead) if row is not None else 0

    async def orders(self, models: Sequence[str]) -> dict[str, Order]:
        """The queues of these models, from one scan of the queue's index."""
        position = func.row_number().over(partition_by=JobRow.model, order_by=(JobRow.priority, JobRow.id)) - 1
        waiting = (
            select(JobRow.model, JobRow.priority, JobRow.id, position.label("position"))
            .where(
                _QUEUED,
                JobRow.model == func.any(bindparam("models", list(models), type_=ARRAY(Text))),
            )
            .subquery()
        )
        known = or_(waiting.c.position < EXACT, waiting.c.position % STEP == 0)
        statement = select(waiting).where(known).order_by(waiting.c.model, waiting.c.position)
        found = {model: Order() for model in models}
        async with self._engine.connect() as connection:
            for model, priority, job_id, number in await connection.execute(statement):
                found[model].keys.append((priority, job_id))
                found[model].positions.append(number)
        return found

    async def pace(self, model: str) -> Pace:
        """How fast a model is served at present."""
        slots = (
            select(func.coalesce(func.sum(WorkerRow.slots), 0))
            .where(
                WorkerRow.model == model,
                WorkerRow.lease_expires_at > func.clock_timestamp(),
                WorkerRow.state == WorkerState.READY.value,
            )
            .scalar_subquery()
        )
        running = select(JobRow.priority).where(JobRow.model == model, _RUNNING).cte("running")
        recent = (
            select(JobRow.status, (JobRow.finished_at - JobRow.attempt_started_at).label("took"))
            .where(JobRow.model == model, JobRow.finished_at > func.now() - seconds(SAMPLE_S))
            .order_by(JobRow.finished_at.desc())
            .limit(SAMPLE)
            .subquery()
        )
        well = recent.c.status.in_(SUCCEEDED)
        statement = select(
            slots.label("slots"),
            select(func.count()).select_from(running).scalar_subquery().label("running"),
            select(func.count()).where(running.c.priority < BATCH_PRIORITY).scalar_subquery().label("urgent"),
            select(func.avg(func.extract("epoch", recent.c.took))).where(well).scalar_subquery().label("service_s"),
        )
        async with self._engine.connect() as connection:
            row = (await connection.execute(statement)).one()
        return Pace(row.slots, row.running, row.urgent, None if row.service_s is None else float(row.service_s))
