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
from typing import Any, Literal

from shared.config.models.replicate import ReplicateOptions
from workers.engines.base import Prior
from workers.engines.replicate.reader import PredictionReader
from workers.engines.upstream.exchange import Call
from workers.engines.upstream.polling import FORGOTTEN, PollPace, PollRate, RunExchange

logger = logging.getLogger(__name__)

JSON = {"Accept": "application/json"}
# Streams in a row without any new event, after which the state is polled.
MAX_LOST_STREAMS = 3

_Step = Literal["create", "stream", "state", "cancel"]


class PredictionExchange(RunExchange):
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
        rate: PollRate,
    ) -> None:
        """`may_stream`: whether a URL may be requested. `on_times`: see `PredictionReader`."""
        super().__init__(
            PredictionReader(prior, max_tokens, on_times),
            PollPace(options.poll_interval_s, options.max_poll_interval_s, rate),
            start_timeout_s=options.start_timeout_s,
            read_timeout_s=options.read_timeout_s,
        )
        self._create_call = create
        self._may_stream = may_stream
        self._step: _Step = "create"
        self._lost_streams = 0
        self._seen = ""
        # A successor that does not know the position cannot use the stream.
        self.parser.polls = bool(prior.deltas) and not self.parser.ids.last

    @property
    def is_state(self) -> bool:
        return self._step == "state"

    @property
    def repeats(self) -> bool:
        return self._step != "stream"

    @property
    def over(self) -> bool:
        return self._step == "stream" and (self.parser.ended or self.is_late)

    @property
    def is_late(self) -> bool:
        return not self.parser.ended and super().is_late

    def _create(self) -> Call:
        self._step = "create"
        self.parser.expect_state()
        return self._create_call

    def _follow(self) -> Call:
        reader = self.parser
        if self._step == "stream":
            if not reader.ended:
                self._note_lost_stream()
        elif self._step == "create" or not (reader.ended or reader.waiting):
            return self._stream() or self._state()
        return self._state()

    def _follow_again(self) -> Call:
        if self._step == "stream":
            self._note_lost_stream()
        elif self._step == "state":
            self.parser.lenient = True
        return self._state()

    def _follow_otherwise(self, status: int) -> Call | None:
        reader = self.parser
        if self._step == "stream" and status < 500:
            logger.warning("prediction=%s its stream cannot be read (HTTP %d); polling instead", reader.run_id, status)
            reader.polls = True
            return self._state()
        if self._step == "state" and status in FORGOTTEN:
            raise self._forgotten(status)
        return None

    def _cancel(self) -> Call:
        self._step = "cancel"
        self.parser.expect_state()
        return cancel_call(self.parser.run_id)

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
        return Call(f"predictions/{reader.run_id}", headers=JSON, delay_s=self._pace.delay_s())

    def _note_lost_stream(self) -> None:
        reader = self.parser
        self._lost_streams = 1 if reader.ids.last != self._seen else self._lost_streams + 1
        if self._lost_streams >= MAX_LOST_STREAMS or not reader.ids.usable:
            reader.polls = True


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
