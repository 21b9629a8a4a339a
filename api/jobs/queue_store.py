"""SQL about queues: which jobs wait in which order, and how fast a model's workers get through them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import ARRAY, Text, and_, bindparam, func, literal_column, or_, select

from shared.domain.job import RUNNING, SUCCEEDED, Job, JobStatus, WorkerState
from shared.domain.priorities import BATCH_PRIORITY
from shared.postgres.store import Store, seconds
from shared.postgres.tables import JobRow, WorkerRow

# Places are exact up to this one; beyond, they are known at every `STEP`th job.
EXACT = 1000
STEP = 100
# Said in the statement itself, so that every plan may use the partial indexes.
_QUEUED = JobRow.status == literal_column(f"'{JobStatus.QUEUED}'")
_RUNNING = JobRow.status.in_([literal_column(f"'{status}'") for status in RUNNING])
# What a model's jobs took is measured by the last so many that ended well, within so long.
SAMPLE = 200
SAMPLE_S = 3600


@dataclass(frozen=True, slots=True)
class Order:
    """Who waited for a model, in the order of service: the first `EXACT` jobs and every `STEP`th after them."""

    keys: list[tuple[int, str]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def place(self, priority: int, job_id: str, *, surely_waits: bool) -> int | None:
        """Jobs before this one. None: it did not wait.

        Only of the first `EXACT` it is known that they wait. Further back the answer is for a job that `surely_waits`,
        rounded down by less than `STEP`.
        """
        key = (priority, job_id)
        at = bisect_left(self.keys, key)
        if at < len(self.keys) and self.keys[at] == key:
            return self.places[at]
        if at >= EXACT and surely_waits:
            return self.places[at - 1]
        return None


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a model is served. `slots` are those of its live workers; `service_s`, what its last jobs took.

    `service_s` is None where none has ended lately. Jobs run; `urgent` is how many of them are no batch's.
    """

    slots: int
    running: int
    urgent: int
    service_s: float | None

    def wait_s(self, place: int, in_the_way: int) -> float | None:
        """Seconds until the job at a place starts, where so many running jobs are not set aside for it.

        At once where a slot is free for it. Else as many jobs as there are slots end in the time that one takes.
        None where there is nothing to tell it by: no worker lives, or none of its jobs has ended yet.
        """
        turns = place + 1 - max(0, self.slots - in_the_way)
        if not self.slots:
            return None
        if turns <= 0:
            return 0.0
        return round(turns * self.service_s / self.slots, 1) if self.service_s is not None else None


class QueueStore(Store):
    """Queues in PostgreSQL."""

    async def place(self, job: Job) -> int:
        """Jobs of the same model that are served before this one; counted up to `EXACT`."""
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
        """Who waits for these models. One walk along the queue's index, however many ask."""
        place = func.row_number().over(partition_by=JobRow.model, order_by=(JobRow.priority, JobRow.id)) - 1
        waiting = (
            select(JobRow.model, JobRow.priority, JobRow.id, place.label("place"))
            .where(
                _QUEUED,
                JobRow.model == func.any(bindparam("models", list(models), type_=ARRAY(Text))),
            )
            .subquery()
        )
        known = or_(waiting.c.place < EXACT, waiting.c.place % STEP == 0)
        statement = select(waiting).where(known).order_by(waiting.c.model, waiting.c.place)
        found = {model: Order() for model in models}
        async with self._engine.connect() as connection:
            for model, priority, job_id, number in await connection.execute(statement):
                found[model].keys.append((priority, job_id))
                found[model].places.append(number)
        return found

    async def pace(self, model: str) -> Pace:
        """How fast a model is served now."""
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
