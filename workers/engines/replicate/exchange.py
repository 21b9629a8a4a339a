"""The requests that run one prediction: create it, stream its output, ask for its state, cancel it.

- https://replicate.com/docs/reference/http#predictions.create, #models.predictions.create,
  #deployments.predictions.create, #predictions.get and #predictions.cancel
- https://replicate.com/docs/topics/predictions/streaming

A prediction is generated once, whatever happens to the stream. A lost stream is opened again after the last event
(`Last-Event-ID`) if its events have ids that tell their order; otherwise the prediction's state is polled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Literal

from shared.config.models.replicate import ReplicateOptions
from workers.engines.base import Prior, UpstreamError
from workers.engines.replicate.reader import PredictionReader
from workers.engines.upstream.errors import RunLost, TransientError
from workers.engines.upstream.exchange import Call, Exchange
from workers.engines.upstream.polling import PollPace

logger = logging.getLogger(__name__)

JSON = {"Accept": "application/json"}
# Streams in a row without any new event, after which the state is polled.
MAX_LOST_STREAMS = 3
NOT_STARTED = "The upstream did not start the request in time."
TIMED_OUT = "The upstream did not answer in time."

_Step = Literal["create", "stream", "state", "cancel"]


class PredictionExchange(Exchange):
    """The exchange of one job."""

    parser: PredictionReader

    def __init__(
        self,
        create: Call,
        prior: Prior,
        options: ReplicateOptions,
        *,
        max_tokens: int | None,
        may_stream: Callable[[str], bool],
        on_times: Callable[[str, float | None, float | None], None],
    ) -> None:
        """`may_stream`: whether a URL may be requested. `on_times`: see `PredictionReader`."""
        self.parser = PredictionReader(prior, max_tokens, on_times)
        self._create = create
        self._options = options
        self._may_stream = may_stream
        self._pace = PollPace(options.poll_interval_s, options.max_poll_interval_s)
        self._step: _Step = "create"
        self._lost_streams = 0
        self._seen = ""
        # A successor that does not know the position cannot use the stream.
        self.parser.polls = bool(prior.deltas) and not self.parser.ids.last

    @property
    def repeats(self) -> bool:
        return self._step != "stream"

    def first(self) -> Call:
        if self.parser.id:
            return self._state()
        self._step = "create"
        self.parser.expect_state()
        return self._create

    @property
    def over(self) -> bool:
        reader = self.parser
        return self._step == "stream" and (reader.ended or self._is_late())

    def next(self) -> Call | None:
        reader = self.parser
        match self._step:
            case "create":
                return self._stream() or self._state()
            case "stream":
                if not reader.ended:
                    self._note_lost_stream()
                return self._state()
            case "cancel":
                return None
        if self._is_late():
            reader.giving_up = UpstreamError(NOT_STARTED if reader.starting else TIMED_OUT)
            self._step = "cancel"
            reader.expect_state()
            return cancel_call(reader.id)
        if not reader.ended and not reader.starting and (stream := self._stream()) is not None:
            return stream
        return self._state()

    def resume(self) -> Call | None:
        if not self.parser.id:
            return None
        if self._step == "stream":
            self._note_lost_stream()
        else:
            self.parser.lenient = True
        return self._state()

    def instead(self, status: int) -> Call | None:
        reader = self.parser
        if self._step == "cancel" and reader.giving_up is not None:
            raise reader.giving_up
        if self._step == "stream" and status < 500:
            logger.warning("prediction=%s its stream cannot be read (HTTP %d); polling instead", reader.id, status)
            reader.polls = True
            return self._state()
        if self._step == "state" and status in (404, 410):
            reader.lenient = True
            raise TransientError(RunLost().message, f"HTTP {status}") if reader.finished else RunLost()
        return None

    def _stream(self) -> Call | None:
        """Open the stream; None if there is none that can be read from here."""
        reader = self.parser
        if reader.polls:
            return None
        is_known = reader.ids.usable and (reader.ids.last or not reader.begun)
        if not (reader.stream_url and is_known and self._may_stream(reader.stream_url)):
            reader.polls = True
            return None
        self._step = "stream"
        self._seen = reader.ids.last
        reader.expect_stream()
        headers = {"Cache-Control": "no-store"}
        if reader.ids.last:
            headers["Last-Event-ID"] = reader.ids.last
        return Call(reader.stream_url, headers=headers)

    def _state(self) -> Call:
        reader = self.parser
        if self._step != "state":
            self._pace.progressed()
        self._step = "state"
        reader.expect_state()
        return Call(f"predictions/{reader.id}", headers=JSON, delay_s=self._pace.delay_s())

    def _note_lost_stream(self) -> None:
        reader = self.parser
        self._lost_streams = 1 if reader.ids.last != self._seen else self._lost_streams + 1
        if self._lost_streams >= MAX_LOST_STREAMS or not reader.ids.usable:
            reader.polls = True

    def _is_late(self) -> bool:
        """Whether the prediction makes no progress."""
        options = self._options
        limit = options.start_timeout_s if self.parser.starting else options.read_timeout_s
        return not self.parser.ended and monotonic() - self.parser.progress_at > limit


def create_call(path: str, version: str | None, values: Mapping[str, Any], cancel_after_s: int | None) -> Call:
    """The request that creates a prediction."""
    body: dict[str, Any] = {"input": values, "stream": True}
    if version is not None:
        body["version"] = version
    headers = JSON if cancel_after_s is None else JSON | {"Cancel-After": f"{cancel_after_s}s"}
    return Call(path, body, headers)


def cancel_call(prediction: str) -> Call:
    """The request that cancels a prediction."""
    return Call(f"predictions/{prediction}/cancel", headers=JSON, method="POST")
