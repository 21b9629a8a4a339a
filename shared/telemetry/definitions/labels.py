"""Labels of several metrics, and the values that code outside of this package gives to labels."""

from __future__ import annotations

from enum import StrEnum

from shared.domain.budgets import BudgetScope
from shared.domain.priorities import BANDS
from shared.telemetry.instruments import Exporter, Label

API, WORKER = Exporter.API, Exporter.WORKER

# Models that models.yaml does not declare, or no longer: their rows remain.
OTHER = "(other)"
_BAND_NAMES = {
    priority: f"{band[0]}-{band[-1]}" if len(band) > 1 else str(band[0]) for band in BANDS.values() for priority in band
}
PRIORITY_LABELS = tuple(dict.fromkeys(_BAND_NAMES.values()))

MODEL = Label("model", bound="names in models.yaml, and `(other)`")
PRIORITY = Label("priority", PRIORITY_LABELS)
ROUTE = Label("route", bound="routes in models.yaml")
BUDGET_SCOPE = Label("scope", tuple(scope.value for scope in BudgetScope))


def priority_label(priority: int) -> str:
    """The label of a priority: the range of priorities that share a list in Redis.

    A priority that only a newer version has counts as the least urgent one.
    """
    return _BAND_NAMES.get(priority, PRIORITY_LABELS[-1])


class HttpRejection(StrEnum):
    """Why the HTTP server rejected a request before the application received it, or closed a connection."""

    MALFORMED = "malformed"
    TOO_LARGE = "head_too_large"
    HEADER_TIMEOUT = "header_timeout"
    BODY_TIMEOUT = "body_timeout"
    SEND_TIMEOUT = "send_timeout"
    PIPELINING = "pipelining"
    CONNECTIONS = "connections"


class Quota(StrEnum):
    """The quotas of a project, and of its keys, end users and models."""

    QUEUED_JOBS = "queued_jobs"
    URGENT_JOBS = "urgent_jobs"
    RUNNING_JOBS = "running_jobs"
    REQUEST_BYTES = "request_bytes"
    STREAMS = "streams"
    OPEN_BYTES = "open_bytes"
    CONCURRENT_JOBS = "concurrent_jobs"
    FILE_BYTES = "file_bytes"


class SkipReason(StrEnum):
    """Why a route skips a model. The last four are temporary: such a model serves the request if no other can."""

    CAPABILITY = "capability"
    CONTEXT_LENGTH = "context_length"
    LIMIT = "limit"
    REMOVED = "removed"
    NO_WORKER = "no_worker"
    BREAKER_OPEN = "breaker_open"
    PAUSED = "paused"
    WAIT = "wait"


class TokenLimitOutcome(StrEnum):
    """The effect of a token limit on a request."""

    CLAMPED = "clamped"
    DEFAULT = "default"
    REFUSED_OUTPUT = "refused_output"
    REFUSED_INPUT = "refused_input"


class SamplingSkip(StrEnum):
    """Why an answer that was selected for a judge was not judged."""

    # A budget or a quota of the project of judges has no room.
    BUDGET = "budget"
    QUOTA = "quota"
    # Judges are slower than the sample.
    BACKLOG = "backlog"
    # The request log does not have the answer any more, or it cannot be read.
    BODY = "body"
    # The rubric was changed or removed in between.
    RUBRIC = "rubric"
    # The model of the judge does not exist, or cannot take the request.
    JUDGE = "judge"
