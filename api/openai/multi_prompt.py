"""A call with several prompts: a job for each, submitted together or not at all."""

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
    """The jobs of one call, in order; False beside them where this idempotency key made them before.

    Raises:
        HeadraceError: one is refused; those that were made are cancelled.
    """
    keys = [None if idempotency is None else _key_of(idempotency, place) for place in range(len(requests))]
    outcomes = await asyncio.gather(
        *(jobs.submit(principal, new, key) for new, key in zip(requests, keys, strict=True)), return_exceptions=True
    )
    made = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            await cancel_abandoned(jobs, [job for job, created in made if created])
            raise outcome
    return [job for job, _ in made], made[0][1]


def _key_of(idempotency: Idempotency, place: int) -> Idempotency:
    """The call's own key for its first prompt; keys that nobody sends for the others."""
    if place == 0:
        return idempotency
    return Idempotency(hashlib.sha256(f"{idempotency.key}\n{place}".encode()).hexdigest(), idempotency.request_sha256)
