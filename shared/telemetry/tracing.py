"""The interface of tracing, and an implementation that does nothing.

`shared.telemetry.otel` implements it with OpenTelemetry, and is imported only if tracing is enabled.

    POST /v1/jobs                the HTTP request up to the end of its response; a child of the client's `traceparent`
    └ submit sim                 until the row is committed; stored in the row as `traceparent`
      ├ queue sim                from the commit, or the end of the previous attempt, to a worker's claim
      ├ attempt 1                worker_lost: reported by the process that detected it
      │ └ prefill
      ├ queue sim
      ├ attempt 2                on another worker
      │ ├ prefill                from the engine call to the first token
      │ └ decode                 from the first token to the last
      └ stream                   a reader of GET /v1/jobs/{id}/stream, linked to its own request

The trace context is stored in the row, so it survives lost, duplicated and repeated messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from shared.domain.job import AttemptOutcome, Job, JobStatus, JobSummary
from shared.domain.request_context import REQUEST_CONTEXT, RequestContext


class RequestTrace:
    """The span of an HTTP request."""

    def response_started(self, status: int) -> None:
        """The response headers were sent."""

    def ended(self, route: str, job_id: str | None) -> None:
        """The response is complete, or the client has disconnected."""


class AttemptTrace:
    """The spans of an attempt and of its engine's phases. Times are estimates of the database's clock."""

    def generation_started(self, now: datetime, tokens_before: int) -> None:
        """The engine was called, to resume after this number of tokens."""

    def first_token(self, now: datetime, prompt_tokens: int, cached_tokens: int) -> None:
        """The engine has prefilled the prompt."""

    def ended(self, now: datetime, outcome: AttemptOutcome, prompt_tokens: int, tokens: int) -> None:
        """The attempt has ended after generating this number of tokens."""


class StreamTrace:
    """The span of a reader of a job."""

    def delivered(self, events: int) -> None:
        """The reader received this number of further events."""


class Traces:
    """Creates spans. This base class creates none."""

    enabled = False

    def request(self, method: str, path: str, traceparent: str | None) -> RequestTrace:
        """A request has arrived with this `traceparent`. Sets `REQUEST_CONTEXT` to the request's span."""
        return RequestTrace()

    @contextmanager
    def submitting(self, model: str) -> Iterator[RequestContext]:
        """The span of a submit; yields the context to store in the job's row."""
        yield REQUEST_CONTEXT.get()

    def claimed(self, job: Job) -> AttemptTrace:
        """A worker has claimed a job. Also reports the time in the queue, and the previous attempt if it was lost."""
        return AttemptTrace()

    def ended_without_worker(self, job: JobSummary, status: JobStatus, now: datetime) -> None:
        """A job has ended without a worker; `job` is its state before that."""

    @contextmanager
    def streaming(self, job: JobSummary, after: int) -> Iterator[StreamTrace]:
        """The span of a reader that follows a job after a cursor."""
        yield StreamTrace()

    def close(self) -> None:
        """Send the remaining spans. Blocks for a few seconds at most."""


NO_TRACES = Traces()
