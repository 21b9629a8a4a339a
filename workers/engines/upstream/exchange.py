"""What an engine exchanges with its upstream for one job: HTTP requests, and the parser of their answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from shared.domain.events import Delta, UpstreamState
from shared.domain.job import Usage
from workers.engines.base import EngineError
from workers.engines.upstream.errors import ErrorBody


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request: a POST if it has a body, else a GET, unless `method` says otherwise.

    `path` is below the upstream's `base_url`, without a leading slash, or a whole URL. The values of `body` can be
    encoded by orjson. `delay_s` is the wait before it is sent, in seconds: for polls. `once`: the server may change
    something for a GET too, so that it must not be sent again unnoticed.
    """

    path: str
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    method: str | None = None
    once: bool = False

    @property
    def verb(self) -> str:
        return self.method or ("GET" if self.body is None else "POST")


class ReplyParser(Protocol):
    """The parser of one answer, which may come in several responses."""

    @property
    def begun(self) -> bool:
        """Whether a delta was returned."""

    @property
    def done(self) -> bool:
        """Whether the answer has ended, with or without a `failure`."""

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish reason, which `end` returns at the latest."""

    @property
    def failure(self) -> EngineError | ErrorBody | None:
        """The error that ended the answer: an `ErrorBody` if the upstream reported it."""

    @property
    def usage(self) -> Usage | None:
        """The usage that the upstream reported."""

    def feed(self, data: bytes) -> Iterator[Delta | UpstreamState]:
        """Parse the bytes of one read. Each delta takes little time."""

    def end(self) -> Iterator[Delta | UpstreamState | None]:
        """Parse what is left at the end of a response's body. Called again, it yields nothing.

        None: nothing new, but time has passed.
        """


class Exchange(ABC):
    """The requests of one try to run a job. A retry before any output begins a new exchange."""

    parser: ReplyParser

    @property
    def over(self) -> bool:
        """Whether the current response has nothing more, although it may stay open: the next request follows."""
        return False

    @property
    def leaves_early(self) -> bool:
        """Whether to close the connection without reading the rest when the answer is done, to stop the upstream."""
        return False

    @property
    def repeats(self) -> bool:
        """Whether the current response may have output that earlier responses, or its own earlier events, had."""
        return False

    @property
    def has_ended(self) -> bool:
        """Whether the upstream has reported that the run has ended; False for requests that are no runs."""
        return False

    @abstractmethod
    def first(self) -> Call:
        """The first request."""

    def next(self) -> Call | None:
        """The request that follows a complete response without the end of the answer, such as a poll.

        None: the answer ended too early.
        """
        return None

    def instead(self, status: int) -> Call | None:
        """The request that replaces the last one, which the upstream refused with this status; None: it is an error.

        Raises:
            RunLost: the upstream cannot continue the answer.
            EngineError, TransientError: the status has another meaning here.
        """
        return None

    def accepted(self, parameters: Mapping[str, Any]) -> None:  # noqa: B027  # most exchanges need not know
        """The upstream has accepted the last request, which had these parameters."""

    def resume(self) -> Call | None:
        """The request that continues the answer after its connection broke; None if the upstream offers none."""
        return None


class SingleCall(Exchange):
    """One request, whose response is the whole answer."""

    def __init__(self, call: Call, parser: ReplyParser) -> None:
        self._call = call
        self.parser = parser

    def first(self) -> Call:
        return self._call
