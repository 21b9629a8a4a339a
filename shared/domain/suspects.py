"""Which jobs are blamed for the death of a worker or engine.

A request that kills its engine does so before its first token: while its prompt, its schema or its sampling parameters
are processed. So of the jobs that ran when an engine died, those without a token since their start are suspects. A
suspect runs alone until it has a token, so that its next death concerns no other job and can be charged to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

# Deaths per attempt that a job may survive before it is suspected of killing after its first token.
LATE_FACTOR = 3


class Casualty(Protocol):
    """A job that ran when its worker or engine died.

    `suspect`: it was a suspect already, and has not been cleared. `exposures`: earlier deaths that it was not charged
    with.
    """

    @property
    def job_id(self) -> str: ...
    @property
    def suspect(self) -> bool: ...
    @property
    def exposures(self) -> int: ...


@dataclass(frozen=True, slots=True)
class JobAtDeath:
    """A job that an engine ran when it died; see `Casualty`."""

    job_id: str
    suspect: bool
    exposures: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a death means for a job: whether it counts as one of the job's deaths, and whether the job is a suspect."""

    charged: bool
    suspect: bool


def judge(ran: Iterable[Casualty], silent: Iterable[str], max_attempts: int) -> dict[str, Verdict]:
    """Judge the jobs that ran on one engine when it died, by job id. `silent`: those without a token since their start.

    A death is charged to the suspects that had not been cleared; without any, to the only job that can have caused it.
    If several can have caused it, none is charged, and each becomes a suspect. So does a job that `kills_late`.
    """
    jobs, quiet = list(ran), set(silent)
    candidates = [job.job_id for job in jobs if job.suspect]
    if not candidates:
        silent_jobs = [job.job_id for job in jobs if job.job_id in quiet]
        if len(silent_jobs) == 1:
            candidates = silent_jobs
        elif len(jobs) == 1:
            candidates = [jobs[0].job_id]
    verdicts: dict[str, Verdict] = {}
    for job in jobs:
        charged = job.job_id in candidates
        late = kills_late(job.exposures + (not charged), max_attempts)
        verdicts[job.job_id] = Verdict(charged, job.suspect or job.job_id in quiet or late)
    return verdicts


def kills_late(exposures: int, max_attempts: int) -> bool:
    """Whether a job was present at enough deaths to be a suspect in spite of its tokens.

    Otherwise a job that kills after its first token would be retried for ever.
    """
    return exposures >= LATE_FACTOR * max_attempts
