"""Metrics of workers, their engines and upstreams."""

from __future__ import annotations

from shared.telemetry.definitions.buckets import DURATION_BUCKETS
from shared.telemetry.definitions.labels import API, MODEL, WORKER
from shared.telemetry.instruments import Aggregation, InstrumentSet, Label


class WorkerMetrics:
    """Workers, their engines and upstreams."""

    def __init__(self, new: InstrumentSet) -> None:
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
        self.engine_drafted_tokens = new.scraped(
            "headrace_engine_drafted_tokens_total", "vLLM: tokens drafted by speculative decoding.", (MODEL,), WORKER
        )
        self.engine_accepted_tokens = new.scraped(
            "headrace_engine_accepted_tokens_total", "vLLM: drafted tokens that the model accepted.", (MODEL,), WORKER
        )
        self.engine_info = new.gauge(
            "headrace_engine_info",
            "vLLM: 1, with what the engine runs with as labels.",
            (
                MODEL,
                Label("dtype", bound="vLLM's dtypes"),
                Label("quantization", bound="vLLM's methods, and `none`"),
                Label("attention_backend", bound="vLLM's backends"),
                Label("speculation", bound="vLLM's methods, and `none`"),
                Label("start", ("fast", "compiled")),
            ),
            WORKER,
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
