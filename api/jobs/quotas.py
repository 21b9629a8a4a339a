"""Quotas: how many jobs may wait and run, and how large their requests may be together.

Each project has the quotas of the settings, unless limits replace them, and those of limits of its keys, end users and
models. The rows are the only counter, so that nothing can leak or drift. Counting them for each submit would cost more
than the submit, so a count is used for a second, plus what this process has submitted since. A submit that would be
rejected is always counted again first. Other API processes' submits of the last second are not seen: with several
processes, a quota may be exceeded by those.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from api.jobs.quota_store import JobCounts, QuotaStore
from api.limits.rules import LimitBook, LimitScope, Measure, Rule
from api.settings import QuotaSettings
from shared.domain.errors import QuotaExceeded
from shared.domain.new_job import NewJob
from shared.domain.priorities import BANDS, PRIORITY_STEPS
from shared.telemetry.definitions.labels import Quota
from shared.telemetry.metrics import Metrics

FRESH_S = 1.0
# A rejected submit is counted again if the last count is older than this many times its duration, which under load
# includes waiting for a connection: at most `MAX_RECOUNT_S`.
MIN_COUNT_INTERVAL = 5
MAX_RECOUNT_S = 0.02
RETRY_S = 5
# Scopes that are remembered between their submits.
MAX_SCOPES = 10_000
_URGENT = BANDS[PRIORITY_STEPS[0]]
_MEASURES = (Measure.QUEUED_JOBS, Measure.CONCURRENT_JOBS)


@dataclass(slots=True)
class _Jobs:
    """A number of jobs, how many of them are urgent, and the size of their requests."""

    count: int = 0
    urgent: int = 0
    request_bytes: int = 0

    def add(self, other: _Jobs, sign: int = 1) -> None:
        self.count += sign * other.count
        self.urgent += sign * other.urgent
        self.request_bytes += sign * other.request_bytes


@dataclass(frozen=True, slots=True)
class _Caps:
    """The quotas of a scope, 0: none. `queued_by` and `concurrent_by` say where they are set."""

    queued: int = 0
    queued_by: str = ""
    concurrent: int = 0
    concurrent_by: str = ""
    urgent: int = 0
    running: int = 0
    request_bytes: int = 0

    def with_rule(self, rule: Rule) -> _Caps:
        """With the value of a limit."""
        if rule.measure is Measure.QUEUED_JOBS:
            return replace(self, queued=rule.value, queued_by=rule.name)
        return replace(self, concurrent=rule.value, concurrent_by=rule.name)

    @property
    def any(self) -> bool:
        return any((self.queued, self.concurrent, self.urgent, self.running, self.request_bytes))


@dataclass(slots=True)
class _Scope:
    """The last count of a scope, what this process has submitted since that count began, and is submitting now."""

    counted: JobCounts | None = None
    submitted: _Jobs = field(default_factory=_Jobs)
    submitting: _Jobs = field(default_factory=_Jobs)
    fresh_until: float = 0.0
    recount_after: float = 0.0
    counting: asyncio.Task[None] | None = None


class Reservation:
    """A job's part of the quotas until it is stored; then the counts of rows include it."""

    __slots__ = ("_job", "_scopes")

    def __init__(self, scopes: Sequence[_Scope], job: _Jobs) -> None:
        self._scopes = scopes
        self._job = job

    def release(self) -> None:
        """The job was stored. If that failed, it is counted until the next count of rows."""
        for scope in self._scopes:
            scope.submitting.add(self._job, -1)
            scope.submitted.add(self._job)


NO_RESERVATION = Reservation((), _Jobs())


class JobQuotas:
    """Admits jobs while their project, key, end user and model are within their quotas."""

    def __init__(
        self, store: QuotaStore, settings: QuotaSettings, metrics: Metrics, book: LimitBook | None = None
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._book = book or LimitBook()
        self._scopes: dict[LimitScope, _Scope] = {}
        self._of_projects = _Caps(
            queued=settings.project_queued_jobs,
            queued_by="HEADRACE_PROJECT_QUEUED_JOBS",
            urgent=settings.project_urgent_jobs,
            running=settings.project_running_jobs,
            request_bytes=settings.project_request_bytes,
        )

    async def reserve(self, new: NewJob) -> Reservation:
        """Admit a job, which the caller stores; it releases the reservation afterwards.

        Raises:
            QuotaExceeded: a quota is used up.
            sqlalchemy.exc.SQLAlchemyError, OSError: the database is unavailable.
        """
        caps = self._caps(new)
        if not caps:
            return NO_RESERVATION
        job = _Jobs(1, int(new.priority in _URGENT), new.request.size)
        scopes = [self._scope(key) for key in caps]
        for (key, limits), scope in zip(caps.items(), scopes, strict=True):
            now = time.monotonic()
            if scope.counted is None:
                await self._count(key, scope)
            elif now >= scope.fresh_until:
                self._start_count(key, scope)
            if _exceeded(key, limits, scope, job) is not None and time.monotonic() >= scope.recount_after:
                await self._count(key, scope)
        # Without a pause from here on, so that concurrent submits do not reserve the same room.
        for (key, limits), scope in zip(caps.items(), scopes, strict=True):
            if (exceeded := _exceeded(key, limits, scope, job)) is not None:
                quota, message = exceeded
                self._metrics.quota_rejections.labels(quota.value).inc()
                raise QuotaExceeded(message, retry_after_s=RETRY_S)
        for scope in scopes:
            scope.submitting.add(job)
        return Reservation(scopes, job)

    def _caps(self, new: NewJob) -> dict[LimitScope, _Caps]:
        """The quotas that apply to a job, by their scopes."""
        found = {LimitScope(new.owner.project_id): self._of_projects} if self._of_projects.any else {}
        for rule in self._book.rules(new.owner, new.model, _MEASURES):
            found[rule.scope] = found.get(rule.scope, _Caps()).with_rule(rule)
        return found

    def _scope(self, key: LimitScope) -> _Scope:
        scope = self._scopes.get(key)
        if scope is None:
            if len(self._scopes) >= MAX_SCOPES:
                self._scopes = {key: one for key, one in self._scopes.items() if one.submitting.count}
            scope = self._scopes[key] = _Scope()
        return scope

    def _start_count(self, key: LimitScope, scope: _Scope) -> asyncio.Task[None]:
        """Count in the background. Concurrent callers share one count."""
        if scope.counting is None:
            scope.counting = asyncio.create_task(self._run_count(key, scope), name="quota-count")
            scope.counting.add_done_callback(_retrieve_error)
        return scope.counting

    async def _count(self, key: LimitScope, scope: _Scope) -> None:
        await asyncio.shield(self._start_count(key, scope))

    async def _run_count(self, key: LimitScope, scope: _Scope) -> None:
        try:
            # What is stored during the count may or may not be counted; it is added until the next count.
            before, started_at = replace(scope.submitted), time.monotonic()
            scope.counted = await self._store.count(key)
            scope.submitted.add(before, -1)
            took_s = time.monotonic() - started_at
            scope.fresh_until = started_at + max(FRESH_S, MIN_COUNT_INTERVAL * took_s)
            scope.recount_after = started_at + min(MAX_RECOUNT_S, MIN_COUNT_INTERVAL * took_s)
        finally:
            scope.counting = None


def _exceeded(key: LimitScope, caps: _Caps, scope: _Scope, job: _Jobs) -> tuple[Quota, str] | None:
    """The quota that the job would exceed, and the message for its client."""
    counted, submitted, submitting = scope.counted, scope.submitted, scope.submitting
    assert counted is not None
    own, whose = submitted.count + submitting.count, f"{str(key)[0].upper()}{str(key)[1:]}"
    if caps.queued and counted.queued + own >= caps.queued:
        return Quota.QUEUED_JOBS, (
            f"{whose}: there are {caps.queued} queued jobs, the maximum ({caps.queued_by}); try again when some have"
            " started, or send the requests as a batch."
        )
    if caps.concurrent and counted.queued + counted.running + own >= caps.concurrent:
        return Quota.CONCURRENT_JOBS, (
            f"{whose}: there are {caps.concurrent} queued and running jobs, the maximum ({caps.concurrent_by}); try"
            " again when some have ended, or send the requests as a batch."
        )
    if caps.urgent and job.urgent and counted.urgent + submitted.urgent + submitting.urgent >= caps.urgent:
        return Quota.URGENT_JOBS, (
            f"This project has {caps.urgent} queued jobs of the priorities {_URGENT[0]} to {_URGENT[-1]}, the maximum"
            " (HEADRACE_PROJECT_URGENT_JOBS); use a higher priority number, or try again when some have started."
        )
    if caps.running and counted.running >= caps.running:
        return Quota.RUNNING_JOBS, (
            f"This project has {counted.running} running jobs, the maximum is {caps.running}"
            " (HEADRACE_PROJECT_RUNNING_JOBS); try again when some have ended."
        )
    used = counted.request_bytes + submitted.request_bytes + submitting.request_bytes
    if caps.request_bytes and used + job.request_bytes > caps.request_bytes:
        return Quota.REQUEST_BYTES, (
            f"The requests of this project's open jobs would have more than {caps.request_bytes} bytes"
            " (HEADRACE_PROJECT_REQUEST_BYTES); try again when some have ended."
        )
    return None


def _retrieve_error(task: asyncio.Task[None]) -> None:
    """Mark an error as handled: in the background, the next submit counts again."""
    if not task.cancelled():
        task.exception()
