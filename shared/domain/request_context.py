"""Where a job comes from: the HTTP request that asked for it, and the trace that it belongs to.

Both travel with the job in its row. A message is a hint that may be lost, sent again or doubled, so it carries neither.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestContext:
    """`request_id` is the answer's `x-request-id`; `traceparent` is as W3C's Trace Context writes it."""

    request_id: str | None = None
    traceparent: str | None = None


NO_CONTEXT = RequestContext()
# Of what the running task works for; the API sets it for each request.
REQUEST_CONTEXT: ContextVar[RequestContext] = ContextVar("origin", default=NO_CONTEXT)
