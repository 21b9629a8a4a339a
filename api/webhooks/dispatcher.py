"""Delivers the events of the outbox. Every API process runs a dispatcher; together they deliver each event.

A dispatcher leases deliveries that are due, a few of each target (an endpoint, or the host of a request's own URL), and
tries them at a limited concurrency per target. So a target that is slow or dead has its few places, and delays no
other; one that answers gets more places while more deliveries wait for it.

A delivery is written as delivered after the receiver has answered: if the process is lost in between, it is delivered
again with the same `webhook-id`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from api.webhooks.outbox import DueDelivery, Outbox, TryOutcome, is_url
from api.webhooks.schedule import BREAKER_THRESHOLD, CONCURRENCY, MAX_CONCURRENCY, TIMEOUT_S, breaker_pause_s
from api.webhooks.sender import ANSWER_S, Sender, TryResult
from shared.runtime.aio import cancel_and_wait, wait_for_event
from shared.runtime.outages import is_database_outage
from shared.runtime.periodic import run_periodically
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# Deliveries of a target that a process holds at most, and the number at which it leases more: for each of its places.
HELD_PER_PLACE, LOW_PER_PLACE = 4, 2
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
# Outcomes that become known within this time are written together, by at most this many statements at the same time.
GATHER_S = 0.03
WRITERS = 2
# Pauses between the tries to write an outcome during an outage of the database. Then the delivery is repeated.
WRITE_PAUSES_S = (0.2, 1.0, 3.0)
# What is held is begun early enough for its outcome to be written before its lease ends.
BEGIN_S = LEASE_S - TIMEOUT_S - ANSWER_S - sum(WRITE_PAUSES_S) - 1
# How long the breaker of an endpoint holds in this process: until the database has it, where clients can reset it.
HOLD_S = 2.0
# Targets whose answers are remembered.
_MAX_STANDINGS = 10_000

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


@dataclass(frozen=True, slots=True)
class _Standing:
    """How a target has answered: its failures in a row; until when it is left alone, by the monotonic clock; and how
    many of its deliveries are tried at the same time."""

    failures: int = 0
    open_until: float = 0.0
    places: int = CONCURRENCY

    @property
    def fails(self) -> bool:
        return self.failures >= BREAKER_THRESHOLD


_NEW = _Standing()
# What is leased of a target that nothing is known of.
_SHARE = (HELD_PER_PLACE - LOW_PER_PLACE) * CONCURRENCY


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
        self._standings: dict[str, _Standing] = {}
        # Outcomes that a task will write; and the number of all that are not written yet.
        self._outcomes: list[TryOutcome] = []
        self._unwritten = 0
        self._writers = asyncio.Semaphore(WRITERS)
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
        room = MAX_HELD - self._unwritten - sum(target.held for target in self._targets.values())
        found: list[DueDelivery] = []
        shares: dict[str, int] = {}
        if room > 0:
            of_urls = sum(target.held for name, target in self._targets.items() if is_url(name))
            shares = {name: self._share(name, began) for name in {**self._targets, **self._standings}}
            found = await self._outbox.claim(
                shares={name: share for name, share in shares.items() if share != _SHARE},
                share=_SHARE,
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
            self._targets[name].more = count >= shares.get(name, _SHARE)
            self._start(name)
        if found or room <= 0:
            self._in_use = True
            self._pause_s = BUSY_S
        else:
            self._pause_s = min(self._pause_s * 1.5, IDLE_S if self._in_use else UNUSED_S)
        return max(self._pause_s, REST * took_s)

    def _share(self, name: str, now: float) -> int:
        """How many deliveries of a target are leased next; 0: none."""
        standing = self._standings.get(name, _NEW)
        target = self._targets.get(name)
        held = 0 if target is None else target.held
        is_full = held > LOW_PER_PLACE * standing.places or standing.open_until > now
        return 0 if is_full else (HELD_PER_PLACE - LOW_PER_PLACE) * standing.places

    def _start(self, name: str) -> None:
        """Try deliveries of a target while it has places."""
        target = self._targets[name]
        standing = self._standings.get(name, _NEW)
        places = 1 if standing.fails else standing.places
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
        if target.more and target.held <= LOW_PER_PLACE * self._standings.get(name, _NEW).places:
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
        self._unwritten += 1
        self._outcomes.append(outcome)
        if len(self._outcomes) == 1:
            self._in_background(self._write())

    async def _write(self) -> None:
        """Write the outcomes that are gathered meanwhile. The next deliveries do not wait for this."""
        await asyncio.sleep(GATHER_S)
        outcomes: list[TryOutcome] = []
        written = None
        try:
            for pause_s in (0.0, *WRITE_PAUSES_S):
                await asyncio.sleep(pause_s)
                async with self._writers:
                    if not outcomes:
                        outcomes, self._outcomes = self._outcomes, []
                    written = await self._try_to_write(outcomes)
                if written is not None:
                    break
        finally:
            self._unwritten -= len(outcomes)
        if written is None:
            logger.warning("%d tries of webhooks cannot be written, and will be repeated", len(outcomes))
            return
        for outcome, is_written in zip(outcomes, written, strict=True):
            self._report(outcome, is_written)

    async def _try_to_write(self, outcomes: Sequence[TryOutcome]) -> list[bool] | None:
        """Write outcomes. False: another process has leased the delivery since. None: the database is unavailable."""
        try:
            return await self._outbox.finish(outcomes)
        except Exception as error:
            if is_database_outage(error):
                logger.warning("the outcomes of webhooks cannot be written: %s", error)
                return None
            if len(outcomes) == 1:
                logger.exception("delivery=%d its try cannot be written", outcomes[0].delivery.id)
                return [False]
            logger.warning("%d outcomes of webhooks cannot be written together: %s", len(outcomes), error)
        each = [await self._try_to_write([outcome]) for outcome in outcomes]
        return [bool(written and written[0]) for written in each]

    def _report(self, outcome: TryOutcome, is_written: bool) -> None:
        delivery = outcome.delivery
        if is_written and outcome.state != "pending":
            self._metrics.webhook_deliveries.labels(outcome.state).inc()
            if outcome.state == "dead":
                logger.warning(
                    "delivery=%d project=%d endpoint=%s is dead after %d tries: %s",
                    delivery.id, delivery.project_id, delivery.endpoint_id or "-", delivery.tries, outcome.error,
                )  # fmt: skip
        if outcome.gone and delivery.endpoint_id is not None:
            logger.warning("endpoint=%s was disabled: it has answered 410", delivery.endpoint_id)

    def _note(self, name: str, *, failed: bool) -> None:
        """Remember how a target has answered. After too many failures, what waits for it is given back."""
        target = self._targets.get(name)
        standing = self._standings.get(name)
        if not failed:
            places = CONCURRENCY if standing is None else standing.places
            if target is not None and target.waiting:
                places = min(places + 1, MAX_CONCURRENCY)
            if places > CONCURRENCY:
                self._remember(name, _Standing(places=places))
            else:
                self._standings.pop(name, None)
            return
        failures = 1 if standing is None else standing.failures + 1
        pause_s = breaker_pause_s(failures)
        open_until = time.monotonic() + (pause_s if is_url(name) else HOLD_S) if pause_s else 0.0
        self._remember(name, _Standing(failures, open_until))
        if pause_s and target is not None:
            self._give_back(target)

    def _remember(self, name: str, standing: _Standing) -> None:
        if len(self._standings) >= _MAX_STANDINGS and name not in self._standings:
            self._standings.clear()
        self._standings[name] = standing

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
            logger.warning("%d webhooks are dead: for 72 hours, their endpoints were disabled or failed", buried)
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
