"""The numbers of the overview: what happened in a time, and what waits and runs now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from api.admin.fleet.store import WorkerInfo
from api.console.data.histogram import Percentiles, merged
from shared.domain.errors import ErrorCode
from shared.domain.job import JobStatus

_FAILED = (JobStatus.FAILED, JobStatus.EXPIRED)


@dataclass(frozen=True, slots=True)
class Bucket:
    """What happened in a part of the time.

    `first_token` and `wait`: from submission to the first token and to the first claim, of interactive jobs that a
    worker ran and that ended in this part; None if there were none. `tokens` are the output tokens that workers
    generated for jobs which ended in it, `ended` these jobs by status, and `errors` those with an error by its code.
    """

    start: datetime
    seconds: float
    first_token: Percentiles | None = None
    wait: Percentiles | None = None
    tokens: int = 0
    ended: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, int] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        return round(self.tokens / self.seconds, 1) if self.seconds else 0.0

    @property
    def jobs(self) -> int:
        """The number of jobs that ended."""
        return sum(self.ended.values())

    @property
    def failed(self) -> int:
        """The number of jobs that failed or expired."""
        return sum(count for status, count in self.ended.items() if status in _FAILED)

    @property
    def causes(self) -> Mapping[str, int]:
        """The error codes of failed and expired jobs, the most frequent first. Cancelled ones have a code too."""
        causes = [(code, count) for code, count in self.errors.items() if code != ErrorCode.CANCELLED]
        return dict(sorted(causes, key=lambda item: -item[1]))


@dataclass(frozen=True, slots=True)
class QueueState:
    """The jobs of a model that wait, interactive ones or those of batches.

    `waiting` is exact up to a limit: if it is `capped`, more wait. `oldest_s`: for how long the first one of the oldest
    list has waited. Jobs that follow another one are not among them.
    """

    model: str
    interactive: bool
    waiting: int = 0
    capped: bool = False
    oldest_s: float | None = None
    running: int = 0
    paused_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Rescue:
    """A job that lost its worker or its engine and went on.

    `lost_at` is the time at which that was noticed; `outcome` is `worker_lost` or `engine_lost`. `continued_at` and
    `continued_by`: the next attempt; None while the job waits for it, or if it ended without one.
    """

    job_id: str
    project_id: int
    model: str
    attempt: int
    worker: str
    outcome: str
    lost_at: datetime
    tokens: int
    continued_at: datetime | None
    continued_by: str | None
    status: str


@dataclass(frozen=True, slots=True)
class Charts:
    """The parts of a time range, in order, and the whole of it."""

    start: datetime
    end: datetime
    model: str | None
    buckets: Sequence[Bucket]
    total: Bucket

    @property
    def complete(self) -> Sequence[Bucket]:
        """The parts without the last one if it has not ended yet: its counts would look like a drop."""
        is_open = len(self.buckets) > 1 and self.buckets[-1].seconds < self.buckets[0].seconds
        return self.buckets[:-1] if is_open else self.buckets


@dataclass(frozen=True, slots=True)
class Live:
    """What waits and runs at a moment. Rescues are the newest first."""

    at: datetime
    queues: Sequence[QueueState]
    workers: Sequence[WorkerInfo]
    rescues: Sequence[Rescue]

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second of all live workers, as they report it."""
        return round(sum(worker.tokens_per_s or 0 for worker in self.workers if worker.alive), 1)


@dataclass(slots=True)
class Measures:
    """What was counted within a bucket, by measure and label."""

    ended: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    first_tokens: dict[int, int] = field(default_factory=dict)
    waits: dict[int, int] = field(default_factory=dict)
    tokens: int = 0

    def add(self, measure: str, values: Mapping[str, int]) -> None:
        """Set the values of a measure, by label."""
        match measure:
            case "ended":
                self.ended = dict(values)
            case "error":
                self.errors = dict(values)
            case "first_token":
                self.first_tokens = {int(number): count for number, count in values.items()}
            case "wait":
                self.waits = {int(number): count for number, count in values.items()}
            case "tokens":
                self.tokens = sum(values.values())

    def bucket(self, start: datetime, seconds: float) -> Bucket:
        """The bucket that these counts are about."""
        return Bucket(
            start,
            seconds,
            Percentiles.of(self.first_tokens),
            Percentiles.of(self.waits),
            self.tokens,
            self.ended,
            self.errors,
        )


def charts(
    start: datetime, end: datetime, width: timedelta, model: str | None, measured: Mapping[datetime, Measures]
) -> Charts:
    """The charts of a time from what was counted, by the start of the bucket. Buckets without jobs are included."""
    buckets = []
    at = start
    while at < end:
        found = measured.get(at) or Measures()
        buckets.append(found.bucket(at, (min(at + width, end) - at).total_seconds()))
        at += width
    total = Measures(
        ended=merged(one.ended for one in measured.values()),
        errors=merged(one.errors for one in measured.values()),
        first_tokens=merged(one.first_tokens for one in measured.values()),
        waits=merged(one.waits for one in measured.values()),
        tokens=sum(one.tokens for one in measured.values()),
    )
    return Charts(start, end, model, buckets, total.bucket(start, (end - start).total_seconds()))
