"""Decides from the samples of a run whether something grows that a steady load does not explain."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from soak.sample import Sample, Usage

MIB = 1024 * 1024
# Memory and connections settle in this share of a run.
WARM_UP = 0.3
# Fewer samples after the warm-up are no basis for a decision.
MIN_SAMPLES = 6


@dataclass(frozen=True, slots=True)
class Bounds:
    """The growth that is accepted between the warm-up and the end of a run."""

    # Of the database, in bytes a job.
    database: int
    # In bytes and open files, or a share of those after the warm-up, whichever is more. Files of PostgreSQL grow slowly
    # to a limit, while each of its sessions opens the tables it uses.
    memory: int = 16 * MIB
    memory_share: float = 0.1
    files: int = 10
    files_share: float = 0.25


@dataclass(frozen=True, slots=True)
class Growth:
    """What a part used after the warm-up, and at the end of the run."""

    first: Usage
    last: Usage

    @property
    def memory(self) -> int:
        return self.last.memory - self.first.memory

    @property
    def files(self) -> int:
        return self.last.files - self.first.files


def settled(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples after the warm-up."""
    return [sample for sample in samples if sample.seconds >= WARM_UP * samples[-1].seconds] if samples else []


def growth(samples: Sequence[Sample]) -> dict[str, Growth]:
    """Return each part's growth: from the median of the first third after the warm-up to that of the last third."""
    steady = settled(samples)
    third = max(1, len(steady) // 3)
    names = steady[0].parts if steady else ()
    return {name: Growth(_median(steady[:third], name), _median(steady[-third:], name)) for name in names}


def _median(samples: Sequence[Sample], name: str) -> Usage:
    usages = [sample.parts[name] for sample in samples]
    return Usage(
        round(statistics.median(usage.memory for usage in usages)),
        round(statistics.median(usage.files for usage in usages)),
    )


def database_growth(samples: Sequence[Sample]) -> float | None:
    """Return the growth of the database after the warm-up in bytes a job, or None if no job ended."""
    steady = settled(samples)
    jobs = steady[-1].jobs - steady[0].jobs if steady else 0
    return (steady[-1].database - steady[0].database) / jobs if jobs else None


def drifts(samples: Sequence[Sample], bounds: Bounds) -> list[str]:
    """Return what grew beyond the bounds, one sentence each; a run that is too short to tell is reported too."""
    if len(settled(samples)) < MIN_SAMPLES:
        return [f"Only {len(settled(samples))} samples after the warm-up; at least {MIN_SAMPLES} are needed."]
    found = []
    for part, grown in growth(samples).items():
        memory = max(bounds.memory, round(bounds.memory_share * grown.first.memory))
        if grown.memory > memory:
            found.append(
                f"The memory of {part} grew by {grown.memory / MIB:.1f} MiB, from {grown.first.memory / MIB:.1f} MiB;"
                f" {memory / MIB:.1f} MiB are accepted."
            )
        files = max(bounds.files, round(bounds.files_share * grown.first.files))
        if grown.files > files:
            found.append(
                f"The open files of {part} grew by {grown.files}, from {grown.first.files}; {files} are accepted."
            )
    per_job = database_growth(samples)
    if per_job is None:
        found.append("No job ended after the warm-up.")
    elif per_job > bounds.database:
        found.append(f"The database grew by {per_job:.0f} bytes a job; {bounds.database} are accepted.")
    return found
