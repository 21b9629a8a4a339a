"""The requests for one response: create it, resume its stream, or retrieve it.

https://platform.openai.com/docs/guides/background and https://platform.openai.com/docs/api-reference/responses/get

The response runs in the background, so it survives its connection. A broken stream is resumed after its last event; if
the upstream refuses that, the response is retrieved once it has ended, and the rest of its output is emitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Any
from urllib.parse import quote, urlencode

from workers.engines.openai.responses.request import ENCRYPTED_REASONING
from workers.engines.openai.responses.stream import ResponseParser
from workers.engines.upstream.errors import FORBIDDEN, KEY_REFUSED, NO_CREDIT, TRANSIENT, RunLost
from workers.engines.upstream.exchange import Call
from workers.engines.upstream.polling import PollPace, RunExchange

PATH = "responses"
# Between two requests for a response that has not ended: first and at most.
POLL_S, MAX_POLL_S = 1.0, 10.0


class _Step(Enum):
    CREATE = auto()
    STREAM = auto()
    RETRIEVE = auto()
    CANCEL = auto()


class ResponseExchange(RunExchange):
    """One response."""

    parser: ResponseParser

    def __init__(self, body: Mapping[str, Any], parser: ResponseParser, query: str, read_timeout_s: float) -> None:
        """`body` creates the response. `query`: that of each request, with a question mark if it is not empty.

        `read_timeout_s`: without progress of a response that is retrieved.
        """
        pace = PollPace(POLL_S, MAX_POLL_S)
        super().__init__(parser, pace, start_timeout_s=read_timeout_s, read_timeout_s=read_timeout_s)
        self._body = body
        self._query = query
        # What is requested beside the output, and whether the upstream is known to accept that.
        self._includes: Sequence[str] = body.get("include", ())
        self._includes_are_accepted = False
        self._step = _Step.CREATE
        # The last event before the current stream, which must make progress.
        self._streamed_from: int | None = -1

    @property
    def is_state(self) -> bool:
        return self._step is _Step.RETRIEVE

    @property
    def over(self) -> bool:
        return self._step in (_Step.CREATE, _Step.STREAM) and self.is_late

    def accepted(self, parameters: Mapping[str, Any]) -> None:
        if self._step is _Step.CREATE:
            self._includes = parameters.get("include", ())
        self._includes_are_accepted = True
        if not self.is_state:
            self.parser.progressed()

    def resume(self) -> Call | None:
        if self.parser.failure is not None and self.parser.giving_up is None:  # the response itself has failed
            return None
        return super().resume()

    def _create(self) -> Call:
        self.parser.forget()
        self._step = _Step.CREATE
        return Call(PATH + self._query, self._body)

    def _follow(self) -> Call:
        parser = self.parser
        if self.is_state or self.is_late or parser.running or parser.seq == self._streamed_from:
            return self._retrieve()
        return self._follow_again()

    def _follow_again(self) -> Call:
        if not self.parser.resumable:
            return self._retrieve()
        self.parser.reconnect()
        self._step, self._streamed_from = _Step.STREAM, self.parser.seq
        after = {} if self.parser.seq is None else {"starting_after": str(self.parser.seq)}
        return Call(self._path({"stream": "true", **after}))

    def _follow_otherwise(self, status: int) -> Call | None:
        if not 400 <= status < 500 or status in (KEY_REFUSED, NO_CREDIT, FORBIDDEN, *TRANSIENT):
            return None
        if self._step is _Step.CREATE:
            return None
        if ENCRYPTED_REASONING in self._includes and not self._includes_are_accepted:  # models that do not reason
            self._includes = [name for name in self._includes if name != ENCRYPTED_REASONING]
            return self._follow_again() if self._step is _Step.STREAM else self._retrieve()
        if self._step is _Step.STREAM:
            return self._retrieve()
        raise RunLost

    def _retrieve(self) -> Call:
        if not self.is_state:
            self._pace.progressed()
        self.parser.reconnect()
        self._step = _Step.RETRIEVE
        return Call(self._path({}), delay_s=self._pace.delay_s())

    def _cancel(self) -> Call:
        self.parser.reconnect()
        self._step = _Step.CANCEL
        return cancel_call(self.parser.run_id, self._query)

    def _path(self, query: Mapping[str, str]) -> str:
        pairs = urlencode([*query.items(), *(("include[]", name) for name in self._includes)])
        path = _path(self.parser.run_id) + self._query
        return f"{path}{'&' if self._query else '?'}{pairs}" if pairs else path


def cancel_call(response_id: str, query: str) -> Call:
    """The request that cancels a response."""
    return Call(f"{_path(response_id)}/cancel{query}", {})


def _path(response_id: str) -> str:
    return f"{PATH}/{quote(response_id, safe='')}"
