"""Metrics of jobs."""

from __future__ import annotations

from shared.domain.errors import ErrorCode
from shared.domain.fallback import FallbackReason
from shared.domain.job import TERMINAL, AttemptOutcome, WorkerState
from shared.telemetry.definitions.buckets import (
    DURATION_BUCKETS,
    FIRST_TOKEN_BUCKETS,
    INTER_TOKEN_BUCKETS,
    WAIT_BUCKETS,
)
from shared.telemetry.definitions.labels import API, MODEL, PRIORITY, ROUTE, WORKER, SkipReason
from shared.telemetry.instruments import Aggregation, InstrumentSet, Label


class JobMetrics:
    """Routes, events and states of jobs, their latencies and tokens."""

    def __init__(self, new: InstrumentSet) -> None:
        # Routes

        self.route_decisions = new.counter(
            "headrace_route_decisions_total",
            "Requests to a route, by the rule that applied and the chosen model.",
            (
                ROUTE,
                Label("rule", bound="rules in models.yaml, `complexity`, `otherwise`, `conversation` and `budget`"),
                MODEL,
            ),
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

        # Jobs: events

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
        self.early_starts = new.counter(
            "headrace_early_starts_total",
            "New jobs that a worker passed to its engine before their claims were committed. `discarded`: the claim was"
            " lost, and the work was thrown away.",
            (MODEL, Label("outcome", ("kept", "discarded"))),
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
            "headrace_jobs_waiting",
            "Queued jobs, except those that a soft limit or a budget lets start only later.",
            (MODEL, PRIORITY),
            API,
            aggregation=Aggregation.MAX,
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
            "Time since submit of the oldest waiting job, or since a limit or budget let it start; 0 if none.",
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
