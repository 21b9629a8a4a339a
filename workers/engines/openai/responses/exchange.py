"""The requests for one response: create it, resume its stream, or retrieve it.

https://platform.openai.com/docs/guides/background and https://platform.openai.com/docs/api-reference/responses/get

The response runs in the background, so it survives its connection. A broken stream is resumed after its last event; if
the upstream refuses that, the response is retrieved once it has ended, and the rest of its output is emitted.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any
from urllib.parse import quote, urlencode

from workers.engines.openai.responses.stream import ResponseParser
from workers.engines.upstream.errors import RunLost
from workers.engines.upstream.exchange import Call, Exchange

PATH = "responses"
# Between two requests for a response that has not ended.
POLL_S = 1.0


class _Step(Enum):
    CREATE = auto()
    STREAM = auto()
    RETRIEVE = auto()


class ResponseExchange(Exchange):
    """One response."""

    parser: ResponseParser

    def __init__(self, body: Mapping[str, Any], parser: ResponseParser, query: str) -> None:
        """`body` creates the response. `query`: that of each request, with a question mark if it is not empty."""
        self._body = body
        self._query = query
        self._includes = body.get("include", ())
        self._step = _Step.CREATE
        # The last event before the current stream, which must make progress.
        self._streamed_from: int | None = -1
        self.parser = parser

    def first(self) -> Call:
        return self._create() if self.parser.response_id is None else self._continue()

    def next(self) -> Call | None:
        if self.parser.response_id is None:
            return None
        if self._step is _Step.RETRIEVE or self.parser.running or self.parser.seq == self._streamed_from:
            return self._retrieve(POLL_S)
        return self._continue()

    def instead(self, status: int) -> Call | None:
        if not 400 <= status < 500 or status in (401, 403, 408, 429):
            return None
        if self._step is _Step.STREAM:
            return self._retrieve()
        if self._step is _Step.RETRIEVE:
            raise RunLost
        return None

    @property
    def repeats(self) -> bool:
        return self._step is _Step.RETRIEVE

    def resume(self) -> Call | None:
        if self.parser.failure is not None:  # the response itself has failed
            return None if self.parser.begun else self._create()
        return None if self.parser.response_id is None else self._continue()

    def _create(self) -> Call:
        self.parser.forget()
        self._step = _Step.CREATE
        return Call(PATH + self._query, self._body)

    def _continue(self) -> Call:
        if not self.parser.resumable:
            return self._retrieve()
        self.parser.reconnect()
        self._step, self._streamed_from = _Step.STREAM, self.parser.seq
        after = {} if self.parser.seq is None else {"starting_after": str(self.parser.seq)}
        return Call(self._path({"stream": "true", **after}))

    def _retrieve(self, delay_s: float = 0.0) -> Call:
        self.parser.reconnect()
        self._step = _Step.RETRIEVE
        return Call(self._path({}), delay_s=delay_s)

    def _path(self, query: Mapping[str, str]) -> str:
        pairs = urlencode([*query.items(), *(("include[]", name) for name in self._includes)])
        path = _path(self.parser.response_id or "") + self._query
        return f"{path}{'&' if self._query else '?'}{pairs}" if pairs else path


def cancel_call(response_id: str, query: str) -> Call:
    """The request that cancels a response."""
    return Call(f"{_path(response_id)}/cancel{query}", {})


def _path(response_id: str) -> str:
    return f"{PATH}/{quote(response_id, safe='')}"
