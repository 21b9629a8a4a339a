"""Submitting a job's request again, as a new job."""

from __future__ import annotations

from shared.domain.job import Job
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Sampling

# The member of the metadata that names the job whose request it is.
REPLAY_OF = "replay_of"


def replay_of(job: Job, owner: Owner, model: str) -> NewJob:
    """A new job with the request of another."""
    return NewJob(
        owner=owner,
        model=model,
        priority=job.priority,
        request=requested(job),
        metadata={**job.metadata, REPLAY_OF: job.id},
    )


def requested(job: Job) -> GenerateRequest:
    """The request as the client sent it, so that the current limits apply."""
    decision = job.decisions.token_limits
    if decision is None:
        return job.request
    values = job.request.sampling.model_dump(exclude_unset=True, exclude={"max_tokens"})
    if decision.requested_max_tokens is not None:
        values["max_tokens"] = decision.requested_max_tokens
    if decision.requested_thinking_token_budget is not None:
        values["thinking_token_budget"] = decision.requested_thinking_token_budget
    return job.request.model_copy(update={"sampling": Sampling.model_validate(values)})
