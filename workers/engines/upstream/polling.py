"""The common part of engines whose upstream runs a request as a job of its own, a run, and is polled for its state.

A run does not end with its connection. So its stream can be opened again, it has to be cancelled by a request, and its
time without progress has to be limited.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from time import monotonic
from typing import Any, ClassVar
from weakref import WeakSet

import orjson

from shared.domain.events import Delta, UpstreamState
from shared.domain.job import Usage
from workers.engines.base import EngineError, Prior, UpstreamError
from workers.engines.upstream.errors import ErrorBody, RunLost, TransientError
from workers.engines.upstream.exchange import Call, Exchange
from workers.engines.upstream.sse import EventTooLarge, load_json, repaired_json

GROWTH = 1.5
MAX_DOCUMENT_BYTES = 8 << 20
# The statuses of a run that the upstream has forgotten.
FORGOTTEN = (404, 410)
NOT_STARTED = "The upstream did not start the request in time."
TIMED_OUT = "The upstream did not answer in time."
TOO_LARGE = "The upstream sent too much at once."
_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


def is_run_id(value: Any) -> bool:
    """Whether a value can be the id of a run, and part of a path."""
    return isinstance(value, str) and _RUN_ID.fullmatch(value) is not None


class PollRate:
    """Keeps the polls of all runs of an engine below a rate: the more runs, the longer their intervals."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._paces: WeakSet[PollPace] = WeakSet()

    def add(self, pace: PollPace) -> None:
        """Count a run until its pace is no longer in use."""
        self._paces.add(pace)

    @property
    def interval_s(self) -> float:
        """The shortest interval of each run, in seconds."""
        return len(self._paces) / self._per_second


class PollPace:
    """The intervals between the starts of polls, in seconds: short while there is progress, then longer and longer.

    A poll that the upstream holds open until it has something counts: the next one may follow at once.
    """

    def __init__(self, shortest_s: float, longest_s: float, rate: PollRate | None = None) -> None:
        self._shortest = self._interval = shortest_s
        self._longest = longest_s
        self._last: float | None = None
        self._rate = rate
        if rate is not None:
            rate.add(self)

    def progressed(self) -> None:
        """There was something new: the next interval is the shortest."""
        self._interval = self._shortest

    def delay_s(self) -> float:
        """The wait before the next poll, which is about to be scheduled."""
        now = monotonic()
        interval = self._interval if self._rate is None else max(self._interval, self._rate.interval_s)
        delay = 0.0 if self._last is None else max(0.0, self._last + interval - now)
        self._last = now + delay
        self._interval = min(self._longest, self._interval * GROWTH)
        return delay


class RunParser(ABC):
    """What the parser of a run's answer knows of it; part of a `workers.engines.upstream.exchange.ReplyParser`."""

    # The order of the states of a run that has not ended. 0: it waits. States that are not listed count as running.
    ranks: ClassVar[Mapping[str, int]]
    # The states of a run that has ended.
    ends: ClassVar[Collection[str]]

    def __init__(self, prior: Prior) -> None:
        self.run_id = "" if prior.upstream is None else prior.upstream.id
        # The last state; a run that is not known yet waits.
        self.status = min(self.ranks, key=self.ranks.__getitem__)
        self._rank = -1
        self.progress_at = monotonic()
        # What to fail with instead of reading on.
        self.giving_up: UpstreamError | None = None
        # Whether the output so far is enough, because the final state cannot be read.
        self.lenient = False
        # Whether the run has ended without an answer, so that its state does not change any more.
        self.has_failed = False
        self.begun = False
        self.done = False
        self.failure: EngineError | ErrorBody | None = None

    @property
    @abstractmethod
    def finished(self) -> bool:
        """See `ReplyParser`."""

    @property
    @abstractmethod
    def usage(self) -> Usage | None:
        """See `ReplyParser`."""

    @abstractmethod
    def feed(self, data: bytes) -> Iterator[Delta | UpstreamState]:
        """See `ReplyParser`."""

    @abstractmethod
    def end(self) -> Iterator[Delta | UpstreamState | None]:
        """See `ReplyParser`."""

    @property
    def waiting(self) -> bool:
        """Whether the run has not started."""
        return self.ranks.get(self.status, 1) == 0

    def progressed(self) -> None:
        """There was output, or another sign of progress."""
        self.progress_at = monotonic()

    def note_status(self, status: str) -> None:
        """Take the state of the run. One that is further than all before it is progress."""
        self.status = status
        if (rank := self.ranks.get(status, 1)) > self._rank:
            self._rank = rank
            self.progressed()

    def _fail(self, failure: EngineError | ErrorBody) -> None:
        self.failure, self.done = failure, True

    def _fail_for_good(self, failure: EngineError | ErrorBody) -> None:
        self.has_failed = True
        self._fail(failure)


class StateParser(RunParser):
    """The parser of a run whose state is a JSON document, read as a whole."""

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior)
        self._document: list[bytes] = []
        self._size = 0
        self._usage: Usage | None = None

    @property
    def usage(self) -> Usage | None:
        return self._usage

    def expect_state(self) -> None:
        """The next response is a document."""
        self._document, self._size = [], 0
        self.done, self.failure = False, None

    def feed(self, data: bytes) -> Iterator[Delta | UpstreamState]:
        """Keep the bytes of one read until the end of the response."""
        self._size += len(data)
        if self._size > MAX_DOCUMENT_BYTES:
            self._fail(UpstreamError(TOO_LARGE))
        else:
            self._document.append(data)
        return iter(())

    def end(self) -> Iterator[Delta | UpstreamState | None]:
        """Parse the response."""
        if self._document:
            content, self._document = b"".join(self._document), []
            yield from self._read_state(content)
        if self.done:
            return
        if self.giving_up is not None:
            self._fail(self.giving_up)
        elif self.finished:
            yield from self._finish_without_state()

    @abstractmethod
    def _read_state(self, content: bytes) -> Iterator[Delta | UpstreamState | None]:
        """Parse a whole document."""

    @abstractmethod
    def _finish_without_state(self) -> Iterator[Delta]:
        """End the answer with the output so far."""

    def _decoded(self, content: bytes, *, keep_surrogates: bool = False) -> Any:
        """A document; None if it is not JSON, or too large, which is a failure. See `repaired_json`."""
        try:
            return load_json(content)
        except EventTooLarge:
            self._fail(UpstreamError(TOO_LARGE))
        except orjson.JSONDecodeError:
            return repaired_json(content, keep_surrogates=keep_surrogates)
        return None

    def _fail_with_page(self, message: str) -> None:
        """The response has no state. A page of a proxy is worth another try if there is a run."""
        if not self.done:
            self._fail(ErrorBody("", status=502) if self.run_id else UpstreamError(message))


class RunExchange(Exchange):
    """The requests for one run: create it, follow it, and cancel it if it makes no progress."""

    parser: RunParser

    def __init__(self, parser: RunParser, pace: PollPace, *, start_timeout_s: float, read_timeout_s: float) -> None:
        """`start_timeout_s` and `read_timeout_s`: without progress, while the run waits, and after it has started."""
        self.parser = parser
        self._pace = pace
        self._start_timeout_s = start_timeout_s
        self._read_timeout_s = read_timeout_s

    # The upstream's API

    @property
    @abstractmethod
    def is_state(self) -> bool:
        """Whether the current response is the state of the run."""

    @abstractmethod
    def _create(self) -> Call:
        """The request that creates the run."""

    @abstractmethod
    def _follow(self) -> Call:
        """The request for more of the run, after a response that was complete."""

    @abstractmethod
    def _follow_again(self) -> Call:
        """The request for more of the run, in a new attempt or after a connection broke."""

    @abstractmethod
    def _cancel(self) -> Call:
        """The request that cancels the run."""

    def _follow_otherwise(self, status: int) -> Call | None:
        """The request in place of one that was refused; None: it is an error."""
        return None

    # The exchange

    @property
    def repeats(self) -> bool:
        return self.is_state

    @property
    def has_ended(self) -> bool:
        return self.parser.status in self.parser.ends

    def first(self) -> Call:
        return self._follow_again() if self.parser.run_id else self._create()

    def next(self) -> Call | None:
        parser = self.parser
        if parser.giving_up is not None or not parser.run_id:
            return None
        if self.is_state and self.is_late:
            parser.giving_up = UpstreamError(NOT_STARTED if parser.waiting else TIMED_OUT)
            return self._cancel()
        return self._follow()

    def instead(self, status: int) -> Call | None:
        if self.parser.giving_up is not None:
            raise self.parser.giving_up
        return self._follow_otherwise(status)

    def resume(self) -> Call | None:
        if self.parser.giving_up is not None:  # the request that cancels it has failed
            raise self.parser.giving_up
        return self._follow_again() if self.parser.run_id and not self.parser.has_failed else None

    @property
    def is_late(self) -> bool:
        """Whether the run makes no progress."""
        limit = self._start_timeout_s if self.parser.waiting else self._read_timeout_s
        return monotonic() - self.parser.progress_at > limit

    def _forgotten(self, status: int) -> Exception:
        """The error for a state that the upstream does not have any more. The output may be complete without it."""
        self.parser.lenient = True
        lost = RunLost()
        return TransientError(lost.message, f"HTTP {status}") if self.parser.finished else lost
