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
import random
import time
from collections.abc import Callable

from shared.config.models.upstream import UpstreamModel
from shared.domain.job import OpenBreaker, Usage
from shared.domain.request import GenerateRequest
from shared.telemetry.metrics import Metrics
from workers.engines.upstream.breaker import Breaker, BreakerState
from workers.engines.upstream.prompt_size import estimated_tokens
from workers.engines.upstream.token_bucket import TokenBucket

logger = logging.getLogger(__name__)

# The longest time for which a rate limit that the upstream reports holds back all jobs: it may concern only some.
PAUSE_MAX_S = 60.0
# The first and the longest pause for a rate limit whose end the upstream does not name.
UNNAMED_PAUSE_S = (0.5, 30.0)
# As many messages wait here as can pass in this time, and one more: they are there when a limit permits the next job.
AHEAD_S = 0.25


class Passage:
    """The permission of one message to claim its job."""

    def __init__(self, gate: UpstreamGate, *, probe: bool) -> None:
        self._gate = gate
        self._probe = probe
        self._claimed = False
        self._estimate = 0

    def claimed(self, request: GenerateRequest) -> None:
        """Count the prompt of a job that was claimed, by an estimate."""
        self._claimed = True
        if self._gate.tokens is not None:
            self._estimate = estimated_tokens(request)
            self._gate.tokens.take(self._estimate)

    def settle(self, usage: Usage) -> None:
        """Replace the estimate by the usage, once the attempt has ended."""
        if self._gate.tokens is not None:
            prompt = usage.prompt_tokens or (self._estimate if usage.completion_tokens else 0)
            self._gate.tokens.take(prompt + usage.completion_tokens - self._estimate)

    def close(self) -> None:
        """Return what was not used: without a claim, the request; without an outcome of a probe, the turn."""
        self._gate.passed(claimed=self._claimed, probe=self._probe)


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
        self._paused_until = 0.0
        # Pauses in a row for limits whose end was not named.
        self._unnamed = 0
        self._ahead = 1
        # By priority, then in the order of arrival.
        self._line: list[tuple[int, int, asyncio.Future[Passage | None]]] = []
        self._arrivals = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._held = False
        self._patient = True
        self.configure(model)

    def configure(self, model: UpstreamModel) -> None:
        """Apply the limits of a model's entry.

        What has been used of a limit stays used when it is changed; the bucket of a new limit is full.
        """
        options = model.options
        # Jobs that may not wait for a busy upstream fail at once: they are not held back for it either.
        self._patient = options.max_wait_s > 0
        per_minute = options.requests_per_minute
        self.requests = _bucket(self.requests, per_minute)
        self.tokens = _bucket(self.tokens, options.tokens_per_minute)
        self._ahead = 1 + int((per_minute or 0) / 60 * AHEAD_S)
        self._update()

    def forget_failures(self) -> None:
        """Let a probe pass now: all addresses and keys have been replaced, so earlier failures say nothing."""
        self._paused_until, self._unnamed = 0.0, 0
        self._breaker.probe()
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
                return self._breaker.probing or bool(self._line)
        return len(self._line) >= self._ahead

    async def enter(self, priority: int) -> Passage | None:
        """Wait until a job may be claimed; the most urgent message is first.

        None: its message should go back to the queue, because the breaker is open or the worker drains.
        """
        if not self._line and not self._refuses and not self._wait_s():
            return self._admit()
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
        self._unnamed = 0
        self._breaker.succeeded()

    def failed(self, job_id: str, reason: str, *, by_request: bool = True) -> None:
        """Record a failure; see `Breaker.failed`."""
        self._breaker.failed(job_id, reason, by_request=by_request)

    def limited(self, delay_s: float | None) -> None:
        """Record that the upstream has reported a rate limit, which ends after `delay_s` if it says so.

        Without a delay, each pause is twice as long as the one before, until the upstream answers.
        """
        self._breaker.succeeded()
        if not self._patient:
            return
        now = time.monotonic()
        if delay_s is None:
            if now < self._paused_until:
                return  # the answers to requests that were sent before the pause
            first, longest = UNNAMED_PAUSE_S
            delay_s = min(longest, first * 2.0 ** min(self._unnamed, 16)) * random.uniform(0.75, 1)
            self._unnamed += 1
        self._paused_until = max(self._paused_until, now + min(delay_s, PAUSE_MAX_S))
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
            self._breaker.probing = False
        self._update()

    @property
    def _refuses(self) -> bool:
        return self._stopped or self.closed

    def _wait_s(self) -> float:
        """Seconds until the next job may be claimed; infinite if that depends on a probe."""
        wait_s = 0.0
        if self._patient:
            if self._breaker.state is BreakerState.HALF_OPEN and self._breaker.probing:
                return math.inf
            wait_s = max(wait_s, self._paused_until - time.monotonic())
        if self.requests is not None:
            wait_s = max(wait_s, self.requests.wait_s(1))
        if self.tokens is not None:
            wait_s = max(wait_s, self.tokens.wait_s(0))
        return wait_s

    def _admit(self) -> Passage:
        if self.requests is not None:
            self.requests.take(1)
        probe = self._patient and self._breaker.state is BreakerState.HALF_OPEN
        self._breaker.probing = self._breaker.probing or probe
        return Passage(self, probe=probe)

    def _update(self) -> None:
        """Let messages pass, or send them back; set a timer for the next one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._line:
            waiter = self._line[0][2]
            if waiter.done():  # its run was cancelled
                heapq.heappop(self._line)
            elif self._refuses:
                heapq.heappop(self._line)
                waiter.set_result(None)
            elif (wait_s := self._wait_s()) > 0:
                if wait_s < math.inf:
                    self._timer = asyncio.get_running_loop().call_later(wait_s, self._update)
                break
            else:
                heapq.heappop(self._line)
                waiter.set_result(self._admit())
        held, self._held = self._held, self.holding
        if held and not self._held:
            self.on_room()

    def _breaker_changed(self, state: BreakerState) -> None:
        self._transitions.labels(self._label, state.value).inc()
        opened = self._breaker.opened
        if opened is not None and state is BreakerState.OPEN:
            logger.error("model=%s the upstream fails, no jobs are claimed for a while: %s", self.model, opened.reason)
        elif state is BreakerState.CLOSED:
            logger.warning("model=%s the upstream answers again", self.model)
        self._update()


def _bucket(bucket: TokenBucket | None, per_minute: float | None) -> TokenBucket | None:
    """The bucket of a limit that has been changed."""
    if bucket is None or per_minute is None:
        return None if per_minute is None else TokenBucket(per_minute)
    bucket.change(per_minute)
    return bucket
