"""Job priorities, and hints: messages that a job may be waiting."""

from __future__ import annotations

from dataclasses import dataclass, replace

# kombu's Redis transport has one list per step, for priorities from that step to the next; list 0 is served first.
PRIORITY_STEPS = (0, 3, 6, 9)
BANDS = {step: range(step, end) for step, end in zip(PRIORITY_STEPS, (*PRIORITY_STEPS[1:], 10), strict=True)}
MAX_PRIORITY = 9
# The last list is for batch jobs, which wait for all others.
BATCH_PRIORITY = PRIORITY_STEPS[-1]
URGENT_PRIORITIES, BATCH_PRIORITIES = range(BATCH_PRIORITY), BANDS[BATCH_PRIORITY]


@dataclass(frozen=True, slots=True)
class Hint:
    """The content of a message: this job of this model may be waiting. `front`: put it at the head of its list."""

    job_id: str
    model: str
    priority: int
    front: bool = False


def is_batch(priority: int) -> bool:
    """Whether a message or job of this priority belongs to a batch, and is served when no other waits."""
    return priority >= BATCH_PRIORITY


def to_front(hint: Hint) -> Hint:
    """Move a hint to the front: its job was interrupted while a reader followed it, or was passed over.

    A batch job only precedes other batch jobs.
    """
    return replace(hint, priority=BATCH_PRIORITY if is_batch(hint.priority) else PRIORITY_STEPS[0], front=True)
