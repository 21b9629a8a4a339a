"""All metrics of Headrace: names, help texts, labels, buckets and exporters. A test compares docs/metrics.md with them.

Units are seconds and bytes. No label contains a job id, a key or a worker's name, and models that models.yaml does not
declare share one label (`Metrics.model_label`), so that clients cannot create series. Prometheus adds the process
(`instance`) itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from shared.config.models.reload import ReloadResult
from shared.domain.decisions import CacheOutcome
from shared.domain.errors import ErrorCode
from shared.domain.fallback import FallbackReason
from shared.domain.job import TERMINAL, AttemptOutcome, JobStatus, JobSummary, WorkerState
from shared.domain.priorities import BANDS
from shared.domain.result import JobResult
from shared.telemetry.instruments import Aggregation, Definition, Exporter, InstrumentSet, Label

API, WORKER = Exporter.API, Exporter.WORKER

# Models that models.yaml does not declare, or no longer: their rows remain.
OTHER = "(other)"
_BAND_NAMES = {
    priority: f"{band[0]}-{band[-1]}" if len(band) > 1 else str(band[0]) for band in BANDS.values() for priority in band
}
PRIORITY_LABELS = tuple(dict.fromkeys(_BAND_NAMES.values()))

MODEL = Label("model", bound="names in models.yaml, and `(other)`")
PRIORITY = Label("priority", PRIORITY_LABELS)
ROUTE = Label("route", bound="routes in models.yaml")


class HttpRejection(StrEnum):
    """Why the HTTP server rejected a request before the application received it, or closed a connection."""

    MALFORMED = "malformed"
    TOO_LARGE = "head_too_large"
    HEADER_TIMEOUT = "header_timeout"
    BODY_TIMEOUT = "body_timeout"
    SEND_TIMEOUT = "send_timeout"
    PIPELINING = "pipelining"
    CONNECTIONS = "connections"


class Quota(StrEnum):
    """The quotas of a project."""

    QUEUED_JOBS = "queued_jobs"
    URGENT_JOBS = "urgent_jobs"
    RUNNING_JOBS = "running_jobs"
    REQUEST_BYTES = "request_bytes"
    STREAMS = "streams"
    OPEN_BYTES = "open_bytes"


class SkipReason(StrEnum):
    """Why a route skips a model. The last three are temporary: such a model serves the request if no other can."""

    CAPABILITY = "capability"
    CONTEXT_LENGTH = "context_length"
    LIMIT = "limit"
    REMOVED = "removed"
    NO_WORKER = "no_worker"
    BREAKER_OPEN = "breaker_open"
    WAIT = "wait"


class TokenLimitOutcome(StrEnum):
    """The effect of a token limit on a request."""

    CLAMPED = "clamped"
    DEFAULT = "default"
    REFUSED_OUTPUT = "refused_output"
    REFUSED_INPUT = "refused_input"


# With bounds at the latency goals, 200 and 500 ms, and close to them on both sides.
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
LOOP_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
DURATION_BUCKETS = (0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120, 300, 600, 1800, 7200)

# The results of a reload after which a process does not serve what models.yaml declares.
_NOT_APPLIED = (ReloadResult.FAILED, ReloadResult.RESTART_NEEDED)


class Metrics:
    """The metrics of one process."""

    def __init__(self, exporter: Exporter, models: Iterable[str]) -> None:
        """`models`: the models that the process serves; all others are labelled `OTHER`."""
        self._instruments = new = InstrumentSet(exporter)

        # HTTP

        self.http_requests = new.counter(
            "headrace_http_requests_total",
            "HTTP responses by route template, method and status, counted when the headers are sent.",
            (
                Label("method", bound="HTTP's own methods, and `(other)`"),
                Label("route", bound="route templates, and `(none)`"),
                Label("status", bound="HTTP status codes"),
            ),
            API,
        )
        self.http_response = new.histogram(
            "headrace_http_response_seconds",
            "Time from request to response headers.",
            (
                Label("method", bound="HTTP's own methods, and `(other)`"),
                Label("route", bound="route templates, and `(none)`"),
            ),
            FIRST_TOKEN_BUCKETS,
            API,
        )

        self.ignored_parameters = new.counter(
            "headrace_ignored_parameters_total",
            "Requests and batch lines with a parameter that was accepted and ignored, by parameter.",
            (Label("parameter", bound="known parameters of the APIs, and `(other)`"),),
            API,
        )
        self.http_rejections = new.counter(
            "headrace_http_rejections_total",
            "Requests that the HTTP server rejected before the application received them, and connections it closed.",
            (Label("reason", tuple(reason.value for reason in HttpRejection)),),
            API,
        )
        self.http_connections = new.gauge("headrace_http_connections", "Open client connections.", (), API)
        self.auth_failures = new.counter(
            "headrace_auth_failures_total",
            "Requests rejected with 401, by whether they had no key or an invalid one.",
            (Label("reason", ("missing", "invalid")),),
            API,
        )
        self.quota_rejections = new.counter(
            "headrace_quota_rejections_total",
            "Submits and streams rejected with 429 because a quota of their project was used up.",
            (Label("reason", tuple(quota.value for quota in Quota)),),
            API,
        )

        # Conversations that outgrow their model's context

        self.conversations_shortened = new.counter(
            "headrace_conversations_shortened_total",
            "Requests above the trigger of their strategy for long conversations, by outcome. `fell_back`: messages"
            " were dropped without a summary.",
            (
                MODEL,
                Label("strategy", ("sliding_window", "summarize", "clear_tool_uses")),
                Label("outcome", ("dropped", "summarized", "cleared", "fell_back", "too_long", "unknown_length")),
            ),
            API,
        )
        self.context_tokens_dropped = new.counter(
            "headrace_context_tokens_dropped_total",
            "Prompt tokens removed by shortening conversations.",
            (MODEL,),
            API,
        )
        self.summary_time = new.histogram(
            "headrace_summary_seconds",
            "Time to write the summary of a conversation, by the model that wrote it.",
            (MODEL,),
            DURATION_BUCKETS,
            API,
        )

        # Limits and estimates of tokens

        self.token_limits = new.counter(
            "headrace_token_limits_total",
            "Requests whose max_tokens a token limit lowered or set, and requests that one refused.",
            (MODEL, Label("outcome", tuple(outcome.value for outcome in TokenLimitOutcome))),
            API,
        )
        self.token_estimates = new.counter(
            "headrace_token_estimates_total",
            "Prompts whose tokens were estimated for a limit because they could not be counted.",
            (MODEL,),
            API,
        )
        self.estimated_prompt_tokens = new.counter(
            "headrace_estimated_prompt_tokens_total",
            "Prompt tokens of ended jobs whose prompt was estimated: as estimated, and as reported in the usage.",
            (MODEL, Label("source", ("estimate", "usage"))),
            API,
            WORKER,
        )
        self.underestimated_prompts = new.counter(
            "headrace_underestimated_prompts_total",
            "Ended jobs whose prompt had more tokens than estimated; about 5 % are expected.",
            (MODEL,),
            API,
            WORKER,
        )
        self.tokens_per_byte = new.gauge(
            "headrace_prompt_tokens_per_byte",
            "Tokens per byte of a prompt that estimates assume: learned from usage, 0.333 until there is enough.",
            (MODEL,),
            API,
            aggregation=Aggregation.MAX,
        )

        # The event loop

        self.loop_lag = new.histogram(
            "headrace_event_loop_lag_seconds",
            "Delay of timers on the event loop, measured 20 times a second.",
            (),
            LOOP_LAG_BUCKETS,
            API,
            WORKER,
        )

        # models.yaml

        self.models_reloads = new.counter(
            "headrace_models_reloads_total",
            "Times that the process read models.yaml again (SIGHUP): a failed reload changes nothing.",
            (Label("result", tuple(result.value for result in ReloadResult)),),
            API,
            WORKER,
        )
        self.models_outdated = new.gauge(
            "headrace_models_outdated",
            "1 if the last reload of models.yaml had this result, so that the process still serves the earlier models.",
            (Label("result", tuple(result.value for result in _NOT_APPLIED)),),
            API,
            WORKER,
            aggregation=Aggregation.MAX,
        )
        for result in _NOT_APPLIED:
            self.models_outdated.labels(result.value).set(0)
        self.models_loaded = new.gauge(
            "headrace_models_loaded_timestamp_seconds",
            "Unix time at which the process read the models.yaml that it uses.",
            (),
            API,
            WORKER,
            aggregation=Aggregation.MIN,
        )

        # Jobs: events

        # Routes

        self.route_decisions = new.counter(
            "headrace_route_decisions_total",
            "Requests to a route, by the rule that applied and the chosen model.",
            (ROUTE, Label("rule", bound="rules in models.yaml, `complexity`, `otherwise` and `conversation`"), MODEL),
            API,
        )
        self.route_skipped = new.counter(
            "headrace_route_skipped_models_total",
            "Models that a route skipped because they could not serve the request, or not soon enough.",
            (ROUTE, MODEL, Label("reason", tuple(reason.value for reason in SkipReason))),
            API,
        )
        self.route_conversation_errors = new.counter(
            "headrace_route_conversation_errors_total",
            "Failed reads and writes of the models of conversations, while Redis was unavailable.",
            (),
            API,
        )
        self.jobs_submitted = new.counter(
            "headrace_jobs_submitted_total",
            "Submitted jobs, counted when their row is committed.",
            (MODEL, PRIORITY),
            API,
        )
        self.jobs_finished = new.counter(
            "headrace_jobs_finished_total",
            "Ended jobs by final status, counted by the process that wrote it.",
            (MODEL, PRIORITY, Label("status", tuple(status.value for status in TERMINAL))),
            API,
            WORKER,
        )
        self.job_errors = new.counter(
            "headrace_job_errors_total",
            "Jobs that ended with an error, by error code.",
            (MODEL, Label("code", tuple(code.value for code in ErrorCode))),
            API,
            WORKER,
        )
        self.attempts = new.counter(
            "headrace_attempts_total",
            "Ended attempts by outcome; more than one per job means a failure, a drain or a preemption.",
            (MODEL, Label("outcome", tuple(outcome.value for outcome in AttemptOutcome))),
            API,
            WORKER,
        )
        self.jobs_deferred = new.counter(
            "headrace_jobs_deferred_total",
            "Times a job was put back into the queue because its upstream was busy.",
            (MODEL, Label("reason", ("rate_limit", "server_error", "timeout", "unreachable", "broken"))),
            WORKER,
        )
        self.job_fallbacks = new.counter(
            "headrace_job_fallbacks_total",
            "Moves of jobs of routes to another model, before they had output.",
            (
                Label("from", bound="models of routes, current and earlier"),
                Label("to", bound="models of routes, current and earlier"),
                Label("reason", tuple(reason.value for reason in FallbackReason)),
            ),
            API,
            WORKER,
        )
        self.opaque_parts_dropped = new.counter(
            "headrace_opaque_parts_dropped_total",
            "Parts of earlier answers, such as signed thinking, that were not sent to a model of another provider.",
            (MODEL,),
            WORKER,
        )
        self.rescues = new.counter(
            "headrace_rescues_total", "Jobs requeued because their worker's lease expired.", (MODEL,), API, WORKER
        )
        self.hints_resent = new.counter(
            "headrace_hints_resent_total",
            "Messages sent again for queued jobs whose message was lost.",
            (MODEL,),
            WORKER,
        )
        self.malformed_messages = new.counter(
            "headrace_malformed_messages_total",
            "Messages in Redis that were dropped because no process of Headrace sends such a message.",
            (Label("source", ("queue", "control", "cancel", "events", "log")),),
            API,
            WORKER,
        )
        self.fenced_writes = new.counter(
            "headrace_fenced_writes_total",
            "Writes rejected because a later attempt owns the job.",
            (MODEL, Label("write", ("log", "result"))),
            WORKER,
        )

        # Jobs: state, from the rows. Each API process reports all of it, so it is aggregated by `max`, not by `sum`.

        self.jobs_waiting = new.scraped(
            "headrace_jobs_waiting", "Queued jobs.", (MODEL, PRIORITY), API, aggregation=Aggregation.MAX
        )
        self.jobs_unreadable = new.scraped(
            "headrace_jobs_unreadable",
            "Queued jobs that are withheld because a worker's version cannot read them; part of the waiting jobs.",
            (MODEL,),
            API,
            aggregation=Aggregation.MAX,
        )
        self.deferred_jobs = new.scraped(
            "headrace_deferred_jobs",
            "Queued jobs that wait because their upstream was busy; part of the waiting jobs.",
            (MODEL,),
            API,
            aggregation=Aggregation.MAX,
        )
        self.queues_paused = new.scraped(
            "headrace_queue_paused",
            "1 if an operator has paused the queue of the model: its jobs wait.",
            (MODEL,),
            API,
            aggregation=Aggregation.MAX,
        )
        self.jobs_running = new.scraped(
            "headrace_jobs_running",
            "Jobs claimed by a worker.",
            (MODEL, PRIORITY),
            API,
            aggregation=Aggregation.MAX,
        )
        self.queue_oldest_age = new.scraped(
            "headrace_queue_oldest_age_seconds",
            "Time since submit of the oldest queued job; 0 if none.",
            (MODEL, PRIORITY),
            API,
            aggregation=Aggregation.MAX,
        )
        self.workers = new.scraped(
            "headrace_workers",
            "Workers with a valid lease.",
            (MODEL, Label("state", tuple(state.value for state in WorkerState))),
            API,
            aggregation=Aggregation.MAX,
        )
        self.worker_slots = new.scraped(
            "headrace_worker_slots",
            "Jobs that one worker of the model runs at the same time; from models.yaml, so it needs no worker.",
            (MODEL,),
            API,
            WORKER,
            aggregation=Aggregation.MAX,
        )
        self.database_up = new.scraped(
            "headrace_database_up",
            "1 if PostgreSQL accepted writes of the process at this scrape, 0 if not.",
            (),
            API,
            aggregation=Aggregation.MIN,
        )
        self.redis_up = new.scraped(
            "headrace_redis_up",
            "1 if Redis accepted writes of the process at this scrape, 0 if not.",
            (),
            API,
            aggregation=Aggregation.MIN,
        )

        # Latency. The time to the first token is the sum of queue wait, dispatch and the engine's time.

        self.time_to_first_token = new.histogram(
            "headrace_time_to_first_token_seconds",
            "Time from a job's commit to its first token in the worker.",
            (MODEL, PRIORITY),
            FIRST_TOKEN_BUCKETS,
            WORKER,
        )
        self.queue_wait = new.histogram(
            "headrace_queue_wait_seconds",
            "Time from a job's commit to its first claim.",
            (MODEL, PRIORITY),
            WAIT_BUCKETS,
            WORKER,
        )
        self.dispatch = new.histogram(
            "headrace_dispatch_seconds",
            "Time from claim to engine call.",
            (MODEL,),
            WAIT_BUCKETS,
            WORKER,
        )
        self.structured_output_wait = new.histogram(
            "headrace_structured_output_wait_seconds",
            "Time that a large structured output has waited for its turn to be compiled by the engine.",
            (MODEL,),
            WAIT_BUCKETS,
            WORKER,
        )
        self.engine_first_token = new.histogram(
            "headrace_engine_first_token_seconds",
            "Time from engine call to first token.",
            (MODEL,),
            FIRST_TOKEN_BUCKETS,
            WORKER,
        )
        self.engine_queue = new.histogram(
            "headrace_engine_queue_seconds",
            "vLLM: time that a finished request waited in the engine's queue.",
            (MODEL,),
            WAIT_BUCKETS,
            WORKER,
        )
        self.engine_prefill = new.histogram(
            "headrace_engine_prefill_seconds",
            "vLLM: prefill time of a finished request, from its scheduling to its first token.",
            (MODEL,),
            FIRST_TOKEN_BUCKETS,
            WORKER,
        )
        self.stream_first_token = new.histogram(
            "headrace_stream_first_token_seconds",
            "Time from connect to first token, for readers connected before it was generated.",
            (),
            FIRST_TOKEN_BUCKETS,
            API,
        )
        self.inter_token_latency = new.weighted_histogram(
            "headrace_inter_token_latency_seconds",
            "Time between consecutive tokens of a choice; tokens of one flush share their gap.",
            MODEL,
            INTER_TOKEN_BUCKETS,
            WORKER,
        )
        self.job_duration = new.histogram(
            "headrace_job_duration_seconds",
            "Time from a job's commit to its end.",
            (MODEL, PRIORITY),
            DURATION_BUCKETS,
            API,
            WORKER,
        )

        # Tokens

        self.generated_tokens = new.loop_counter(
            "headrace_generated_tokens_total",
            "Tokens generated by engines, counted when they are written to the log.",
            MODEL,
            WORKER,
        )
        self.prompt_tokens = new.counter(
            "headrace_prompt_tokens_total", "Prompt tokens in the usage of ended jobs.", (MODEL,), API, WORKER
        )
        self.cached_tokens = new.counter(
            "headrace_cached_tokens_total", "Prompt tokens served from the prefix cache.", (MODEL,), API, WORKER
        )
        self.cache_write_tokens = new.counter(
            "headrace_cache_write_tokens_total",
            "Prompt tokens stored in the cache of an upstream that reports them.",
            (MODEL,),
            API,
            WORKER,
        )
        self.warmed_prefixes = new.counter(
            "headrace_warmed_prefixes_total",
            "Prefixes of warm_prompts, computed before the worker accepts jobs, by result.",
            (MODEL, Label("result", ("warm", "failed"))),
            WORKER,
        )
        self.warmed_tokens = new.counter(
            "headrace_warmed_tokens_total", "Tokens of the prefixes that were computed.", (MODEL,), WORKER
        )
        self.warm_up_duration = new.gauge(
            "headrace_warm_up_duration_seconds",
            "Time that the worker last spent on warm_prompts.",
            (MODEL,),
            WORKER,
            aggregation=Aggregation.MAX,
        )
        self.reasoning_tokens = new.counter(
            "headrace_reasoning_tokens_total",
            "Completion tokens that are reasoning, from upstreams that report them.",
            (MODEL,),
            API,
            WORKER,
        )
        self.completion_tokens = new.counter(
            "headrace_completion_tokens_total", "Completion tokens in the usage of ended jobs.", (MODEL,), API, WORKER
        )

        # Response cache

        self.cache_requests = new.counter(
            "headrace_cache_requests_total",
            "Submitted jobs for which the response cache was on, by outcome.",
            (MODEL, Label("outcome", tuple(outcome.value for outcome in CacheOutcome))),
            API,
        )
        self.cache_errors = new.counter(
            "headrace_cache_errors_total",
            "Failed lookups in the response cache; the requests were run.",
            (),
            API,
        )
        self.cache_evictions = new.counter(
            "headrace_cache_evictions_total",
            "Answers removed from the response cache because they expired or the cache was full.",
            (Label("reason", ("expired", "size")),),
            API,
        )
        self.cache_entries = new.gauge(
            "headrace_cache_entries", "Answers in the response cache.", (), API, aggregation=Aggregation.MAX
        )
        self.cache_bytes = new.gauge(
            "headrace_cache_bytes",
            "Size of the answers in the response cache.",
            (),
            API,
            aggregation=Aggregation.MAX,
        )

        # Coalescing

        self.followers = new.counter(
            "headrace_followers_total",
            "Jobs that waited for the answer of an identical job, by outcome: `answered`, `failed` because the request"
            " had used up its attempts, or `released` to the queue because there was no answer.",
            (MODEL, Label("outcome", ("answered", "failed", "released"))),
            API,
            WORKER,
        )

        # Streams

        self.stream_readers = new.gauge(
            "headrace_stream_readers",
            "Open readers of jobs, by whether they read text or only wait for the end.",
            (Label("kind", ("text", "end")),),
            API,
        )
        self.stream_opens = new.counter(
            "headrace_stream_opens_total",
            "Opened event streams, by whether they start at the first event or after a cursor.",
            (Label("at", ("start", "cursor")),),
            API,
        )
        self.stream_catch_ups = new.counter(
            "headrace_stream_catch_ups_total",
            "Times a reader fell back to the event log: too slow, or a live message was lost.",
            (Label("reason", ("slow", "gap")),),
            API,
        )
        self.stream_drops = new.counter(
            "headrace_stream_drops_total", "Readers disconnected because they read nothing for too long.", (), API
        )

        # Batches

        self.batch_lines = new.counter(
            "headrace_batch_lines_total",
            "Batch lines submitted; completed and failed are counted when the batch ends.",
            (Label("outcome", ("submitted", "completed", "failed")),),
            API,
        )

        # Workers

        self.worker_jobs = new.scraped(
            "headrace_worker_jobs", "Jobs that the worker has claimed and is running.", (MODEL,), WORKER
        )
        self.worker_ready = new.scraped(
            "headrace_worker_ready",
            "1 if the worker accepts jobs, 0 while it drains, restarts its engine or fills its prompt cache.",
            (MODEL,),
            WORKER,
        )
        self.structured_outputs_waiting = new.scraped(
            "headrace_structured_outputs_waiting",
            "Running jobs whose structured outputs wait for their turn to be compiled.",
            (MODEL,),
            WORKER,
        )
        self.worker_stalled = new.scraped(
            "headrace_worker_stalled_seconds",
            "Time that messages have waited while this worker had free slots; it exits after 10 s.",
            (MODEL,),
            WORKER,
            aggregation=Aggregation.MAX,
        )
        self.engine_requests_running = new.scraped(
            "headrace_engine_requests_running", "Requests that the engine is processing.", (MODEL,), WORKER
        )
        self.engine_requests_waiting = new.scraped(
            "headrace_engine_requests_waiting",
            "Requests that wait in the engine for space in its KV cache.",
            (MODEL,),
            WORKER,
        )
        self.engine_kv_cache_usage = new.scraped(
            "headrace_engine_kv_cache_usage_ratio",
            "vLLM: fraction of the KV cache in use.",
            (MODEL,),
            WORKER,
            aggregation=Aggregation.MAX,
        )
        self.engine_preemptions = new.scraped(
            "headrace_engine_preemptions_total",
            "vLLM: requests preempted because the KV cache was full.",
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
            "headrace_engine_prefix_cache_hit_tokens_total", "vLLM: tokens found in the prefix cache.", (MODEL,), WORKER
        )
        self.engine_restarts = new.counter(
            "headrace_engine_restarts_total", "Engine restarts after a failure.", (MODEL,), WORKER
        )
        self.upstream_requests = new.counter(
            "headrace_upstream_requests_total",
            "Responses of a model's upstream, by status.",
            (MODEL, Label("status", bound="HTTP status codes")),
            WORKER,
        )
        self.upstream_failures = new.counter(
            "headrace_upstream_failures_total",
            "Upstream requests that failed at connection level: timeout, unreachable, broken.",
            (MODEL, Label("kind", ("timeout", "unreachable", "broken"))),
            WORKER,
        )
        self.upstream_breaker_open = new.scraped(
            "headrace_upstream_breaker_open",
            "1 while the worker's circuit breaker holds jobs back because the upstream fails, 0 if not.",
            (MODEL,),
            WORKER,
            aggregation=Aggregation.MAX,
        )
        self.upstream_breaker_transitions = new.counter(
            "headrace_upstream_breaker_transitions_total",
            "Changes of the circuit breaker's state; half open: one job is let through as a probe.",
            (MODEL, Label("state", ("open", "half_open", "closed"))),
            WORKER,
        )
        self.upstream_messages_held = new.scraped(
            "headrace_upstream_messages_held",
            "Messages that wait in the worker because a limit of the upstream is used up; their jobs are queued.",
            (MODEL,),
            WORKER,
        )
        self.upstream_retries = new.counter(
            "headrace_upstream_retries_total", "Retried upstream requests.", (MODEL,), WORKER
        )
        self.upstream_cancellations = new.counter(
            "headrace_upstream_cancellations_total",
            "Tries to cancel an upstream's request whose job has ended or starts again; failed ones are repeated for a"
            " day, then the request is abandoned.",
            (MODEL, Label("outcome", ("cancelled", "failed", "abandoned"))),
            API,
            WORKER,
        )
        self.upstream_endpoint_available = new.scraped(
            "headrace_upstream_endpoint_available",
            "1 if the last request to an endpoint of the upstream succeeded, 0 if the endpoint is set aside.",
            (MODEL, Label("endpoint", bound="the endpoints in models.yaml, by name or position")),
            WORKER,
            aggregation=Aggregation.MIN,
        )
        self.upstream_resumes = new.counter(
            "headrace_upstream_resumes_total",
            "Times that the answer of a request which the upstream ran on was read further, because its"
            " connection or its attempt had ended.",
            (MODEL, Label("reason", ("connection", "attempt"))),
            WORKER,
        )
        self.upstream_refused_parameters = new.counter(
            "headrace_upstream_refused_parameters_total",
            "Optional parameters that the upstream refused; their requests were repeated without them.",
            (MODEL, Label("parameter", bound="optional parameters of OpenAI's API")),
            WORKER,
        )
        self.upstream_queue = new.histogram(
            "headrace_upstream_queue_seconds",
            "Time that requests waited at a serverless upstream until they ran, with its cold starts.",
            (MODEL,),
            DURATION_BUCKETS,
            WORKER,
        )
        self.upstream_compute = new.counter(
            "headrace_upstream_compute_seconds_total",
            "Run time of requests at a serverless upstream, as it reported it.",
            (MODEL,),
            WORKER,
        )
        self.upstream_compute_cost = new.counter(
            "headrace_upstream_compute_cost_total",
            "Price of that run time, by `price_per_second` of models.yaml, in the currency that is meant there.",
            (MODEL,),
            WORKER,
        )

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
        for other in _NOT_APPLIED:
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


def priority_label(priority: int) -> str:
    """The label of a priority: the range of priorities that share a list in Redis.

    A priority that only a newer version has counts as the least urgent one.
    """
    return _BAND_NAMES.get(priority, PRIORITY_LABELS[-1])
