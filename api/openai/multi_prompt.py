"""Calls with several prompts: one job per prompt, submitted all or none."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

from api.jobs.disconnect import cancel_abandoned
from api.jobs.service import JobService
from api.keys.principal import Principal
from shared.domain.job import Job
from shared.postgres.job_store import Idempotency, NewJob


async def submit_all(
    jobs: JobService, principal: Principal, requests: Sequence[NewJob], idempotency: Idempotency | None
) -> tuple[list[Job], bool]:
    """Submit the jobs of one call. Returns them in order, and False if an earlier call with this key created them.

    Raises:
        HeadraceError: a job was rejected; those already created are cancelled.
    """
    keys = [None if idempotency is None else _derive_key(idempotency, index) for index in range(len(requests))]
    outcomes = await asyncio.gather(
        *(jobs.submit(principal, new, key) for new, key in zip(requests, keys, strict=True)), return_exceptions=True
    )
    results = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            await cancel_abandoned(jobs, [job for job, created in results if created])
            raise outcome
    return [job for job, _ in results], results[0][1]


def _derive_key(idempotency: Idempotency, index: int) -> Idempotency:
    """The call's own key for the first prompt; keys derived from it for the others."""
    if index == 0:
        return idempotency
    return Idempotency(hashlib.sha256(f"{idempotency.key}\n{index}".encode()).hexdigest(), idempotency.request_sha256)
