"""Every metric of Headrace: name, labels, buckets, who serves it. The table in docs/metrics.md is held to from here.

Seconds and bytes are the units. No label ever holds a job's id, a key or a worker's name, and a model only where
models.yaml declares it (`model_label`): a client cannot make series. Which process a value is from, Prometheus adds
itself (`instance`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from shared.domain.errors import ErrorCode
from shared.domain.job import TERMINAL, AttemptOutcome, Job, WorkerState
from shared.domain.priorities import BANDS
from shared.domain.result import JobResult
from shared.telemetry.instruments import (
    Aggregation,
    Definition,
    Exporter,
    InstrumentSet,
    Label,
)

API, WORKER = Exporter.API, Exporter.WORKER

# Models that models.yaml does not declare (any more): their rows are still there.
OTHER = "(other)"
_BAND_NAMES = {
    priority: f"{band[0]}-{band[-1]}" if len(band) > 1 else str(band[0]) for band in BANDS.values() for priority in band
}

PRIORITY_LABELS = tuple(dict.fromkeys(_BAND_NAMES.values()))

MODEL = Label("model", bound="names in models.yaml, and `(other)`")
PRIORITY = Label("priority", PRIORITY_LABELS)

# With edges at the goals, 200 and 500 ms, and close to both sides of them.
FIRST_TOKEN_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 1, 1.5, 2.5, 5, 10, 30, 60, 300,
)  # fmt: skip
WAIT_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 30, 60, 300, 1800,
    7200,
)  # fmt: skip
INTER_TOKEN_BUCKETS = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5,
)  # fmt: skip
DURATION_BUCKETS = (0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120, 300, 600, 1800, 7200)


class Metrics:
    """The metrics of one process.

    Models other than the process's `models` are labelled `(other)`; the counters of these models start at 0.
    """

    def __init__(self, exporter: Exporter, models: Iterable[str]) -> None:
        names = tuple(models)
        self._models = frozenset(names)
        self._instruments = new = InstrumentSet(exporter)

        # HTTP

        self.http_requests = new.counter(
            "headrace_http_requests_total",
            "Answers, by route template, method and status; counted when their head is sent.",
            (
                Label("method", bound="HTTP's own methods, and `(other)`"),
                Label("route", bound="route templates, and `(none)`"),
                Label("status", bound="HTTP status codes"),
            ),
            API,
        )
        self.http_response = new.histogram(
            "headrace_http_response_seconds",
            "From a request to its answer's head: all of a plain call, a stream's beginning.",
            (
                Label("method", bound="HTTP's own methods, and `(other)`"),
                Label("route", bound="route templates, and `(none)`"),
            ),
            FIRST_TOKEN_BUCKETS,
            API,
        )

        # Jobs, as they come and go

        self.jobs_submitted = new.counter(
            "headrace_jobs_submitted_total", "Jobs whose rows were committed.", (MODEL, PRIORITY), API
        )
        self.jobs_finished = new.counter(
            "headrace_jobs_finished_total",
            "Jobs that ended, by how; counted by the process that wrote the end.",
            (MODEL, PRIORITY, Label("status", tuple(status.value for status in TERMINAL))),
            API,
            WORKER,
        )
        self.job_errors = new.counter(
            "headrace_job_errors_total",
            "Jobs that ended with an error, by its code.",
            (MODEL, Label("code", tuple(code.value for code in ErrorCode))),
            API,
            WORKER,
        )
        self.attempts = new.counter(
            "headrace_attempts_total",
            "Attempts that ended, by how. More than one a job: something died, or a worker was drained.",
            (MODEL, Label("outcome", tuple(outcome.value for outcome in AttemptOutcome))),
            API,
            WORKER,
        )
        self.rescues = new.counter(
            "headrace_rescues_total", "Jobs taken from a silent worker and queued again.", (MODEL,), API, WORKER
        )
        self.hints_resent = new.counter(
            "headrace_hints_resent_total", "Waiting jobs whose message was lost, and sent again.", (MODEL,), WORKER
        )
        self.fenced_writes = new.counter(
            "headrace_fenced_writes_total",
            "Writes refused because a later attempt owns the job.",
            (MODEL, Label("write", ("log", "result"))),
            WORKER,
        )

        # Jobs, from the rows. Each API process reports all of them, so they are aggregated by `max`, never by `sum`.

        self.jobs_waiting = new.scraped(
            "headrace_jobs_waiting", "Queued jobs.", (MODEL, PRIORITY), API, aggregation=Aggregation.MAX
        )
        self.jobs_running = new.scraped(
            "headrace_jobs_running",
            "Jobs that a worker has claimed.",
            (MODEL, PRIORITY),
            API,
            aggregation=Aggregation.MAX,
        )
        self.queue_oldest_age = new.scraped(
            "headrace_queue_oldest_age_seconds",
            "How long the oldest queued job has been waiting since its submit; 0 where none waits.",
            (MODEL, PRIORITY),
            API,
            aggregation=Aggregation.MAX,
        )
        self.workers = new.scraped(
            "headrace_workers",
            "Workers whose lease is valid.",
            (MODEL, Label("state", tuple(state.value for state in WorkerState))),
            API,
            aggregation=Aggregation.MAX,
        )
        self.worker_slots = new.scraped(
            "headrace_worker_slots",
            "Jobs that one worker of the model runs at once. From models.yaml, so it is there without a worker too.",
            (MODEL,),
            API,
            WORKER,
            aggregation=Aggregation.MAX,
        )
        self.database_up = new.scraped(
            "headrace_database_up",
            "1: the process reached PostgreSQL at this scrape.",
            (),
            API,
            aggregation=Aggregation.MIN,
        )
        self.redis_up = new.scraped(
            "headrace_redis_up", "1: the process reached Redis at this scrape.", (), API, aggregation=Aggregation.MIN
        )

        # Latency. Time to the first token is queue wait, then dispatch, then the engine.

        self.time_to_first_token = new.histogram(
            "headrace_time_to_first_token_seconds",
            "From a job's commit to its first token in the worker.",
            (MODEL, PRIORITY),
            FIRST_TOKEN_BUCKETS,
            WORKER,
        )
        self.queue_wait = new.histogram(
            "headrace_queue_wait_seconds",
            "From a job's commit to its first claim by a worker.",
            (MODEL, PRIORITY),
            WAIT_BUCKETS,
            WORKER,
        )
        self.dispatch = new.histogram(
            "headrace_dispatch_seconds",
            "From a claim to the engine being given the request.",
            (MODEL,),
            WAIT_BUCKETS,
            WORKER,
        )
        self.engine_first_token = new.histogram(
            "headrace_engine_first_token_seconds",
            "From the engine being given a request to its first token.",
            (MODEL,),
            FIRST_TOKEN_BUCKETS,
            WORKER,
        )
        self.engine_queue = new.histogram(
            "headrace_engine_queue_seconds",
            "vLLM: a finished request's wait inside the engine.",
            (MODEL,),
            WAIT_BUCKETS,
            WORKER,
        )
        self.engine_prefill = new.histogram(
            "headrace_engine_prefill_seconds",
            "vLLM: a finished request's prefill, from being scheduled to its first token.",
            (MODEL,),
            FIRST_TOKEN_BUCKETS,
            WORKER,
        )
        self.stream_first_token = new.histogram(
            "headrace_stream_first_token_seconds",
            "From a reader's coming to the first text given to it, where it came before the text was there.",
            (),
            FIRST_TOKEN_BUCKETS,
            API,
        )
        self.inter_token_latency = new.weighted_histogram(
            "headrace_inter_token_latency_seconds",
            "Between two tokens of one choice after the first; tokens that go in one flush share their gap.",
            MODEL,
            INTER_TOKEN_BUCKETS,
            WORKER,
        )
        self.job_duration = new.histogram(
            "headrace_job_duration_seconds",
            "From a job's commit to its end.",
            (MODEL, PRIORITY),
            DURATION_BUCKETS,
            API,
            WORKER,
        )

        # Tokens

        self.generated_tokens = new.loop_counter(
            "headrace_generated_tokens_total", "Tokens that engines made, counted as they are written.", MODEL, WORKER
        )
        self.prompt_tokens = new.counter(
            "headrace_prompt_tokens_total", "Prompt tokens in the usage of ended jobs.", (MODEL,), API, WORKER
        )
        self.cached_tokens = new.counter(
            "headrace_cached_tokens_total", "Of those, tokens that the prefix cache held.", (MODEL,), API, WORKER
        )
        self.completion_tokens = new.counter(
            "headrace_completion_tokens_total", "Completion tokens in the usage of ended jobs.", (MODEL,), API, WORKER
        )

        # Streams

        self.stream_readers = new.gauge(
            "headrace_stream_readers",
            "Readers of jobs: of their text, or waiting for their end alone.",
            (Label("kind", ("text", "end")),),
            API,
        )
        self.stream_opens = new.counter(
            "headrace_stream_opens_total",
            "Streams begun: at a job's start, or resumed after a cursor.",
            (Label("at", ("start", "cursor")),),
            API,
        )
        self.stream_catch_ups = new.counter(
            "headrace_stream_catch_ups_total",
            "Times a reader went back to the log: it was too slow, or a live message was lost.",
            (Label("reason", ("slow", "gap")),),
            API,
        )
        self.stream_drops = new.counter(
            "headrace_stream_drops_total", "Readers dropped because they took nothing for too long.", (), API
        )

        # Batches

        self.batch_lines = new.counter(
            "headrace_batch_lines_total",
            "Lines of batches: made jobs, and, once their batch has ended, gone well or badly.",
            (Label("outcome", ("submitted", "completed", "failed")),),
            API,
        )

        # Workers

        self.worker_jobs = new.scraped(
            "headrace_worker_jobs", "Jobs that a worker has claimed and runs.", (MODEL,), WORKER
        )
        self.worker_ready = new.scraped(
            "headrace_worker_ready", "1: the worker takes jobs; 0: it drains, or its engine restarts.", (MODEL,), WORKER
        )
        self.worker_stalled = new.scraped(
            "headrace_worker_stalled_seconds",
            "How long messages have waited while this worker had room and took none. It ends itself after 10 s.",
            (MODEL,),
            WORKER,
            aggregation=Aggregation.MAX,
        )
        self.engine_requests_running = new.scraped(
            "headrace_engine_requests_running", "Requests that the engine computes.", (MODEL,), WORKER
        )
        self.engine_requests_waiting = new.scraped(
            "headrace_engine_requests_waiting",
            "Requests that wait inside the engine, for room in its KV cache.",
            (MODEL,),
            WORKER,
        )
        self.engine_kv_cache_usage = new.scraped(
            "headrace_engine_kv_cache_usage_ratio",
            "vLLM: the part of the KV cache that is in use, 0 to 1.",
            (MODEL,),
            WORKER,
            aggregation=Aggregation.MAX,
        )
        self.engine_preemptions = new.scraped(
            "headrace_engine_preemptions_total",
            "vLLM: requests thrown out of a full KV cache, to be computed again.",
            (MODEL,),
            WORKER,
        )
        self.engine_prefix_cache_queried_tokens = new.scraped(
            "headrace_engine_prefix_cache_queried_tokens_total",
            "vLLM: tokens looked up in the prefix cache.",
            (MODEL,),
            WORKER,
        )
        self.engine_prefix_cache_hit_tokens = new.scraped(
            "headrace_engine_prefix_cache_hit_tokens_total", "vLLM: tokens found there.", (MODEL,), WORKER
        )
        self.engine_restarts = new.counter(
            "headrace_engine_restarts_total", "Times a worker's engine died and was started again.", (MODEL,), WORKER
        )
        self.upstream_requests = new.counter(
            "headrace_upstream_requests_total",
            "Answers of the server behind an `openai` model, by their status.",
            (MODEL, Label("status", bound="HTTP status codes")),
            WORKER,
        )
        self.upstream_failures = new.counter(
            "headrace_upstream_failures_total",
            "Requests to it whose connection failed: not answered in time, not reached, broken before or within the"
            " answer.",
            (MODEL, Label("kind", ("timeout", "unreachable", "broken"))),
            WORKER,
        )
        self.upstream_retries = new.counter(
            "headrace_upstream_retries_total", "Requests that were sent to an upstream again.", (MODEL,), WORKER
        )

        new.start_at_zero(MODEL, names)

    @property
    def definitions(self) -> Sequence[Definition]:
        """All metrics, in the order of the documentation."""
        return self._instruments.definitions

    def registry(self, *collectors: Collector) -> CollectorRegistry:
        """What the process exports: its metrics, these collectors, and the metrics of the Python runtime."""
        return self._instruments.registry(*collectors)

    def model_label(self, model: str) -> str:
        """A model as a label."""
        return model if model in self._models else OTHER

    def submitted(self, model: str, priority: int) -> None:
        """Count a job whose row has been committed."""
        self.jobs_submitted.labels(self.model_label(model), priority_label(priority)).inc()

    def job_ended(self, job: Job, result: JobResult) -> None:
        """Count the end of a job. Called by the process that wrote it to the row, and only by that one."""
        model, priority = self.model_label(job.model), priority_label(job.priority)
        self.jobs_finished.labels(model, priority, result.status.value).inc()
        if result.error is not None:
            self.job_errors.labels(model, result.error.code).inc()
        self.job_duration.labels(model, priority).observe((result.finished_at - job.created_at).total_seconds())
        self.prompt_tokens.labels(model).inc(result.usage.prompt_tokens)
        self.cached_tokens.labels(model).inc(result.usage.cached_tokens)
        self.completion_tokens.labels(model).inc(result.usage.completion_tokens)


def priority_label(priority: int) -> str:
    """A priority as a label: the range of priorities that share a list in Redis."""
    return _BAND_NAMES[priority]
