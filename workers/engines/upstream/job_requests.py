"""The state of the requests for one job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.domain.request import GenerateRequest
from workers.engines.base import Prior
from workers.engines.upstream.answer_limit import AnswerLimit
from workers.engines.upstream.endpoints import Endpoint
from workers.engines.upstream.exchange import Call, Exchange, ReplyParser
from workers.engines.upstream.session import Sending

# Reads are parsed, and bodies are written, in pieces of this size, with time for other tasks between them.
PIECE_BYTES = 64 << 10


@dataclass(slots=True, kw_only=True)
class JobRequests:
    """Where the requests for one attempt of a job stand. `id` is the attempt's, for logs."""

    id: str
    request: GenerateRequest
    prior: Prior
    endpoint: Endpoint
    limit: AnswerLimit
    # Set by the first `begin`.
    exchange: Exchange = field(init=False)
    # The next request; None: a new exchange follows, or the answer has ended.
    call: Call | None = None
    # Failures in a row without output between them, and endpoints that failed before they had accepted a request.
    failures: int = 0
    failed: set[Endpoint] = field(default_factory=set)
    redirects: int = 0
    # What replaces parameters that the upstream refuses.
    replacements: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    # Whether the upstream has answered, and whether it runs the request on without a connection.
    answered: bool = False
    runs_on: bool = False
    # Runs that failed without output.
    failed_runs: int = 0
    # Whether a request was sent again: one that the upstream had forgotten, or one whose kept connection was closed.
    recreated: bool = False
    sent_again: bool = False
    # The request that was sent last, and whether the last read of its response had output.
    sending: Sending = field(default_factory=Sending)
    has_output: bool = False
    # When all choices had their finish reasons and nothing has followed since, on the event loop's clock.
    finished_at: float = 0.0
    # The longest wait from then on.
    trailer_s: float = 0.0

    @property
    def reply(self) -> ReplyParser:
        return self.exchange.parser

    @property
    def job_id(self) -> str:
        return self.id.rpartition("-")[0]

    def begin(self, exchange: Exchange) -> None:
        """Begin an exchange with its first request."""
        self.exchange = exchange
        self.call = exchange.first()
        self.runs_on = self.prior.upstream is not None

    def parse(self, data: bytes) -> Iterator[Any]:
        """The output in the bytes of one read, or in the rest of a body if there are none.

        None: nothing new, but time has passed.
        """
        return self._pieces(data) if data else iter(self.reply.end())

    def _pieces(self, data: bytes) -> Iterator[Any]:
        reply = self.reply
        for start in range(0, len(data), PIECE_BYTES):
            yield from reply.feed(data[start : start + PIECE_BYTES])
            if reply.done:
                return
            yield None
