"""Classifies Triton's errors. The status of an answer that begins with an error is arbitrary, so its text decides."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from workers.engines.upstream.error_body import error_of, parse_error
from workers.engines.upstream.errors import ErrorBody

# The model or the server is being loaded, is overloaded, or is lost and will be replaced.
_TRANSIENT = re.compile(
    r"\bnot ready\b|\bno available versions?\b|\bunavailable\b|\bnot healthy\b|\bqueue size\b|\bshutting down\b"
    r"|\b(?:is|has been) (?:un)?load|\bnot accepting\b|\btimeout expired\b|\bqueue timeout\b",
    re.IGNORECASE,
)
# Reported as a fault of the server.
_INVALID = re.compile(r"^Unable to parse|^failed to parse", re.IGNORECASE)
_EVENT = b"data:"


def event_error(error: Any) -> ErrorBody:
    """Read the error of an event: a text."""
    return _classified(error_of(error))


def response_error(content: bytes) -> ErrorBody:
    """Read the error of a response: an event of an answer, or JSON."""
    return _classified(parse_error(content.strip().removeprefix(_EVENT).strip()))


def is_classified(content: bytes) -> bool:
    """Whether the text of an error response, not its status, says what kind of error it is."""
    return content.lstrip().startswith(_EVENT) or response_error(content).status is not None


def _classified(error: ErrorBody) -> ErrorBody:
    if _TRANSIENT.search(error.message):
        return replace(error, status=503)
    if _INVALID.search(error.message):
        return replace(error, status=400)
    return error
