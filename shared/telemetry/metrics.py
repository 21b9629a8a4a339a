"""The metrics of a process, which `shared.telemetry.definitions` defines. A test compares docs/metrics.md with them.

Units are seconds and bytes. No label contains a job id, a key or a worker's name, and models that models.yaml does not
declare share one label (`Metrics.model_label`), so that clients cannot create series. Prometheus adds the process
(`instance`) itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from shared.config.models.reload import ReloadResult
from shared.domain.errors import ErrorCode
from shared.domain.job import JobStatus, JobSummary
from shared.domain.result import JobResult
from shared.telemetry.definitions.answers import AnswerMetrics
from shared.telemetry.definitions.evals import EvalMetrics
from shared.telemetry.definitions.exports import ExportMetrics
from shared.telemetry.definitions.jobs import JobMetrics
from shared.telemetry.definitions.labels import MODEL, OTHER, priority_label
from shared.telemetry.definitions.privacy import PrivacyMetrics
from shared.telemetry.definitions.processes import NOT_APPLIED, ProcessMetrics
from shared.telemetry.definitions.quality import QualityMetrics
from shared.telemetry.definitions.request_log import RequestLogMetrics
from shared.telemetry.definitions.requests import RequestMetrics
from shared.telemetry.definitions.usage import UsageMetrics
from shared.telemetry.definitions.webhooks import WebhookMetrics
from shared.telemetry.definitions.workers import WorkerMetrics
from shared.telemetry.instruments import Definition, Exporter, InstrumentSet


class Metrics(
    RequestMetrics,
    ProcessMetrics,
    JobMetrics,
    AnswerMetrics,
    UsageMetrics,
    RequestLogMetrics,
    PrivacyMetrics,
    ExportMetrics,
    WebhookMetrics,
    QualityMetrics,
    EvalMetrics,
    WorkerMetrics,
):
    """The metrics of one process."""

    def __init__(self, exporter: Exporter, models: Iterable[str]) -> None:
        """`models`: the models that the process serves; all others are labelled `OTHER`."""
        self._instruments = new = InstrumentSet(exporter)
        # In the order of docs/metrics.md.
        RequestMetrics.__init__(self, new)
        ProcessMetrics.__init__(self, new)
        JobMetrics.__init__(self, new)
        AnswerMetrics.__init__(self, new)
        UsageMetrics.__init__(self, new)
        RequestLogMetrics.__init__(self, new)
        PrivacyMetrics.__init__(self, new)
        ExportMetrics.__init__(self, new)
        WebhookMetrics.__init__(self, new)
        QualityMetrics.__init__(self, new)
        EvalMetrics.__init__(self, new)
        WorkerMetrics.__init__(self, new)
        self._models: frozenset[str] = frozenset()
        self._declare(models)

    @property
    def definitions(self) -> Sequence[Definition]:
        """All metrics, including those that this process does not export, in the order of docs/metrics.md."""
        return self._instruments.definitions

    def registry(self, *collectors: Collector) -> CollectorRegistry:
        """All that the process exports: its metrics, these collectors, and the metrics of the Python runtime."""
        return self._instruments.registry(*collectors)

    def loaded(self, models: Iterable[str]) -> None:
        """Note that models.yaml was read now. These models are labelled with their names from now on, and no others."""
        self._declare(models)
        self.models_loaded.set_to_current_time()

    def _declare(self, models: Iterable[str]) -> None:
        names = tuple(models)
        self._models = frozenset(names)
        self._instruments.start_at_zero(MODEL, names)

    def model_label(self, model: str) -> str:
        """The label of a model."""
        return model if model in self._models else OTHER

    def reloaded(self, result: ReloadResult) -> None:
        """Count a reload of models.yaml."""
        self.models_reloads.labels(result.value).inc()
        for other in NOT_APPLIED:
            self.models_outdated.labels(other.value).set(other is result)

    def submitted(self, model: str, priority: int) -> None:
        """Count a job after its row is committed."""
        self.jobs_submitted.labels(self.model_label(model), priority_label(priority)).inc()

    def warmed_up(self, model: str, warm: int, failed: int, tokens: int, took_s: float) -> None:
        """Record that a worker has filled its prompt cache."""
        model = self.model_label(model)
        self.warmed_prefixes.labels(model, "warm").inc(warm)
        self.warmed_prefixes.labels(model, "failed").inc(failed)
        self.warmed_tokens.labels(model).inc(tokens)
        self.warm_up_duration.labels(model).set(took_s)

    def follower_changed(self, model: str, priority: int, status: JobStatus) -> None:
        """Count a follower that has ended with its leader, or was released to the queue.

        Their tokens and durations are not counted, because no engine ran them.
        """
        name = self.model_label(model)
        outcome = "answered" if status.succeeded else "failed" if status.terminal else "released"
        self.followers.labels(name, outcome).inc()
        if status.terminal:
            self.jobs_finished.labels(name, priority_label(priority), status.value).inc()
        if status is JobStatus.FAILED:
            self.job_errors.labels(name, ErrorCode.ATTEMPTS_EXHAUSTED).inc()

    def cache_decided(self, job: JobSummary) -> None:
        """Count the outcome of the response cache for a submitted job.

        A job that the cache answered has ended. Its tokens and duration are not counted, because no engine ran it.
        """
        if (cache := job.decisions.cache) is not None:
            self.cache_requests.labels(self.model_label(job.model), cache.outcome).inc()
        if job.status.terminal:
            labels = self.model_label(job.model), priority_label(job.priority), job.status.value
            self.jobs_finished.labels(*labels).inc()

    def job_ended(self, job: JobSummary, result: JobResult) -> None:
        """Count a job's end. Called only by the process that wrote it to the row.

        Tokens are counted for the job that they were generated for, and durations for jobs that had a turn: neither for
        a follower that ends by itself.
        """
        model, priority = self.model_label(job.model), priority_label(job.priority)
        self.jobs_finished.labels(model, priority, result.status.value).inc()
        if result.error is not None:
            self.job_errors.labels(model, result.error.code).inc()
        if result.refusal is not None and result.refusal.refused:
            self.refusals.labels(model, result.refusal.source.value).inc()
        if job.follows is None:
            self.job_duration.labels(model, priority).observe((result.finished_at - job.created_at).total_seconds())
        usage = job.charged(result.usage)
        self.prompt_tokens.labels(model).inc(usage.prompt_tokens)
        self.cached_tokens.labels(model).inc(usage.cached_tokens)
        self.completion_tokens.labels(model).inc(usage.completion_tokens)
        self.reasoning_tokens.labels(model).inc(usage.reasoning_tokens)
        self.cache_write_tokens.labels(model).inc(usage.cache_write_tokens)
        if (estimate := job.decisions.estimated_tokens) is not None and result.usage.prompt_tokens:
            self.estimated_prompt_tokens.labels(model, "estimate").inc(estimate)
            self.estimated_prompt_tokens.labels(model, "usage").inc(result.usage.prompt_tokens)
            self.underestimated_prompts.labels(model).inc(result.usage.prompt_tokens > estimate)
