"""What a worker counts of its jobs: the stages on the way to the first token, and how attempts end."""

from __future__ import annotations

from datetime import datetime

from shared.domain.job import AttemptOutcome, Job
from shared.telemetry import metrics
from shared.telemetry.metrics import model_label, priority_label


def claimed(job: Job) -> None:
    """A job was claimed. Its wait is that before its first attempt."""
    if job.attempt == 1:
        waited = job.attempts[-1].started_at - job.created_at
        metrics.QUEUE_WAIT.labels(model_label(job.model), priority_label(job.priority)).observe(waited.total_seconds())


def given(job: Job, after_s: float) -> None:
    """The engine is given an attempt, so long after its claim."""
    metrics.DISPATCH.labels(model_label(job.model)).observe(after_s)


def first_token(job: Job, engine_s: float, at: datetime | None) -> None:
    """The engine has made an attempt's first token. `at`: when, where no attempt before it had made one."""
    model = model_label(job.model)
    metrics.ENGINE_FIRST_TOKEN.labels(model).observe(engine_s)
    if at is not None and job.first_token_at is None:
        took = (at - job.created_at).total_seconds()
        metrics.TIME_TO_FIRST_TOKEN.labels(model, priority_label(job.priority)).observe(took)


def attempt_ended(job: Job, outcome: AttemptOutcome) -> None:
    """An attempt that this worker still owned has ended."""
    metrics.ATTEMPTS.labels(model_label(job.model), outcome).inc()


def result_refused(job: Job) -> None:
    """A result was not written: a later attempt owns the job."""
    metrics.FENCED_WRITES.labels(model_label(job.model), "result").inc()
