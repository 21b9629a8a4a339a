"""What follows the failure of a request: the rest of its answer, another endpoint, a repetition, or a deferral."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shared.config.models.upstream import UpstreamOptions
from workers.engines.base import NO_PRIOR, BusyReason, UpstreamBusy
from workers.engines.upstream.backoff import backoff_s
from workers.engines.upstream.endpoints import Endpoints
from workers.engines.upstream.errors import KeyUnusable, NotHere, TransientError
from workers.engines.upstream.gate import UpstreamGate
from workers.engines.upstream.job_requests import JobRequests

# Attempts to reach an upstream that runs a request on, about 40 seconds: giving up would lose what it generates.
MAX_RESUMES = 8
# The longest wait before such a repetition, whatever delay the upstream names.
RESUME_DELAY_MAX_S = 60.0
# Of a request that the upstream runs on, such as one that waits for a cold start: the upstream has accepted it.
SAYS_NOTHING = (BusyReason.TIMEOUT, BusyReason.BROKEN)


@dataclass(frozen=True, slots=True)
class Recovery:
    """Decides what follows a failure. `on_retry` is called for each request that is sent because of one."""

    gate: UpstreamGate
    endpoints: Endpoints
    options: UpstreamOptions
    on_retry: Callable[[], None]

    def after(self, job: JobRequests, failure: TransientError) -> float:
        """Record a failure and set the job's next request. Returns the seconds to wait before it.

        Raises:
            InvalidRequest, EngineError: the answer cannot go on.
            UpstreamBusy: it can go on later.
        """
        of_key = isinstance(failure, KeyUnusable)
        if not isinstance(failure, NotHere):
            self.endpoints.failed(job.endpoint, failure.details, of_key=of_key)
        job.call = job.exchange.resume()
        begun = job.reply.begun
        if job.call is None and job.runs_on and not begun:  # the run has failed: a new one may not
            if job.prior.deltas:
                raise failure.final
            if job.prior.upstream is not None:
                job.prior, job.endpoint = NO_PRIOR, self.endpoints.choose()
                return 0.0
            # The responses that created and followed it have reset the count.
            job.failures, job.failed_runs = job.failed_runs, job.failed_runs + 1
        if job.call is None and not begun and self._moves(job):
            return 0.0
        self._report(job, failure, of_key=of_key)
        if job.call is None and (failure.is_final or begun):
            raise failure.final
        delay_s = self._delay_s(job, failure)
        if delay_s is None:
            raise UpstreamBusy(
                str(failure),
                failure.reason,
                retry_after_s=failure.retry_after_s,
                max_wait_s=self.options.max_wait_s,
            )
        job.failures += 1
        self.on_retry()
        self.gate.repeated()
        return delay_s

    def _moves(self, job: JobRequests) -> bool:
        """Whether the request is sent to an endpoint that has not failed; otherwise to any of them, the next time."""
        job.failed.add(job.endpoint)
        if self.endpoints.has_other(job.failed):
            job.endpoint = self.endpoints.choose(job.failed)
            self.on_retry()
            return True
        job.failed.clear()
        job.endpoint = self.endpoints.choose()
        return False

    def _report(self, job: JobRequests, failure: TransientError, *, of_key: bool) -> None:
        """Tell the gate what the failure means for other jobs."""
        reason = failure.reason
        if reason is BusyReason.RATE_LIMIT and not of_key:
            self.gate.limited(failure.retry_after_s)
        elif isinstance(failure, NotHere) and not failure.by_upstream:
            self.gate.succeeded()
        elif of_key and job.call is not None and self.endpoints.has_other((job.endpoint,)):
            pass  # other jobs use other keys
        elif of_key or not (job.reply.begun or (job.runs_on and reason in SAYS_NOTHING)):
            what = failure.details if of_key or reason is BusyReason.SERVER_ERROR else reason.value
            by_request = not of_key and reason is not BusyReason.UNREACHABLE
            self.gate.failed(job.job_id, what, by_request=by_request)

    def _delay_s(self, job: JobRequests, failure: TransientError) -> float | None:
        """Seconds until the next request; None if the job should wait in the queue."""
        if failure.is_final:  # a refused key is refused again, but the run goes on: the key or the account may recover
            return None
        continues = job.call is not None and failure.reason is not BusyReason.TIMEOUT
        retries = self.options.max_retries
        if job.failures >= (max(retries, MAX_RESUMES) if continues else retries):
            return None
        if job.call is None and self.gate.closed:
            return None
        limited = failure.reason is BusyReason.RATE_LIMIT and job.call is None
        delay_s = backoff_s(job.failures, failure.retry_after_s, limited=limited)
        if delay_s is None and continues:  # the answer is generated meanwhile, and would be lost
            return min(failure.retry_after_s or 0.0, RESUME_DELAY_MAX_S)
        return delay_s
