"""Spans of a job's way, for OpenTelemetry; off unless the standard variables ask for them.

The interface of tracing, and an implementation that does nothing. `shared.telemetry.otel` implements it with
OpenTelemetry, and is imported only if tracing is enabled.

    POST /v1/jobs                the HTTP request, for as long as it is answered; a child of the client's `traceparent`
    └ submit sim                 until the row is committed. Its name goes into the row, as `traceparent`
      ├ queue sim                from there, or from the end of the attempt before, to a worker's claim
      ├ attempt 1                worker_lost: told by whoever found it so
      │ └ prefill
      ├ queue sim
      ├ attempt 2                on another worker
      │ ├ prefill                from the engine's call to its first token
      │ └ decode                 from there to its last
      └ stream                   a reader of GET /v1/jobs/{id}/stream, linked to its own request

The row decides about a job, so the row carries its trace: through lost, doubled and repeated messages, to any worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from shared.domain.job import AttemptOutcome, Job, JobStatus
from shared.domain.request_context import REQUEST_CONTEXT, RequestContext


class RequestTrace:
    """An HTTP request's span."""

    def answered(self, status: int) -> None:
        """The answer begins."""

    def ended(self, route: str, job_id: str | None) -> None:
        """The answer is whole, or its reader has gone."""


class AttemptTrace:
    """An attempt's span, and those of its engine's phases. Times are the database's clock, as far as it is known."""

    def generates(self, now: datetime, tokens_before: int) -> None:
        """The engine is asked, to go on after so many tokens."""

    def first_token(self, now: datetime, prompt_tokens: int, cached_tokens: int) -> None:
        """The prompt has been prefilled."""

    def ended(self, now: datetime, outcome: AttemptOutcome, prompt_tokens: int, tokens: int) -> None:
        """This attempt is over and has made so many tokens."""


class Reading:
    """A reader's span."""

    def got(self, events: int) -> None:
        """It was given so many events more."""


class Traces:
    """Makes spans. These make none."""

    on = False

    def request(self, method: str, path: str, traceparent: str | None) -> RequestTrace:
        """A request has come, with the `traceparent` that it had. Sets `REQUEST_CONTEXT` for what is done for it."""
        return RequestTrace()

    @contextmanager
    def submitting(self, model: str) -> Iterator[RequestContext]:
        """A job is committed meanwhile; yields where it comes from."""
        yield REQUEST_CONTEXT.get()

    def claimed(self, job: Job) -> AttemptTrace:
        """A worker has claimed a job. Tells how long it waited, and of the attempt before, if it was lost."""
        return AttemptTrace()

    def ended_without_worker(self, job: Job, status: JobStatus, now: datetime) -> None:
        """A job has ended without a worker, as it was read before."""

    @contextmanager
    def reading(self, job: Job, after: int) -> Iterator[Reading]:
        """A reader follows a job after a cursor meanwhile."""
        yield Reading()

    def close(self) -> None:
        """Send what waits. Blocks, for some seconds at most."""


NO_TRACES = Traces()
