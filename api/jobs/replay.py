"""Submitting a job's request again, as a new job."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from api.http.lookup import own_or_404
from api.http.submit_headers import SubmitHeaders
from api.jobs.service import JobService
from api.keys.earlier_work import EarlierWork
from api.keys.principal import Principal, Scope
from shared.domain.answer_options import NO_CACHE_CONTROL, CacheControl, RequestOptions
from shared.domain.errors import Conflict
from shared.domain.job import Job, is_job_id
from shared.domain.new_job import Idempotency, NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Sampling
from shared.postgres.job_store import JobStore

# The member of the metadata that names the job whose request it is.
REPLAY_OF = "replay_of"
NO_HEADERS = SubmitHeaders()


class Replays:
    """Submits the requests of ended jobs again, for their projects and for operators."""

    def __init__(self, store: JobStore, jobs: JobService, earlier_work: EarlierWork) -> None:
        self._store = store
        self._jobs = jobs
        self._earlier_work = earlier_work

    async def replay(
        self, principal: Principal, job_id: str, submission: SubmitHeaders = NO_HEADERS
    ) -> tuple[Job, bool]:
        """Submit a job's request again. The new job belongs to the same project and end user.

        It is of the principal's key, unless an operator replays a job of another project: that is of the job's key.
        The response cache does not answer it, unless the submission's Cache-Control allows that. The request log keeps
        no more of it than of the job. The second value is as that of `JobService.submit`.

        Raises:
            Forbidden: the principal's key has no inference scope.
            NotFound: the job does not exist, or belongs to another project and the principal is no operator.
            Conflict: the job has not ended.
            Forbidden, NotFound, InvalidRequest, QuotaExceeded, KeyReused: as `JobService.submit`.
        """
        principal.require(Scope.INFERENCE)
        job = await self._find(principal, job_id)
        if not job.status.terminal:
            raise Conflict(f"The job is {job.status.value}; only a job that has ended can be replayed.")
        if job.owner.project_id == principal.project_id:
            principal = principal.acting_for(job.owner.end_user)
        else:
            principal = await self._earlier_work.principal(job.owner)
        new = replay_of(job, principal.owner, job.requested_model or job.model)
        control = submission.cache_control
        if control == NO_CACHE_CONTROL:
            control = CacheControl(no_cache=True)
        new = replace(
            new,
            priority=max(new.priority, principal.priority_floor),
            start_within_s=submission.start_within_s,
            finish_within_s=submission.finish_within_s,
            options=RequestOptions(cache_control=control, log_level=submission.log_level),
        )
        return await self._jobs.submit(principal, new, _idempotency(submission, job), background=True)

    async def _find(self, principal: Principal, job_id: str) -> Job:
        async def get(job_id: str, project_id: int) -> Job | None:
            return await self._store.get(job_id, None if Scope.ADMIN in principal.scopes else project_id)

        return await own_or_404("job", job_id, principal.project_id, is_job_id, get)


def replay_of(job: Job, owner: Owner, model: str) -> NewJob:
    """A new job with the request of another."""
    return NewJob(
        owner=owner,
        model=model,
        priority=job.priority,
        request=requested(job),
        metadata={**job.metadata, REPLAY_OF: job.id},
        log_level=job.log_level,
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


def _idempotency(submission: SubmitHeaders, job: Job) -> Idempotency | None:
    """The idempotency key with a digest of what is to be submitted; None without a key."""
    if submission.idempotency_key is None:
        return None
    level = f" {submission.log_level}" if submission.log_level is not None else ""
    request = f"{job.id} {submission.start_within_s} {submission.finish_within_s}{level}"
    digest = hashlib.sha256(f"/v1/jobs/replay {request}".encode()).hexdigest()
    return Idempotency(submission.idempotency_key, digest)
