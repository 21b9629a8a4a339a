"""Tracing with OpenTelemetry's SDK, whose own variables set endpoint, headers, sampler and resource attributes.

The parent of a span is always given by a `traceparent`, from the request or the row: there is no current span.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared.domain.job import JOB_ID_PREFIX, Attempt, AttemptOutcome, Job, JobStatus, JobSummary
from shared.domain.request_context import REQUEST_CONTEXT, RequestContext
from shared.telemetry.tracing import AttemptTrace, RequestTrace, StreamTrace, Traces

# Outcomes that set an error on the attempt's span.
FAULTS = (AttemptOutcome.FAILED, AttemptOutcome.ENGINE_LOST, AttemptOutcome.WORKER_LOST)
Value = str | int

_PROPAGATOR = TraceContextTextMapPropagator()


class Ids(RandomIdGenerator):
    """Random ids, unless set: ids derived from a job let several processes report the span of the same attempt."""

    def __init__(self) -> None:
        self.span_id: int | None = None
        self.trace_id: int | None = None

    def generate_span_id(self) -> int:
        span_id, self.span_id = self.span_id, None
        return span_id or super().generate_span_id()

    def generate_trace_id(self) -> int:
        trace_id, self.trace_id = self.trace_id, None
        return trace_id or super().generate_trace_id()


class OtelTraces(Traces):
    """Creates spans and exports them in a background thread. Not thread-safe."""

    enabled = True

    def __init__(self, exporter: str, service: str, instance: str) -> None:
        self._ids = Ids()
        resource = Resource.create({SERVICE_INSTANCE_ID: instance})
        if SERVICE_NAME not in OTELResourceDetector().detect().attributes:
            resource = resource.merge(Resource({SERVICE_NAME: service}))
        self._provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        span_exporter: SpanExporter = ConsoleSpanExporter() if exporter == "console" else OTLPSpanExporter()
        self._provider.add_span_processor(BatchSpanProcessor(span_exporter))
        self._tracer = self._provider.get_tracer("headrace")

    def request(self, method: str, path: str, traceparent: str | None) -> RequestTrace:
        span = self._tracer.start_span(
            method,
            _parent(traceparent),
            SpanKind.SERVER,
            _without_none(
                {
                    "http.request.method": method,
                    "url.path": path,
                    "headrace.request.id": REQUEST_CONTEXT.get().request_id,
                }
            ),
        )
        REQUEST_CONTEXT.set(replace(REQUEST_CONTEXT.get(), traceparent=_traceparent(span)))
        return _Request(span, method)

    @contextmanager
    def submitting(self, model: str) -> Iterator[RequestContext]:
        origin = REQUEST_CONTEXT.get()
        span = self._tracer.start_span(
            f"submit {model}", _parent(origin.traceparent), SpanKind.PRODUCER, {"gen_ai.request.model": model}
        )
        try:
            yield replace(origin, traceparent=_traceparent(span))
        except BaseException as error:
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))  # its message may quote the prompt
            raise
        finally:
            span.end()

    def claimed(self, job: Job) -> AttemptTrace:
        *earlier, current = job.attempts
        if earlier and earlier[-1].outcome == AttemptOutcome.WORKER_LOST:
            self._report_lost(job, earlier[-1], earlier[-1].ended_at or current.started_at)
        self._report_queued(job, earlier, current.started_at)
        return _Attempt(self, job, current)

    def ended_without_worker(self, job: JobSummary, status: JobStatus, now: datetime) -> None:
        if job.status is JobStatus.QUEUED:
            self._report_queued(job, list(job.attempts), now, status.value)
        elif job.attempts:
            self._report_lost(job, job.attempts[-1], now)

    @contextmanager
    def streaming(self, job: JobSummary, after: int) -> Iterator[StreamTrace]:
        links = [_span_context(REQUEST_CONTEXT.get().traceparent)]
        span = self.of_job(
            job, "stream", None, {"headrace.after": after}, links=[Link(link) for link in links if link.is_valid]
        )
        trace = _Stream()
        try:
            yield trace
        finally:
            span.set_attribute("headrace.events", trace.events)
            span.end()

    def close(self) -> None:
        self._provider.shutdown()

    def of_job(
        self,
        job: JobSummary,
        name: str,
        start: datetime | None,
        attributes: Mapping[str, Value | None],
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        span_id: int | None = None,
        links: list[Link] | None = None,
    ) -> Span:
        """A span below the job's submit. Without a `traceparent` in the row, the trace id is the UUID of the job id."""
        parent = _parent(job.request_context.traceparent)
        self._ids.span_id, self._ids.trace_id = span_id, _uuid(job)
        try:
            return self._tracer.start_span(
                name,
                parent,
                kind,
                _without_none(
                    {
                        "headrace.job.id": job.id,
                        "headrace.request.id": job.request_context.request_id,
                        "gen_ai.request.model": job.model,
                        **attributes,
                    }
                ),
                links,
                start_time=_ns(start),
            )
        finally:
            self._ids.span_id = self._ids.trace_id = None

    def of_attempt(self, job: JobSummary, attempt: Attempt) -> Span:
        """Create the span of an attempt. Its id follows from job and attempt: all processes agree on it."""
        return self.of_job(
            job,
            f"attempt {attempt.number}",
            attempt.started_at,
            {"headrace.attempt": attempt.number, "headrace.worker": attempt.worker},
            kind=SpanKind.CONSUMER,
            span_id=_attempt_span_id(job, attempt.number),
        )

    def phase(self, parent: Span, name: str, start: datetime, attributes: Mapping[str, Value]) -> Span:
        """A span below that of an attempt."""
        return self._tracer.start_span(
            name, set_span_in_context(parent, Context()), attributes=dict(attributes), start_time=_ns(start)
        )

    def _report_lost(self, job: JobSummary, attempt: Attempt, ended_at: datetime) -> None:
        span = self.of_attempt(job, attempt)
        _end(span, ended_at, AttemptOutcome.WORKER_LOST)

    def _report_queued(
        self, job: JobSummary, earlier: list[Attempt], until: datetime, outcome: str | None = None
    ) -> None:
        """Report the job's time in the queue. `outcome` is its final status if no worker claimed it."""
        since = earlier[-1].ended_at if earlier else job.created_at
        span = self.of_job(job, f"queue {job.model}", since, {"headrace.outcome": outcome})
        span.end(_ns(until))


class _Request(RequestTrace):
    def __init__(self, span: Span, method: str) -> None:
        self._span = span
        self._method = method

    def response_started(self, status: int) -> None:
        self._span.set_attribute("http.response.status_code", status)
        self._span.add_event("answer")
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))

    def ended(self, route: str, job_id: str | None) -> None:
        self._span.update_name(f"{self._method} {route}")
        self._span.set_attribute("http.route", route)
        if job_id is not None:
            self._span.set_attribute("headrace.job.id", job_id)
        self._span.end()


class _Attempt(AttemptTrace):
    def __init__(self, traces: OtelTraces, job: Job, attempt: Attempt) -> None:
        self._traces = traces
        self._span = traces.of_attempt(job, attempt)
        self._phase: Span | None = None

    def generation_started(self, now: datetime, tokens_before: int) -> None:
        self._span.set_attribute("headrace.tokens_before", tokens_before)
        self._phase = self._traces.phase(self._span, "prefill", now, {})

    def first_token(self, now: datetime, prompt_tokens: int, cached_tokens: int) -> None:
        if self._phase is not None:
            self._phase.set_attribute("gen_ai.usage.input_tokens", prompt_tokens)
            self._phase.set_attribute("headrace.cached_tokens", cached_tokens)
            self._phase.end(_ns(now))
            self._phase = self._traces.phase(self._span, "decode", now, {})

    def ended(self, now: datetime, outcome: AttemptOutcome, prompt_tokens: int, tokens: int) -> None:
        if self._phase is not None:
            _end(self._phase, now, outcome)
        self._span.set_attribute("gen_ai.usage.input_tokens", prompt_tokens)
        self._span.set_attribute("gen_ai.usage.output_tokens", tokens)
        _end(self._span, now, outcome)


class _Stream(StreamTrace):
    def __init__(self) -> None:
        self.events = 0

    def delivered(self, events: int) -> None:
        self.events += events


def _end(span: Span, now: datetime, outcome: AttemptOutcome) -> None:
    span.set_attribute("headrace.outcome", outcome.value)
    if outcome in FAULTS:
        span.set_status(Status(StatusCode.ERROR, outcome.value))
    span.end(_ns(now))


def _without_none(attributes: Mapping[str, Value | None]) -> dict[str, Value]:
    return {name: value for name, value in attributes.items() if value is not None}


def _parent(traceparent: str | None) -> Context:
    """The context of a parent span; an empty one if `traceparent` is missing or malformed."""
    carrier = {"traceparent": traceparent} if traceparent else {}
    return _PROPAGATOR.extract(carrier, Context())


def _span_context(traceparent: str | None) -> SpanContext:
    return get_current_span(_parent(traceparent)).get_span_context()


def _traceparent(span: Span) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def _ns(moment: datetime | None) -> int | None:
    """Nanoseconds since the Unix epoch."""
    if moment is None:
        return None
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return ((since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds) * 1000


def _uuid(job: JobSummary) -> int:
    """The UUID in the job's id, which may end with a region."""
    return int(job.id.removeprefix(JOB_ID_PREFIX)[:32], 16)


def _attempt_span_id(job: JobSummary, number: int) -> int:
    digest = hashlib.sha256(f"{job.id} {job.request_context.traceparent} {number}".encode()).digest()
    return int.from_bytes(digest[:8]) or 1
