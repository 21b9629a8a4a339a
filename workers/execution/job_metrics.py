"""Counters and histograms about a worker's jobs: the stages up to the first token, and how attempts end."""

from __future__ import annotations

from datetime import datetime

from shared.domain.job import AttemptOutcome, Job
from shared.telemetry import metrics
from shared.telemetry.metrics import model_label, priority_label


def claimed(job: Job) -> None:
    """Record a claim. Only the first one measures the time in the queue."""
    if job.attempt == 1:
        waited = job.attempts[-1].started_at - job.created_at
        metrics.QUEUE_WAIT.labels(model_label(job.model), priority_label(job.priority)).observe(waited.total_seconds())


def submitted(job: Job, after_s: float) -> None:
    """Record that an attempt was submitted to the engine, `after_s` seconds after its claim."""
    metrics.DISPATCH.labels(model_label(job.model)).observe(after_s)


def first_token(job: Job, engine_s: float, at: datetime | None) -> None:
    """Record an attempt's first token, `engine_s` seconds after its submission.

    `at` is the time of it, or None if an earlier attempt had generated a token.
    """
    model = model_label(job.model)
    metrics.ENGINE_FIRST_TOKEN.labels(model).observe(engine_s)
    if at is not None and job.first_token_at is None:
        took = (at - job.created_at).total_seconds()
        metrics.TIME_TO_FIRST_TOKEN.labels(model, priority_label(job.priority)).observe(took)


def attempt_ended(job: Job, outcome: AttemptOutcome) -> None:
    """Record the end of an attempt that still owned its job."""
    metrics.ATTEMPTS.labels(model_label(job.model), outcome).inc()


def result_fenced(job: Job) -> None:
    """Record a result that was not written because a later attempt owns the job."""
    metrics.FENCED_WRITES.labels(model_label(job.model), "result").inc()
