"""Counters and histograms about a worker's jobs: the stages up to the first token, and how attempts end."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from shared.domain.fallback import FallbackReason
from shared.domain.job import AttemptOutcome, Job
from shared.domain.result import JobResult
from shared.telemetry.definitions.labels import priority_label
from shared.telemetry.metrics import Metrics
from workers.engines.base import BusyReason


class JobMetrics:
    """Records one attempt of a job."""

    __slots__ = ("_job", "_metrics", "_model", "_priority")

    def __init__(self, metrics: Metrics, job: Job) -> None:
        self._metrics = metrics
        self._job = job
        self._model, self._priority = metrics.model_label(job.model), priority_label(job.priority)

    def claimed(self) -> None:
        """Record the claim. Only the first one measures the time in the queue."""
        job = self._job
        if job.attempt == 1:
            waited = job.attempts[-1].started_at - job.created_at
            self._metrics.queue_wait.labels(self._model, self._priority).observe(waited.total_seconds())

    def parts_dropped(self, number: int) -> None:
        """Record opaque parts that the job's model cannot read; once for each job."""
        if number and self._job.attempt == 1:
            self._metrics.opaque_parts_dropped.labels(self._model).inc(number)

    def submitted(self, after_s: float) -> None:
        """Record that the attempt was submitted to the engine, `after_s` seconds after its claim."""
        self._metrics.dispatch.labels(self._model).observe(after_s)

    def first_token(self, engine_s: float, at: datetime | None) -> None:
        """Record the attempt's first token, `engine_s` seconds after its submission.

        `at` is the time of it, or None if an earlier attempt had generated a token.
        """
        self._metrics.engine_first_token.labels(self._model).observe(engine_s)
        if at is not None and self._job.first_token_at is None:
            took = (at - self._job.created_at).total_seconds()
            self._metrics.time_to_first_token.labels(self._model, self._priority).observe(took)

    def usage_disagrees(self, parts: Iterable[str]) -> None:
        """Record that parts of the usage that a provider has reported cannot be right."""
        for part in parts:
            self._metrics.usage_disagreements.labels(self._model, part).inc()

    def attempt_ended(self, outcome: AttemptOutcome) -> None:
        """Record the end of the attempt, if it still owned its job."""
        self._metrics.attempts.labels(self._model, outcome).inc()

    def deferred(self, reason: BusyReason) -> None:
        """Record that the job was deferred."""
        self._metrics.attempts.labels(self._model, AttemptOutcome.DEFERRED).inc()
        self._metrics.jobs_deferred.labels(self._model, reason.value).inc()

    def rerouted(self, to: str, reason: FallbackReason) -> None:
        """Record that the job moved to another model."""
        self._metrics.attempts.labels(self._model, AttemptOutcome.REROUTED).inc()
        self._metrics.job_fallbacks.labels(self._job.model, to, reason.value).inc()

    def job_ended(self, result: JobResult) -> None:
        """Record the end of the job, if this attempt wrote it."""
        self._metrics.job_ended(self._job, result)

    def result_fenced(self) -> None:
        """Record a result that was not written because a later attempt owns the job."""
        self._metrics.fenced_writes.labels(self._model, "result").inc()
