"""The Celery task: waits for its job, which the pool has begun."""

from __future__ import annotations

from celery import Celery, Task
from celery.exceptions import Ignore

from shared.domain.errors import HeadraceError
from shared.domain.job import JobStatus
from shared.redis.job_queue import TASK


class JobFailed(HeadraceError):
    """The job failed; its row says why."""


def register(app: Celery) -> Task:
    """Make the task of an application."""

    @app.task(name=TASK, throws=(JobFailed,))  # type: ignore[untyped-decorator]
    def generate(job_id: str, model: str) -> str:
        status = app.loop_thread.wait()
        if status is None:
            raise Ignore  # a message too many, or the job was handed back
        if status is JobStatus.FAILED:
            raise JobFailed(f"{job_id} failed")
        return str(status.value)

    return generate
