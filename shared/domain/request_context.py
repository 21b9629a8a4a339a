"""The HTTP request that submitted a job, and the trace that the job belongs to.

Both are stored in the job's row. A message is a hint that may be lost, resent or duplicated, so it carries neither.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestContext:
    """`request_id` is the response's `x-request-id`; `traceparent` has the format of W3C Trace Context."""

    request_id: str | None = None
    traceparent: str | None = None


NO_CONTEXT = RequestContext()
# The context of the request that the running task handles; the API sets it.
REQUEST_CONTEXT: ContextVar[RequestContext] = ContextVar("request_context", default=NO_CONTEXT)
