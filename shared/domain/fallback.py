"""Fallbacks: a job of a route moves to another model if its own cannot serve it and nobody has received output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from shared.domain.events import Event, EventType
from shared.domain.job import AttemptOutcome, JobSummary


class FallbackReason(StrEnum):
    """Why a job moves to another model. For an attempt that ended so, it is in the job's history."""

    # The upstream failed, or is too busy to run the job now.
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_BUSY = "upstream_busy"
    ENGINE_ERROR = "engine_error"
    # The prompt does not fit the model's context, which only the engine could determine.
    CONTEXT_LENGTH = "context_length"
    # A model that had taken over refuses the request. Admission checked it for the first model only.
    REFUSED = "refused"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    MODEL_REMOVED = "model_removed"
    # No worker of the model is left that could start the job before its deadline, or an operator has paused its queue.
    NO_WORKER = "no_worker"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class Availability:
    """The models that can take over jobs.

    `available`: the models with a worker that accepts jobs, without those that are paused. `paused`: the models whose
    queues an operator has paused.
    """

    available: frozenset[str] = frozenset()
    paused: frozenset[str] = frozenset()


def next_model(job: JobSummary, models: Availability, *, or_wait: bool) -> str | None:
    """The model that takes over: the first fallback that is available. None: there is none.

    `or_wait`: if none is available, the job waits for the first one whose queue is not paused, which needs no operator;
    if all are paused, for the first one.
    """
    candidates = candidates_of(job)
    found = next((model for model in candidates if model in models.available), None)
    if found is not None or not or_wait:
        return found
    return next((model for model in candidates if model not in models.paused), next(iter(candidates), None))


def candidates_of(job: JobSummary) -> tuple[str, ...]:
    """The models that may take over a job, in order. Each is listed once, so no job moves in a circle."""
    route = job.decisions.route
    if route is None:
        return ()
    return tuple(model for model in route.fallbacks if model != job.model and model not in route.tried)


def may_have_output(job: JobSummary, events: Sequence[Event]) -> bool:
    """Whether anybody may have received output of a job. `events`: its log so far, which Redis may have lost."""
    if job.first_token_at is not None:
        return True
    if not events:
        return bool(job.begins_with) or any(attempt.outcome != AttemptOutcome.REROUTED for attempt in job.attempts)
    return any(event.type in (EventType.DELTA, EventType.RESTARTED) for event in events)
