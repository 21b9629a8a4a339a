"""What holds back the messages of an upstream's jobs before their claim: its limits, and its circuit breaker.

A job that is held back stays queued, so that it can expire, be cancelled, or run on another worker. Only a few messages
wait here; the worker fetches no others meanwhile, and they stay on the queue in the order of their priorities.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import math
from collections.abc import Callable

from shared.config.models.upstream import UpstreamModel
from shared.domain.job import OpenBreaker, Usage
from shared.domain.request import GenerateRequest
from shared.telemetry.metrics import Metrics
from workers.engines.upstream.breaker import Breaker, BreakerState
from workers.engines.upstream.estimated_tokens import estimated_tokens
from workers.engines.upstream.pause import Pause
from workers.engines.upstream.token_bucket import TokenBucket

logger = logging.getLogger(__name__)

# Before a longer pause, messages go back to the queue, where workers with another address or key find them.
HELD_S = 2.0
# As many messages wait here as can pass in this time, and one more: they are there when a limit permits the next job.
AHEAD_S = 0.25


class Passage:
    """The permission of one message to claim its job."""

    def __init__(self, gate: UpstreamGate) -> None:
        self._gate = gate
        self._claimed = False
        self._estimate = 0

    def claimed(self, request: GenerateRequest) -> None:
        """Count the prompt of a job that was claimed, by an estimate."""
        self._claimed = True
        if self._gate.tokens is not None:
            self._estimate = estimated_tokens(request)
            self._gate.tokens.take(self._estimate)

    def settle(self, usage: Usage, resumed_after: int) -> None:
        """Replace the estimate by the usage, once the attempt has ended.

        An attempt that resumed the request of an earlier one after some tokens sent no prompt. The earlier one counted
        the prompt and those tokens.
        """
        if self._gate.tokens is None:
            return
        used = usage.completion_tokens - resumed_after
        if not resumed_after:
            used += usage.prompt_tokens or (self._estimate if usage.completion_tokens else 0)
        self._gate.tokens.take(used - self._estimate)

    def close(self) -> None:
        """Return what was not used: without a claim, the request; without an outcome of a probe, the turn."""
        self._gate.passed(claimed=self._claimed, probe=self._gate.probes(self))


class UpstreamGate:
    """The gate of one model in one worker. Lives on one event loop; `holding` may be read from any thread."""

    def __init__(self, model: UpstreamModel, metrics: Metrics) -> None:
        self.model = model.name
        # Called when further messages should be fetched again.
        self.on_room: Callable[[], None] = lambda: None
        self.requests: TokenBucket | None = None
        self.tokens: TokenBucket | None = None
        self._transitions = metrics.upstream_breaker_transitions
        self._label = metrics.model_label(model.name)
        self._breaker = Breaker(self._breaker_changed)
        self._pause = Pause()
        self._ahead = 1
        # By priority, then in the order of arrival.
        self._line: list[tuple[int, int, asyncio.Future[Passage | None]]] = []
        self._arrivals = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._held = False
        self.max_wait_s = model.options.max_wait_s
        self._patient = True
        self.configure(model)

    def configure(self, model: UpstreamModel) -> None:
        """Apply the limits of a model's entry.

        What has been used of a limit stays used when it is changed; the bucket of a new limit is full.
        """
        options = model.options
        self.max_wait_s = options.max_wait_s
        # Jobs that may not wait for a busy upstream fail at once: they are not held back for it either.
        self._patient = options.max_wait_s > 0
        per_minute = options.requests_per_minute
        self.requests = _bucket(self.requests, per_minute)
        self.tokens = _bucket(self.tokens, options.tokens_per_minute)
        self._ahead = 1 + int((per_minute or 0) / 60 * AHEAD_S)
        self._update()

    def forget_failures(self) -> None:
        """Let a probe pass now: all addresses and keys have been replaced, so earlier failures say nothing."""
        self._pause = Pause()
        self._breaker.allow_probe()
        self._update()

    # For the runner

    @property
    def breaker(self) -> OpenBreaker | None:
        """Since when the breaker has not been closed, and why; None if it is closed."""
        return self._breaker.opened

    @property
    def waiting(self) -> int:
        """The number of messages that wait here."""
        return len(self._line)

    @property
    def holding(self) -> bool:
        """Whether no further messages should be fetched, because they would wait here."""
        if self._patient:
            if self._breaker.state is BreakerState.OPEN:
                return True
            if self._breaker.state is BreakerState.HALF_OPEN:
                return self._breaker.probe is not None or bool(self._line)
            if self._pause.left_s > HELD_S:
                return True
        return len(self._line) >= self._ahead

    @property
    def longest_hold_s(self) -> float:
        """For how long a message usually waits here at most, in seconds."""
        interval_s = 0.0 if self.requests is None else 1 / self.requests.per_second
        return HELD_S + interval_s

    async def enter(self, priority: int) -> Passage | None:
        """Wait until a job may be claimed; the most urgent message is first.

        None: its message should go back to the queue, because the breaker is open, the upstream's rate limit lasts, or
        the worker drains.
        """
        if not self._line and not self._refuses and not self._wait_s():
            admitted = self._admit()
            self._update()
            return admitted
        waiter: asyncio.Future[Passage | None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._line, (priority, next(self._arrivals), waiter))
        self._update()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and (passage := waiter.result()) is not None:
                passage.close()
            self._update()
            raise

    def stop(self) -> None:
        """Send back all messages."""
        self._stopped = True
        self._update()

    def resume(self) -> None:
        """Undo `stop`."""
        self._stopped = False

    # For the engine

    @property
    def closed(self) -> bool:
        """Whether the breaker holds back jobs, so that a request is not repeated in place."""
        return self._patient and self._breaker.state is BreakerState.OPEN

    def succeeded(self) -> None:
        """Record that the upstream has answered a request."""
        self._pause.answered()
        self._breaker.succeeded()

    def failed(self, job_id: str, reason: str, *, by_request: bool = True) -> None:
        """Record a failure; see `Breaker.failed`."""
        self._breaker.failed(job_id, reason, by_request=by_request)

    def limited(self, delay_s: float | None) -> None:
        """Record that the upstream has reported a rate limit, which ends after `delay_s` if it says so."""
        self._breaker.succeeded()
        if self._patient:
            self._pause.limited(delay_s)
            self._update()

    def repeated(self) -> None:
        """Count a request that is repeated in place."""
        if self.requests is not None:
            self.requests.take(1)

    # For passages

    def passed(self, *, claimed: bool, probe: bool) -> None:
        if not claimed and self.requests is not None:
            self.requests.take(-1)
        if probe:
            self._breaker.probe = None
        self._update()

    def probes(self, passage: Passage) -> bool:
        """Whether it belongs to the job whose outcome closes or opens the breaker."""
        return self._breaker.probe is passage

    @property
    def _refuses(self) -> bool:
        """Whether messages go back to the queue."""
        return self._stopped or self.closed or (self._patient and self._pause.left_s > HELD_S)

    def _wait_s(self) -> float:
        """Seconds until the next job may be claimed; infinite if that depends on a probe."""
        wait_s = 0.0
        if self._patient:
            if self._breaker.state is BreakerState.HALF_OPEN and self._breaker.probe is not None:
                return math.inf
            wait_s = self._pause.left_s
        if self.requests is not None:
            wait_s = max(wait_s, self.requests.wait_s(1))
        if self.tokens is not None:
            wait_s = max(wait_s, self.tokens.wait_s(0))
        return wait_s

    def _admit(self) -> Passage:
        if self.requests is not None:
            self.requests.take(1)
        passage = Passage(self)
        if self._patient and self._breaker.state is BreakerState.HALF_OPEN and self._breaker.probe is None:
            self._breaker.probe = passage
        return passage

    def _update(self) -> None:
        """Let messages pass, or send them back; set a timer for the next change."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wait_s = math.inf
        if self._refuses:
            # The last one first: each goes to the front of the queue.
            for _, _, waiter in sorted(self._line, reverse=True):
                if not waiter.done():
                    waiter.set_result(None)
            self._line.clear()
            if not (self._stopped or self.closed):
                wait_s = self._pause.left_s - HELD_S
        while self._line:
            waiter = self._line[0][2]
            if not waiter.done():  # its run was not cancelled
                if (wait_s := self._wait_s()) > 0:
                    break
                waiter.set_result(self._admit())
            heapq.heappop(self._line)
            wait_s = math.inf
        if wait_s < math.inf:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._update)
        held, self._held = self._held, self.holding
        if held and not self._held:
            self.on_room()

    def _breaker_changed(self, state: BreakerState) -> None:
        self._transitions.labels(self._label, state.value).inc()
        opened = self._breaker.opened
        if opened is not None and state is BreakerState.OPEN:
            logger.error(
                "model=%s circuit breaker open, no jobs are claimed for a while: the upstream fails: %s",
                self.model,
                opened.reason,
            )
        elif state is BreakerState.CLOSED:
            logger.warning("model=%s the upstream answers again", self.model)
        self._update()


def _bucket(bucket: TokenBucket | None, per_minute: float | None) -> TokenBucket | None:
    """The bucket of a limit that has been changed."""
    if bucket is None or per_minute is None:
        return None if per_minute is None else TokenBucket(per_minute)
    bucket.change(per_minute)
    return bucket
