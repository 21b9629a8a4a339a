"""Delivers the events of the outbox. Every API process runs a dispatcher; together they deliver each event.

A dispatcher leases deliveries that are due, a few of each target (an endpoint, or the host of a request's own URL), and
tries them at a limited concurrency per target. So a target that is slow or dead has its few places, and delays no
other. A delivery is written as delivered after the receiver has answered: if the process is lost in between, it is
delivered again with the same `webhook-id`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from api.webhooks.outbox import DueDelivery, Outbox, TryOutcome, is_url
from api.webhooks.schedule import BREAKER_THRESHOLD, CONCURRENCY, TIMEOUT_S, breaker_pause_s
from api.webhooks.sender import ANSWER_S, Sender, TryResult
from shared.postgres.group_commit import GroupCommit
from shared.runtime.aio import cancel_and_wait, wait_for_event
from shared.runtime.outages import is_database_outage
from shared.runtime.periodic import run_periodically
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# Deliveries of a target that a process holds at most, and the number at which it leases more.
HELD, LOW = 16, 8
# Deliveries that a process holds at most, of all targets, with outcomes that are not written yet; and those of the
# hosts of requests' own URLs: a client can name any number of hosts, which must not keep endpoints waiting.
MAX_HELD = 512
MAX_HELD_OF_URLS = 256
# Deliveries that are leased at once.
MAX_LEASED = 128
# A lost process's deliveries are tried by others after this time.
LEASE_S = 25.0
# Between two looks at the outbox: after one that found deliveries, and at most, if webhooks are in use and if not.
BUSY_S, IDLE_S, UNUSED_S = 0.05, 0.4, 1.0
# A pause is at least this many times as long as the look before, so that looking never takes a large part of the time.
REST = 4.0
# How often it is checked whether webhooks are in use.
STATE_S = 10.0
# How long open requests may continue when the process stops. `Supervisor.stop` waits a little longer.
STOP_S = 3.0
# Outcomes that become known within this time are written together.
GATHER_S = 0.03
# Pauses between the tries to write an outcome during an outage of the database. Then the delivery is repeated.
WRITE_PAUSES_S = (0.2, 1.0, 3.0)
# What is held is begun early enough for its outcome to be written before its lease ends.
BEGIN_S = LEASE_S - TIMEOUT_S - ANSWER_S - sum(WRITE_PAUSES_S) - 1
# How long the breaker of an endpoint holds in this process: until the database has it, where clients can reset it.
HOLD_S = 2.0
# Hosts whose failures are remembered.
_MAX_FAILING = 10_000

# Retention of ended deliveries: between two sweeps, rows per statement, and between two statements.
SWEEP_S = 60.0
PORTION = 500
PORTION_PAUSE_S = 0.1


@dataclass(slots=True)
class _Target:
    """The deliveries of a target that are held: those that wait, each with the time until which it may be begun, and
    those being tried. `more`: others may be due."""

    waiting: deque[tuple[DueDelivery, float]] = field(default_factory=deque)
    open: set[asyncio.Task[None]] = field(default_factory=set)
    more: bool = False

    @property
    def held(self) -> int:
        return len(self.waiting) + len(self.open)


@dataclass(slots=True)
class _Failing:
    """A target that has failed so many times in a row, and until when it is left alone, by the monotonic clock."""

    failures: int = 0
    open_until: float = 0.0


class Dispatcher:
    """Delivers events until it is cancelled."""

    def __init__(self, outbox: Outbox, sender: Sender, metrics: Metrics, *, retention_s: float) -> None:
        """`retention_s`: how long ended deliveries are kept; 0: forever."""
        self._outbox = outbox
        self._sender = sender
        self._metrics = metrics
        self._retention_s = retention_s
        self._targets: dict[str, _Target] = {}
        # What is written in the background: outcomes, and leases that are given back.
        self._writing: set[asyncio.Task[None]] = set()
        # The breakers of endpoints are in the database, too: here they hold until it has them.
        self._failing: dict[str, _Failing] = {}
        self._write = GroupCommit(outbox.finish)
        # Ends when outcomes have been gathered for long enough.
        self._gathering: asyncio.Future[None] | None = None
        self._wake = asyncio.Event()
        self._pause_s = IDLE_S
        self._in_use = True
        self._state_at = float("-inf")

    async def run(self) -> None:
        """Deliver until cancelled. Then open requests may end, and what was not tried is given back."""
        try:
            while True:
                try:
                    pause_s = await self.look()
                except Exception as error:
                    if not is_database_outage(error):
                        raise
                    logger.warning("webhooks cannot be read, retrying: %s", error)
                    pause_s = UNUSED_S
                await wait_for_event(self._wake, pause_s)
                self._wake.clear()
        finally:
            await self._stop()

    async def look(self) -> float:
        """Lease what is due and begin to deliver it. Returns the seconds until the next look."""
        began = time.monotonic()
        if began - self._state_at >= STATE_S:
            state = await self._outbox.state()
            self._in_use, self._state_at = state.in_use, began
            self._metrics.webhooks_pending.set(state.pending)
        # While outcomes cannot be written, no further ones are caused.
        room = MAX_HELD - len(self._writing) - sum(target.held for target in self._targets.values())
        found = []
        if room > 0:
            of_urls = sum(target.held for name, target in self._targets.items() if is_url(name))
            blocked = [name for name, target in self._targets.items() if target.held > LOW]
            blocked += [name for name, one in self._failing.items() if one.open_until > began]
            found = await self._outbox.claim(
                blocked=blocked,
                per_target=HELD - LOW,
                room=min(room, MAX_LEASED),
                lease_s=LEASE_S,
                urls=of_urls < MAX_HELD_OF_URLS,
            )
        took_s = time.monotonic() - began
        # The lease began after `began`, so it ends after this.
        for delivery in found:
            target = self._targets.setdefault(delivery.target, _Target())
            target.waiting.append((delivery, began + BEGIN_S))
        for name, count in Counter(delivery.target for delivery in found).items():
            self._targets[name].more = count == HELD - LOW
            self._start(name)
        if found:
            self._in_use = True
            self._pause_s = BUSY_S
        else:
            self._pause_s = min(self._pause_s * 1.5, IDLE_S if self._in_use else UNUSED_S)
        return max(self._pause_s, REST * took_s)

    def _start(self, name: str) -> None:
        """Try deliveries of a target while it has places."""
        target = self._targets[name]
        places = 1 if self._is_failing(name) else CONCURRENCY
        if target.waiting and time.monotonic() > target.waiting[0][1]:
            # Leases could end while they are tried.
            self._give_back(target)
        while target.waiting and len(target.open) < places:
            delivery, _ = target.waiting.popleft()
            task = asyncio.create_task(self._deliver(delivery), name="webhook")
            target.open.add(task)
            task.add_done_callback(lambda done: self._ended(name, done))
        if not target.held:
            del self._targets[name]

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        target = self._targets[name]
        target.open.discard(task)
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            logger.error("a webhook's try ended unexpectedly", exc_info=error)
        if target.more and target.held <= LOW:
            target.more = False
            self._wake.set()
        self._start(name)

    async def _deliver(self, delivery: DueDelivery) -> None:
        began = time.monotonic()
        try:
            outcome, result = await self._sender.send(delivery)
        except Exception as error:
            if not is_database_outage(error):
                raise
            logger.warning("delivery=%d cannot be read, retrying: %s", delivery.id, error)
            return  # its lease ends
        if delivery.tries == 1:
            self._metrics.webhook_lag.observe(delivery.age_s + time.monotonic() - began)
        self._metrics.webhook_tries.labels(result.value).inc()
        self._note(delivery.target, failed=result is not TryResult.OK)
        self._in_background(self._conclude(outcome))

    async def _conclude(self, outcome: TryOutcome) -> None:
        """Write an outcome, and report how its delivery has ended. The next delivery does not wait for this."""
        delivery = outcome.delivery
        if self._gathering is None or self._gathering.done():
            loop = asyncio.get_running_loop()
            self._gathering = loop.create_future()
            loop.call_later(GATHER_S, self._gathering.set_result, None)
        await asyncio.shield(self._gathering)
        if await self._written(outcome) and outcome.state != "pending":
            self._metrics.webhook_deliveries.labels(outcome.state).inc()
            if outcome.state == "dead":
                logger.warning(
                    "delivery=%d project=%d endpoint=%s is dead after %d tries: %s",
                    delivery.id, delivery.project_id, delivery.endpoint_id or "-", delivery.tries, outcome.error,
                )  # fmt: skip
        if outcome.gone and delivery.endpoint_id is not None:
            logger.warning("endpoint=%s was disabled: it has answered 410", delivery.endpoint_id)

    async def _written(self, outcome: TryOutcome) -> bool:
        """Write an outcome. False: the delivery will be repeated, or another process has written it."""
        for pause_s in (*WRITE_PAUSES_S, None):
            try:
                return await self._write(outcome)
            except Exception as error:
                if not is_database_outage(error):
                    raise
                if pause_s is None:
                    logger.warning("delivery=%d its try cannot be written: %s", outcome.delivery.id, error)
                    return False
                await asyncio.sleep(pause_s)
        return False

    def _is_failing(self, name: str) -> bool:
        return name in self._failing and self._failing[name].failures >= BREAKER_THRESHOLD

    def _note(self, name: str, *, failed: bool) -> None:
        """Count a target's failures in a row. With too many, what waits for it is given back."""
        if not failed:
            self._failing.pop(name, None)
            return
        if len(self._failing) >= _MAX_FAILING and name not in self._failing:
            self._failing.clear()
        one = self._failing.setdefault(name, _Failing())
        one.failures += 1
        pause_s = breaker_pause_s(one.failures)
        if not pause_s:
            return
        one.open_until = time.monotonic() + (pause_s if is_url(name) else HOLD_S)
        if (target := self._targets.get(name)) is not None:
            self._give_back(target)

    def _give_back(self, *targets: _Target) -> None:
        """Release what waits for these targets, in a task of its own."""
        left = [delivery for target in targets for delivery, _ in target.waiting]
        for target in targets:
            target.waiting.clear()
        if left:
            self._in_background(self._release(left))

    def _in_background(self, write: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(write, name="webhook-write")
        self._writing.add(task)
        task.add_done_callback(self._written_in_background)

    def _written_in_background(self, task: asyncio.Task[None]) -> None:
        self._writing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a webhook's outcome was not written", exc_info=error)

    async def _release(self, deliveries: list[DueDelivery]) -> None:
        try:
            await self._outbox.release(deliveries)
        except Exception as error:
            if not is_database_outage(error):
                raise
            logger.warning("%d leases of webhooks end by themselves: %s", len(deliveries), error)

    async def _stop(self) -> None:
        self._give_back(*self._targets.values())
        until = time.monotonic() + STOP_S
        # An outcome is written after its try.
        while tasks := [*self._writing, *(task for target in self._targets.values() for task in target.open)]:
            left_s = until - time.monotonic()
            if left_s <= 0:
                await cancel_and_wait(*tasks)  # their receivers may get them again
                return
            await asyncio.wait(tasks, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)

    # Upkeep

    async def run_upkeep(self) -> None:
        """Delete old deliveries until cancelled."""
        await run_periodically(self.sweep, "webhook retention", interval_s=SWEEP_S, jitter=0.2)

    async def sweep(self) -> None:
        """End what nothing tries any more, and delete what is old or has no endpoint any more."""
        if buried := await _all(self._outbox.bury):
            self._metrics.webhook_deliveries.labels("dead").inc(buried)
            logger.warning("%d webhooks are dead: their endpoints were disabled for 72 hours", buried)
        await _all(self._outbox.delete_orphans)
        if self._retention_s:
            await _all(lambda limit: self._outbox.delete_ended(self._retention_s, limit))


async def _all(step: Callable[[int], Awaitable[int]]) -> int:
    count = done = await step(PORTION)
    while done == PORTION:
        await asyncio.sleep(PORTION_PAUSE_S)
        done = await step(PORTION)
        count += done
    return count
