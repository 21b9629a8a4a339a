"""Metrics of the ways in which answers reach clients."""

from __future__ import annotations

from shared.domain.decisions import CacheOutcome
from shared.telemetry.definitions.labels import API, MODEL, WORKER
from shared.telemetry.instruments import Aggregation, InstrumentSet, Label


class AnswerMetrics:
    """The response cache, coalescing, streams and batches."""

    def __init__(self, new: InstrumentSet) -> None:
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
