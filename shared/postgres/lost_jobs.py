"""SQL about lost jobs: those of dead workers, and those that workers have released."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Select,
    SmallInteger,
    Text,
    and_,
    func,
    literal_column,
    or_,
    select,
    type_coerce,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from shared.domain.job import AttemptOutcome, JobStatus, JobSummary
from shared.domain.priorities import Hint
from shared.domain.result import JobResult
from shared.domain.suspects import Verdict, judge
from shared.postgres.followers import Ended
from shared.postgres.job_attempts import after_death, requeued
from shared.postgres.job_conditions import IS_RUNNING, live_workers, overdue
from shared.postgres.job_ends import EndStatements, result_record
from shared.postgres.job_row_store import JobRowStore
from shared.postgres.job_rows import LOST, SUMMARY_COLUMNS
from shared.postgres.prepared import Prepared
from shared.postgres.store import Records
from shared.postgres.tables import JobRow


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
_END_LOST = EndStatements(IS_RUNNING, JobRow.worker.endswith(LOST))


def lost_jobs(*columns: Any) -> Select[Any]:
    """Select the running jobs of dead workers, and those that workers have released."""
    return select(*columns).where(_is_lost()).limit(literal_column(str(LOST_LIMIT)))


def _is_lost() -> ColumnElement[bool]:
    """Condition: the job is running, and its worker is dead or has released it."""
    return and_(IS_RUNNING, JobRow.worker.not_in(live_workers()))


_LOST = Prepared(
    lost_jobs(
        JobRow.id,
        JobRow.attempt,
        JobRow.worker,
        JobRow.deaths,
        JobRow.suspect,
        JobRow.exposures,
        or_(JobRow.status == JobStatus.CANCELLING.value, overdue()).label("ends"),
    )
)


class LostJobStore(JobRowStore):
    """Reads lost jobs, and requeues or ends them."""

    async def lost(self) -> list[LostJob]:
        """Return the running jobs of dead workers, and those that workers have released."""
        return [_lost_job(row) for row in await _LOST.run(self._engine, {})]

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


def _lost_job(row: Any) -> LostJob:
    return LostJob(row.id, row.attempt, row.worker, row.deaths, row.suspect, row.exposures, row.ends)
