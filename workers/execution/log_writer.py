"""The worker's side of the event log: a buffer for each running job, and one writer for all."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from shared.domain.events import Delta, Event, EventType, delta_event, event
from shared.postgres.claim_store import Claim
from shared.redis.event_log import FENCED, RUNNING_TTL_S, Append, EventLog
from shared.runtime.aio import wait_for_event
from shared.runtime.outages import is_outage
from shared.telemetry.metrics import FENCED_WRITES, model_label
from workers.engines.pacing import flush_interval_s
from workers.execution.token_metrics import TokenMetrics

logger = logging.getLogger(__name__)

RETRY_S = (0.05, 2.0)
# Events in one append of a log that is written again.
CHUNK_EVENTS = 1000


@dataclass(slots=True, eq=False)
class LogBuffer:
    """One running job's log, as its worker writes it: everything is kept here until the job ends."""

    job_id: str
    attempt: int
    model: str = ""
    events: list[Event] = field(default_factory=list)
    seq: int = 0
    written: int = 0
    fenced: bool = False
    ttl_s: int = RUNNING_TTL_S
    # Each delta tells its number of tokens.
    counted: bool = False
    # Somebody waits for what is new in it: a start, the first text, the end.
    urgent: bool = True
    opened: float = field(default_factory=time.monotonic)
    _pending: dict[int, Delta] = field(default_factory=dict)
    _meter: TokenMetrics = field(init=False)

    def __post_init__(self) -> None:
        self._meter = TokenMetrics(self.model)

    def delta(self, delta: Delta) -> None:
        """Add text; it joins what the same choice gained since the last flush."""
        waiting = self._pending.get(delta.index)
        self._pending[delta.index] = waiting.merged(delta) if waiting else delta

    def event(self, kind: EventType, payload: dict[str, Any]) -> None:
        """Add an event of another type, after all text so far."""
        self.seal()
        self.seq += 1
        self.events.append(event(self.seq, kind, payload))

    def seal(self) -> None:
        """Give the text that waits its place in the log.

        Tokens that made no text yet (half an emoji) wait on, so that the log always ends where the text does:
        a next attempt can go on after its last token.
        """
        now = time.monotonic()
        for index, delta in list(self._pending.items()):
            if delta.visible:
                self.seq += 1
                self._meter.made(index, delta.tokens, now)
                self.events.append(delta_event(self.seq, delta, with_count=self.counted))
                del self._pending[index]

    def discard(self) -> None:
        """Forget what waits."""
        self._pending.clear()

    def adopt(self, events: list[Event], seq: int) -> None:
        """Go on after the events of earlier attempts."""
        self.events, self.seq, self.written = events, seq, seq

    @property
    def unwritten(self) -> list[Event]:
        """The events that Redis has not confirmed: `seq` grows by one from event to event, but at a lost log."""
        count = 0
        for item in reversed(self.events):
            if item.seq <= self.written:
                break
            count += 1
        return self.events[len(self.events) - count :]

    def close(self, last: Event, ttl_s: int) -> None:
        """Add the last event, once the row is committed, and let Redis keep the log for as long as this."""
        self.seq = last.seq
        self.events.append(last)
        self.ttl_s = ttl_s
        self.urgent = True

    def wrote(self, events: Sequence[Event]) -> None:
        """These are in Redis now."""
        self.written = events[-1].seq
        if self.urgent and any(item.type is EventType.DELTA for item in events):
            self.urgent = False


class LogWriter:
    """Writes the logs of all running jobs, one round trip for all that have something new.

    A log in which somebody waits for what is new (a start, a first token, an end) is written at once, and it alone. All
    others keep a distance to the last time, which grows with their number: a lone stream waits for two milliseconds
    at most, and under load many tokens of many jobs share a message. While Redis is away, text gathers here and jobs go
    on.
    """

    def __init__(self, logs: EventLog, held: Callable[[], Awaitable[Sequence[Claim]]], *, late_s: float) -> None:
        """`held` asks the rows what this worker owns. A log whose first event is later than `late_s` asks too."""
        self._logs = logs
        self._held = held
        self._late_s = late_s
        self._dirty: dict[LogBuffer, None] = {}
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def touch(self, log: LogBuffer) -> None:
        """Say that a log has something new."""
        if not log.fenced:
            self._dirty[log] = None
            self._idle.clear()
            self._wake.set()
            if log.urgent:
                self._urgent.set()

    async def run(self) -> None:
        """Flush for ever; cancel to stop."""
        delay = RETRY_S[0]
        next_at = 0.0
        while True:
            await self._wake.wait()
            if not self._urgent.is_set() and (early := next_at - time.monotonic()) > 0:
                await wait_for_event(self._urgent, early)
            self._wake.clear()
            self._urgent.clear()
            everything = time.monotonic() >= next_at
            batch = [log for log in self._dirty if everything or log.urgent]
            for log in batch:
                del self._dirty[log]
            if everything:
                next_at = time.monotonic() + flush_interval_s(len(batch))
            if self._dirty:
                self._wake.set()
            try:
                await self._flush(batch)
                delay = RETRY_S[0]
            except Exception as error:
                if not is_outage(error):
                    raise
                logger.warning("cannot write logs, %d wait: %s", len(batch), error)
                for log in batch:
                    self.touch(log)
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_S[1])
            if not self._dirty:
                self._idle.set()

    async def drain(self, timeout_s: float) -> None:
        """Wait until everything is written, for so long at most."""
        await wait_for_event(self._idle, timeout_s)

    async def _flush(self, batch: list[LogBuffer]) -> None:
        appends: list[Append] = []
        logs: list[LogBuffer] = []
        unsure: list[LogBuffer] = []
        for log in batch:
            log.seal()
            if unwritten := log.unwritten:
                if log.written == 0 and time.monotonic() - log.opened > self._late_s:
                    unsure.append(log)
                else:
                    logs.append(log)
                    appends.append(Append(log.job_id, log.attempt, unwritten, log.ttl_s))
        results = await self._logs.append(appends) if appends else []
        for log, sent, last in zip(logs, appends, results, strict=True):
            if last == FENCED:
                self._fence(log)
            elif last < sent.events[-1].seq:
                unsure.append(log)
            else:
                log.wrote(sent.events)
        if unsure:
            await self._write_again(unsure)

    async def _write_again(self, logs: list[LogBuffer]) -> None:
        """Write whole logs where Redis has nothing of them, not even a fence: the rows say which are ours."""
        held = {(item.job_id, item.attempt) for item in await self._held()}
        ours: list[LogBuffer] = []
        for log in logs:
            if (log.job_id, log.attempt) in held:
                ours.append(log)
            else:
                self._fence(log)
        if not ours:
            return
        logger.warning("Redis has lost %d logs of running jobs; writing them again", len(ours))
        for log in ours:
            await self._write_whole(log)

    async def _write_whole(self, log: LogBuffer) -> None:
        """One log in pieces that do not keep Redis from its other work."""
        events = list(log.events)
        for start in range(0, len(events), CHUNK_EVENTS):
            piece = events[start : start + CHUNK_EVENTS]
            (last,) = await self._logs.append([Append(log.job_id, log.attempt, piece, log.ttl_s, force=start == 0)])
            if last == FENCED:
                self._fence(log)
                return
            if last < piece[-1].seq:  # lost again in between
                self.touch(log)
                return
        log.wrote(events)

    @staticmethod
    def _fence(log: LogBuffer) -> None:
        log.fenced = True
        FENCED_WRITES.labels(model_label(log.model), "log").inc()
        logger.warning("job=%s attempt=%d writes no log any more: it is not its owner", log.job_id, log.attempt)
