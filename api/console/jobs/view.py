"""What the list of jobs shows of each one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from api.console.filters import duration
from api.console.jobs.conditions import RANGES, Conditions
from api.console.key_names import KeyNames
from shared.domain.job import JobStatus, JobSummary
from shared.domain.priorities import BATCH_PRIORITY

# The word for a status, and the kind of its badge.
STATUSES: Mapping[JobStatus, tuple[str, str]] = {
    JobStatus.QUEUED: ("Queued", "plain"),
    JobStatus.IN_PROGRESS: ("In progress", "info"),
    JobStatus.CANCELLING: ("Cancelling", "near"),
    JobStatus.COMPLETED: ("Completed", "good"),
    JobStatus.INCOMPLETE: ("Incomplete", "near"),
    JobStatus.FAILED: ("Failed", "bad"),
    JobStatus.CANCELLED: ("Cancelled", "plain"),
    JobStatus.EXPIRED: ("Expired", "bad"),
}
RANGE_TITLES = {
    "15m": "submitted in the last 15 minutes",
    "1h": "submitted in the last hour",
    "24h": "submitted in the last day",
    "7d": "submitted in the last 7 days",
    "30d": "submitted in the last 30 days",
}
SHOWN_METADATA = 2


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the list. `time`: how long the job took, or has taken so far. `phase`: what an open job does.

    Values are as they are shown, so that equal lines look the same.
    """

    id: str
    status: str
    kind: str
    is_open: bool
    title: str
    model: str
    requested: str | None
    purpose: str | None
    project: str
    key: str
    user: str | None
    metadata: Sequence[str]
    more_metadata: str
    is_batch: bool
    first_token_ms: int | None
    tokens: int | None
    phase: str | None
    time: str
    created_at: datetime
    notes: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Choice:
    """A value of a condition that can be chosen by a link."""

    text: str
    address: str
    is_current: bool
    title: str = ""


@dataclass(frozen=True, slots=True)
class Chip:
    """A condition that is set, and the address of the list without it."""

    name: str
    value: str
    address: str


def rows(
    jobs: Sequence[JobSummary], names: Mapping[int, KeyNames], generating: Collection[str], now: datetime
) -> list[Row]:
    """The lines of a page."""
    return [_row(job, names[job.owner.key_id], job.id in generating, now) for job in jobs]


def _row(job: JobSummary, names: KeyNames, generates: bool, now: datetime) -> Row:
    status, kind = STATUSES[job.status]
    pairs = [f"{name}={value}" for name, value in job.metadata.items()]
    timings = job.timings()
    return Row(
        id=job.id,
        status=status,
        kind=kind,
        is_open=not job.status.terminal,
        title=job.error.message if job.error is not None else "",
        model=job.model,
        requested=job.requested_model,
        purpose=job.kind,
        project=names.project,
        key=names.key,
        user=job.owner.end_user,
        metadata=pairs[:SHOWN_METADATA],
        more_metadata="\n".join(pairs[SHOWN_METADATA:]),
        is_batch=job.priority >= BATCH_PRIORITY,
        first_token_ms=timings["ttft_ms"],
        tokens=job.usage.completion_tokens if job.usage is not None else None,
        phase=_phase(job, generates),
        time=_time(job, now),
        created_at=job.created_at,
        notes=_notes(job),
    )


def _time(job: JobSummary, now: datetime) -> str:
    """How long a job took. How long one has taken so far is without seconds after two minutes: lists are live."""
    seconds = max(0.0, ((job.finished_at or now) - job.created_at).total_seconds())
    return duration(seconds if job.finished_at is not None or seconds < 120 else seconds // 60 * 60)


def _phase(job: JobSummary, generates: bool) -> str | None:
    if job.status.terminal:
        return None
    if job.follows is not None:
        return "follows another job"
    if job.status is JobStatus.QUEUED:
        if job.deferred_since is not None:
            return "upstream busy" if job.not_before is not None else "waits"
        return "rate limit" if job.not_before is not None else "waits"
    return "generates" if generates else "prefill"


def _notes(job: JobSummary) -> list[tuple[str, str]]:
    """What is remarkable about a job: short texts and the kinds of their badges."""
    notes = []
    if job.deaths:
        notes.append((f"rescued ×{job.deaths}" if job.deaths > 1 else "rescued", "bad"))
    if job.decisions.has_moved:
        notes.append(("fallback", "route"))
    if (cache := job.decisions.cache) is not None and cache.outcome in ("HIT", "COALESCED"):
        notes.append(("cached" if cache.outcome == "HIT" else "coalesced", "route"))
    if job.error is not None and job.error.code != job.status.value:  # a cancelled job's error says so again
        notes.append((job.error.code, "bad" if job.status is JobStatus.FAILED else "plain"))
    return notes


def statuses(conditions: Conditions) -> list[Choice]:
    """Links that choose a status."""
    found = [Choice("All", conditions.changed(statuses=()).address(), not conditions.statuses)]
    for status, (text, _) in STATUSES.items():
        if status is JobStatus.CANCELLING and status not in conditions.statuses:
            continue  # it lasts for a moment
        address = conditions.changed(statuses=(status,)).address()
        found.append(Choice(text, address, status in conditions.statuses))
    return found


def ranges(conditions: Conditions) -> list[Choice]:
    """Links that choose a time range."""
    limits = {"start": None, "end": None}
    has_other = conditions.start is not None or conditions.end is not None
    found = [
        Choice(name, conditions.changed(range=name, **limits).address(), conditions.range == name, RANGE_TITLES[name])
        for name in RANGES
    ]
    anytime = conditions.changed(range=None, **limits).address()
    return [*found, Choice("Any", anytime, conditions.range is None and not has_other, "submitted at any time")]


def chips(conditions: Conditions) -> list[Chip]:
    """The conditions that are set, apart from those that links show."""
    found = [
        Chip(name, value, conditions.changed(**{name: None}).address())
        for name in ("model", "project", "key", "user")
        if (value := getattr(conditions, name)) is not None
    ]
    for member in conditions.metadata:
        left = tuple(other for other in conditions.metadata if other != member)
        found.append(Chip("metadata", member, conditions.changed(metadata=left).address()))
    for name, field in (("from", "start"), ("to", "end")):
        if (moment := getattr(conditions, field)) is not None:
            text = f"{moment.astimezone(UTC):%-d %b %Y, %H:%M} UTC"
            found.append(Chip(name, text, conditions.changed(**{field: None}).address()))
    return found


def searched_back(cursor: str, now: datetime) -> str:
    """How far a search has come: until when the job of its cursor was submitted."""
    created_at = datetime.fromtimestamp(int(cursor.partition("_")[2][:12], 16) / 1000, UTC)
    return f"{duration(max(0.0, (now - created_at).total_seconds()))} ago"
