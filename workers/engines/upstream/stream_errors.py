"""Turns what goes wrong in parsing an upstream's stream into the failure of its answer."""

from __future__ import annotations

from workers.engines.base import UpstreamError
from workers.engines.upstream.errors import ErrorBody
from workers.engines.upstream.sse import EventTooLarge

TOO_LARGE = "The upstream sent too much in one event: at most 2 MiB are read at once."


class ReportedError(Exception):
    """The upstream reported an error."""

    def __init__(self, error: ErrorBody) -> None:
        super().__init__()
        self.error = error


# What a parser raises for an answer that fails: its events may have any shape.
STREAM_ERRORS = (ReportedError, ValueError, TypeError, KeyError, AttributeError, RecursionError)


def stream_failure(error: Exception, not_a_stream: str, too_large: str = TOO_LARGE) -> UpstreamError | ErrorBody:
    """The failure for one of `STREAM_ERRORS`. The messages are those for malformed and for too large events."""
    if isinstance(error, ReportedError):
        return error.error
    return UpstreamError(too_large if isinstance(error, EventTooLarge) else not_a_stream)
