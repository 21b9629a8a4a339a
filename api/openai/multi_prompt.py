"""Calls with several prompts: one job per prompt, submitted all or none."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from api.jobs.disconnect import JOBS_AT_ONCE, cancel_abandoned
from api.jobs.service import JobService
from api.keys.principal import Principal
from api.limits.limiter import Taken
from shared.domain.errors import RateLimited
from shared.domain.job import Job
from shared.domain.new_job import Idempotency, NewJob
from shared.runtime.aio import map_limited


async def submit_all(
    jobs: JobService, principal: Principal, requests: Sequence[NewJob], idempotency: Idempotency | None
) -> tuple[list[Job], bool]:
    """Submit the jobs of one call. Returns them in order, and False if an earlier call with this key created them.

    Raises:
        HeadraceError: a job was rejected; those already created are cancelled, and give back their requests to the rate
            limits.
    """
    owner, model, taken = requests[0].owner, requests[0].model, list[Taken]()
    if idempotency is None:  # otherwise the call may have been repeated, which takes none
        jobs.check_requests(owner, model, len(requests))

    async def submit(index: int) -> tuple[Job, bool] | Exception:
        key = None if idempotency is None else _derive_key(idempotency, index)
        try:
            return await jobs.submit(principal, requests[index], key, taken=taken)
        except Exception as error:
            return error

    outcomes = await map_limited(submit, range(len(requests)), JOBS_AT_ONCE)
    results = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if errors:
        error = errors[0]
        if isinstance(error, RateLimited):
            # The wait of one of them is not that of all: when they are sent again, each takes its part again.
            error = await jobs.refused_together([one for one in errors if isinstance(one, RateLimited)], taken)
        jobs.give_back_requests(taken)
        await cancel_abandoned(jobs, [job for job, created in results if created])
        if isinstance(error, RateLimited):
            jobs.check_requests(owner, model, len(requests))
        raise error
    return [job for job, _ in results], results[0][1]


def _derive_key(idempotency: Idempotency, index: int) -> Idempotency:
    """The call's own key for the first prompt; keys derived from it for the others."""
    if index == 0:
        return idempotency
    return Idempotency(hashlib.sha256(f"{idempotency.key}\n{index}".encode()).hexdigest(), idempotency.request_sha256)
