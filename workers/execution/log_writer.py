"""Writes running jobs' event logs: a buffer for each job, and one writer for all buffers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from redis.exceptions import ResponseError

from shared.domain.events import Delta, Event, EventType, UpstreamState, delta_event, event, merge_deltas
from shared.postgres.claim_store import Claim
from shared.redis.event_log import CHUNK_BYTES, CHUNK_EVENTS, FENCED, RUNNING_TTL_S, Append, EventLog, chunk
from shared.runtime.aio import wait_for_event
from shared.runtime.outages import is_outage
from shared.telemetry.metrics import Metrics
from workers.engines.flush_interval import flush_interval_s, record_flush
from workers.execution.token_metrics import TokenMetrics

logger = logging.getLogger(__name__)

RETRY_S = (0.05, 2.0)
# About the bytes of an event that deltas are merged to. The API's event loop converts an event in one step.
EVENT_BYTES = 32 * 1024


@dataclass(slots=True, eq=False)
class LogBuffer:
    """The log of one running job. All events are kept in memory until the job ends."""

    job_id: str
    attempt: int
    metrics: Metrics
    model: str = ""
    events: list[Event] = field(default_factory=list)
    seq: int = 0
    written: int = 0
    fenced: bool = False
    # Whether its events are not written yet, because it is not known which job they belong to.
    held: bool = False
    ttl_s: int = RUNNING_TTL_S
    # Whether delta events include their number of tokens.
    counted: bool = False
    # Whether the next events are written without delay: the start, an upstream's request, the first text or the end.
    urgent: bool = True
    opened: float = field(default_factory=time.monotonic)
    _pending: dict[int, list[Delta]] = field(default_factory=dict)
    _token_metrics: TokenMetrics = field(init=False)

    def __post_init__(self) -> None:
        self._token_metrics = TokenMetrics(self.metrics, self.model)

    def delta(self, delta: Delta) -> None:
        """Add a delta; it is merged with the choice's other deltas since the last flush."""
        pending = self._pending.get(delta.index)
        if pending is None:
            self._pending[delta.index] = [delta]
        else:
            pending.append(delta)

    def event(self, kind: EventType, payload: dict[str, Any]) -> None:
        """Add an event of another type, after all pending deltas."""
        self.seal()
        self.seq += 1
        self.events.append(event(self.seq, kind, payload))

    def upstream(self, state: UpstreamState) -> None:
        """Add the upstream's request that generates what follows."""
        self.event(EventType.UPSTREAM, state.payload())
        self.urgent = True

    def seal(self) -> None:
        """Turn the pending deltas into events.

        Tokens without text so far (half an emoji) stay pending, so that the log ends at a boundary of the text, and
        the next attempt can resume after its last token.
        """
        now = time.monotonic()
        for index, deltas in list(self._pending.items()):
            rest: list[Delta] = []
            for group in _groups(deltas):
                delta = merge_deltas([*rest, *group])
                if not delta.visible:
                    rest = [delta]
                    continue
                rest = []
                self.seq += 1
                self._token_metrics.record(index, delta.tokens, now)
                self.events.append(delta_event(self.seq, delta, with_count=self.counted))
            if rest:
                self._pending[index] = rest
            else:
                del self._pending[index]

    def discard_pending(self) -> None:
        self._pending.clear()

    def resume_after(self, events: list[Event], seq: int) -> None:
        """Continue after the events of earlier attempts, which are in Redis; the next event follows `seq`."""
        self.events, self.seq, self.written = events, seq, seq

    @property
    def unwritten(self) -> list[Event]:
        """The events that Redis has not confirmed."""
        count = 0
        for item in reversed(self.events):
            if item.seq <= self.written:
                break
            count += 1
        return self.events[len(self.events) - count :]

    def fork(self) -> LogBuffer:
        """Split the log: what comes from now on goes to the returned one, which begins with the same events.

        It is held until its job is known. Tokens without text so far go there too.
        """
        self.seal()
        rest = replace(self, events=list(self.events), written=0, held=True, urgent=True, opened=time.monotonic())
        rest._pending, self._pending = self._pending, {}
        rest._token_metrics = self._token_metrics
        return rest

    def assign(self, job_id: str, attempt: int) -> None:
        """Let a held log be that of this attempt."""
        self.job_id, self.attempt, self.held = job_id, attempt, False
        self.opened = time.monotonic()

    def close(self, last: Event, ttl_s: int) -> None:
        """Add the last event, once the row is committed; Redis keeps the log for `ttl_s` seconds from then."""
        self.seq = last.seq
        self.events.append(last)
        self.ttl_s = ttl_s
        self.urgent = True

    def mark_written(self, events: Sequence[Event]) -> None:
        """Record that Redis has these events."""
        self.written = events[-1].seq
        if self.urgent and any(item.type is EventType.DELTA for item in events):
            self.urgent = False

    def fence(self) -> None:
        """Stop writing: a later attempt owns the log."""
        self.fenced = True
        self.metrics.fenced_writes.labels(self.metrics.model_label(self.model), "log").inc()
        logger.warning(
            "job=%s attempt=%d does not own its log any more; dropping its events", self.job_id, self.attempt
        )


class LogWriter:
    """Writes the logs of all running jobs; one round trip writes all logs with new events.

    Urgent logs (a start, a first token, an end) are written at once, without the others. Other logs are written at a
    minimum interval that grows with their number: a single stream is delayed by at most two milliseconds, and under
    load many tokens of many jobs share a message. While Redis is unavailable, events stay in memory and jobs continue.
    """

    def __init__(self, logs: EventLog, claims: Callable[[], Awaitable[Sequence[Claim]]], *, late_s: float) -> None:
        """`claims` reads this worker's claims from the rows.

        A log that Redis has lost is written again only if its attempt still has the claim. The same holds for the
        first write of a log that was opened more than `late_s` seconds ago.
        """
        self._logs = logs
        self._claims = claims
        self._late_s = late_s
        self._dirty: dict[LogBuffer, None] = {}
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        # Set, and replaced by another one, after each round of writes.
        self._flushed = asyncio.Event()

    def schedule(self, log: LogBuffer) -> None:
        """Schedule a log's new events for writing; those of a fenced log are dropped, those of a held one wait."""
        if not (log.fenced or log.held):
            self._dirty[log] = None
            self._idle.clear()
            self._wake.set()
            if log.urgent:
                self._urgent.set()

    async def flush(self, log: LogBuffer) -> bool:
        """Write a log's events without delay. Returns False if a later attempt owns the log."""
        last = log.seq
        while log.written < last and not log.fenced:
            log.urgent = True
            self.schedule(log)
            await self._flushed.wait()
        return not log.fenced

    async def run(self) -> None:
        """Write until cancelled."""
        delay = RETRY_S[0]
        next_at = 0.0
        while True:
            await self._wake.wait()
            due = True
            if (wait_s := next_at - time.monotonic()) > 0:
                # A timer may end a little early. What it waited for is due nevertheless.
                due = not (self._urgent.is_set() or await wait_for_event(self._urgent, wait_s))
            self._wake.clear()
            self._urgent.clear()
            began = time.monotonic()
            batch = [log for log in self._dirty if due or log.urgent]
            for log in batch:
                del self._dirty[log]
            if due:
                next_at = began + flush_interval_s(len(batch))
            if self._dirty:
                self._wake.set()
            try:
                try:
                    await self._flush(batch)
                except ResponseError as error:
                    if is_outage(error):
                        raise
                    await self._flush_one_by_one(batch)
                if due:
                    record_flush(time.monotonic() - began)
                delay = RETRY_S[0]
            except Exception as error:
                if not is_outage(error):
                    raise
                logger.warning("cannot write %d logs, retrying: %s", len(batch), error)
                for log in batch:
                    self.schedule(log)
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_S[1])
            if not self._dirty:
                self._idle.set()
            self._flushed.set()
            self._flushed = asyncio.Event()

    async def drain(self, timeout_s: float) -> None:
        """Wait until all scheduled events are written, for at most `timeout_s` seconds."""
        await wait_for_event(self._idle, timeout_s)

    async def _flush(self, batch: list[LogBuffer]) -> None:
        writes: list[tuple[LogBuffer, Append]] = []
        unverified: list[LogBuffer] = []
        for log in batch:
            log.seal()
            if unwritten := log.unwritten:
                if log.written == 0 and time.monotonic() - log.opened > self._late_s:
                    unverified.append(log)
                else:
                    writes.append((log, Append(log.job_id, log.attempt, chunk(unwritten), log.ttl_s)))
        for portion in _portions(writes):
            results = await self._logs.append([sent for _, sent in portion])
            for (log, sent), last in zip(portion, results, strict=True):
                if last == FENCED:
                    log.fence()
                elif last < sent.events[-1].seq:
                    unverified.append(log)
                else:
                    log.mark_written(sent.events)
                    if log.written < log.seq:
                        self.schedule(log)
        if unverified:
            await self._rewrite(unverified)

    async def _flush_one_by_one(self, batch: list[LogBuffer]) -> None:
        """Write logs separately because Redis rejected them: a key of one is not what Headrace has written to it.

        That log is deleted and written again, as if Redis had lost it.
        """
        for log in batch:
            try:
                await self._flush([log])
            except ResponseError as error:
                if is_outage(error):
                    raise
                log.metrics.malformed_messages.labels("log").inc()
                logger.warning("job=%s Redis rejected its events, writing its log again: %s", log.job_id, error)
                await self._logs.delete(log.job_id)
                log.written = 0
                self.schedule(log)

    async def _rewrite(self, logs: list[LogBuffer]) -> None:
        """Write whole logs that Redis has lost. Their fences are lost too, so the rows decide about the ownership."""
        claims = {(claim.job_id, claim.attempt) for claim in await self._claims()}
        owned: list[LogBuffer] = []
        for log in logs:
            if (log.job_id, log.attempt) in claims:
                owned.append(log)
            else:
                log.fence()
        if not owned:
            return
        logger.warning("Redis has lost %d logs of running jobs, writing them again", len(owned))
        for log in owned:
            await self._write_whole(log)

    async def _write_whole(self, log: LogBuffer) -> None:
        """Write one log in chunks that do not block Redis for long."""
        events = list(log.events)
        last = await self._logs.replace(Append(log.job_id, log.attempt, events, log.ttl_s))
        if last == FENCED:
            log.fence()
        elif last < events[-1].seq:  # lost again meanwhile
            self.schedule(log)
        else:
            log.mark_written(events)


def _groups(deltas: list[Delta]) -> Iterator[list[Delta]]:
    """Divide deltas into those of one event, so that no event is much larger than `EVENT_BYTES`.

    Reasoning precedes the text and the calls of its event, and opaque parts follow all else.
    """
    if len(deltas) == 1:
        yield deltas
        return
    first = size = 0
    answered = closed = False
    for position, delta in enumerate(deltas):
        size += delta.size
        if (size > EVENT_BYTES or closed or (answered and delta.reasoning)) and position > first:
            yield deltas[first:position]
            first, size, answered = position, delta.size, False
        answered = answered or bool(delta.text or delta.tool_calls)
        closed = bool(delta.opaque)
    yield deltas[first:]


def _portions(writes: list[tuple[LogBuffer, Append]]) -> Iterator[list[tuple[LogBuffer, Append]]]:
    """Divide writes into those that are sent together."""
    portion: list[tuple[LogBuffer, Append]] = []
    count = size = 0
    for write in writes:
        portion.append(write)
        count += len(write[1].events)
        size += sum(len(item.data) for item in write[1].events)
        if count >= CHUNK_EVENTS or size >= CHUNK_BYTES:
            yield portion
            portion, count, size = [], 0, 0
    if portion:
        yield portion
