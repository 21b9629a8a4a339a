"""The Celery task: it waits for its job, which the pool has started."""

from __future__ import annotations

from celery import Celery, Task
from celery.exceptions import Ignore

from shared.domain.errors import HeadraceError
from shared.domain.job import JobStatus
from shared.redis.job_queue import TASK


class JobFailed(HeadraceError):
    """The job failed. Its row has the reason."""


def register(app: Celery) -> Task:
    """Register the task with an application."""

    @app.task(name=TASK, throws=(JobFailed,))  # type: ignore[untyped-decorator]
    def generate(job_id: str, model: str) -> str:
        status = app.loop_thread.wait()
        if status is None:
            raise Ignore  # the job was not claimed, or was requeued
        if status is JobStatus.FAILED:
            raise JobFailed(f"{job_id} failed")
        return str(status.value)

    return generate
