"""Priorities of jobs, and the hint that a job may be waiting."""

from __future__ import annotations

from dataclasses import dataclass, replace

# kombu's Redis transport keeps one list for each of these steps and the priorities after it; 0 is served first.
PRIORITY_STEPS = (0, 3, 6, 9)
BANDS = {step: range(step, end) for step, end in zip(PRIORITY_STEPS, (*PRIORITY_STEPS[1:], 10), strict=True)}
# The last of these lists is the batches': whatever is asked for one by one goes first.
BATCH_PRIORITY = PRIORITY_STEPS[-1]
URGENT_PRIORITIES, BATCH_PRIORITIES = range(BATCH_PRIORITY), BANDS[BATCH_PRIORITY]


@dataclass(frozen=True, slots=True)
class Hint:
    """What a message says: this job of this model may be waiting. `front`: before its list's others."""

    job_id: str
    model: str
    priority: int
    front: bool = False


def is_batch(priority: int) -> bool:
    """Whether a message or a job of this priority waits until nothing else does."""
    return priority >= BATCH_PRIORITY


def first(hint: Hint) -> Hint:
    """The hint for a job that goes first: it was running, and its reader waits in mid-sentence; or passed over.

    A batch's job goes before the other batches' only.
    """
    return replace(hint, priority=BATCH_PRIORITY if is_batch(hint.priority) else PRIORITY_STEPS[0], front=True)
