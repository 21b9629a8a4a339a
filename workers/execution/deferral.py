"""How long a job waits for an upstream that was too busy for it."""

from __future__ import annotations

import random
from datetime import datetime

from shared.domain.job import Job
from workers.engines.base import UpstreamBusy

FIRST_S = 1.0
# The longest delay if the upstream names none, and the longest in place of a shorter one that it names.
LONGEST_S = 30.0
LONGEST_NAMED_S = 5.0
# A timer of this much more time than the delay does not fire before the database's clock has reached `not_before`.
TIMER_FACTOR, TIMER_S = 1.001, 0.05


def deferral_s(job: Job, busy: UpstreamBusy, now: datetime, *, begun: bool = False) -> float | None:
    """Seconds until the job can be claimed again, with jitter; None if it cannot wait that long.

    The delay is the one that the upstream named, but at least half of the time since the first deferral, up to a limit:
    so it grows exponentially. The job can wait until its deadlines, and for `max_wait_s` from its first deferral.

    `begun`: this attempt has output, so that the job has been started, and this deferral is its first.
    """
    since = now if begun or job.deferred_since is None else job.deferred_since
    waited_s = max(0.0, (now - since).total_seconds())
    longest_s = LONGEST_S if busy.retry_after_s is None else LONGEST_NAMED_S
    delay_s = min(longest_s, max(FIRST_S, waited_s / 2)) * random.uniform(0.5, 1)
    if busy.retry_after_s is not None:
        delay_s = max(delay_s, busy.retry_after_s * random.uniform(1, 1.1))
    left = [busy.max_wait_s - waited_s]
    if job.finish_before is not None:
        left.append((job.finish_before - now).total_seconds())
    if job.start_before is not None and not (begun or _was_started(job)):
        left.append((job.start_before - now).total_seconds())
    return delay_s if delay_s <= min(left) else None


def _was_started(job: Job) -> bool:
    """Whether an earlier attempt counts as the start of the job."""
    return len(job.attempts) > 1


def timer_s(delay_s: float) -> float:
    """Seconds after which the message of a job that was deferred for `delay_s` is sent."""
    return delay_s * TIMER_FACTOR + TIMER_S
