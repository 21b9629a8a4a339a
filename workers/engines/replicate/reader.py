"""Reads what Replicate sends about a prediction: its state as JSON, and its output as events.

- https://replicate.com/docs/reference/http (the prediction, its states, errors)
- https://replicate.com/docs/topics/predictions/lifecycle (the states)
- https://replicate.com/docs/topics/predictions/streaming (the events `output`, `error` and `done`)

The text of a prediction is its output: a text, or a list of texts that are joined. Its state has all of it once it has
succeeded, so that nothing is lost that a stream omitted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import datetime
from time import monotonic
from typing import Any

import orjson

from shared.domain.events import Delta, UpstreamState
from shared.domain.job import Usage
from workers.engines.base import Prior, UpstreamError
from workers.engines.replicate.event_ids import EventIds
from workers.engines.upstream.emitted import Emitted
from workers.engines.upstream.error_body import error_of
from workers.engines.upstream.errors import ErrorBody, RunLost
from workers.engines.upstream.polling import TOO_LARGE, StateParser, is_run_id
from workers.engines.upstream.sse import EventTooLarge, TextEventReader
from workers.engines.upstream.usage import count_of

logger = logging.getLogger(__name__)

# Longest wait for the final state after the stream has ended.
SETTLE_S = 10.0
NOT_A_PREDICTION = "The upstream sent something that is not a prediction."
NOT_TEXT = "The upstream's output is not text."
CHANGED = "The upstream changed output that it had sent before."
DELETED = "The upstream has deleted the output."
# Order of the states of a prediction that runs. States that this version does not know count as running.
_RANKS = {"queued": 0, "starting": 0, "processing": 1}
_STOPPED = {
    "canceled": "The upstream cancelled the prediction.",
    "cancelled": "The upstream cancelled the prediction.",
    "aborted": "The upstream did not start the prediction before its deadline.",
}
_FINAL = ("succeeded", "failed", *_STOPPED)


class PredictionReader(StateParser):
    """The parser of one answer."""

    ranks = _RANKS
    ends = _FINAL

    def __init__(
        self, prior: Prior, max_tokens: int | None, on_times: Callable[[str, float | None, float | None], None]
    ) -> None:
        """`on_times` is called at the end, with the prediction's id and the seconds that it waited and ran."""
        super().__init__(prior)
        self._emitted = Emitted(prior.deltas)
        self._max_tokens = max_tokens
        self._on_times = on_times
        self._tokens = sum(delta.tokens for delta in prior.deltas)
        self._events: TextEventReader | None = None
        self._reported: ErrorBody | None = None
        self._ended_at = 0.0
        self.ids = EventIds(prior.cursor if isinstance(prior.cursor, str) else "")
        self.stream_url = ""
        # Whether the states before the last one give the text, because there is no stream.
        self.polls = False
        # Whether the stream has sent its last event.
        self.ended = False

    @property
    def finished(self) -> bool:
        """False until the answer is `done`, because the finish reason comes last, or needs no final state."""
        return (self.done and self.failure is None) or (self.lenient and self.ended and self._reported is None)

    def expect_state(self) -> None:
        super().expect_state()
        self._events = None

    def expect_stream(self) -> None:
        """The next response is a stream of its output."""
        self._events = TextEventReader()
        self.ids.reopened()

    def feed(self, data: bytes) -> Iterator[Delta | UpstreamState]:
        """Parse the bytes of one read: of a stream they become one delta, those of a state are kept until its end.

        An event without its end is left out; the state will have it.
        """
        return super().feed(data) if self._events is None else self._read_events(self._events, data)

    def _finish_without_state(self) -> Iterator[Delta]:
        return self._finish("")

    # The stream

    def _read_events(self, reader: TextEventReader, data: bytes) -> Iterator[Delta]:
        texts = []
        try:
            for event in reader.read(data):
                if event.kind == "output":
                    if self.ids.is_new(event.id, event.data):
                        texts.append(event.data)
                elif event.kind in ("error", "done"):
                    self.ended, self._ended_at = True, monotonic()
                    self._reported = _reported(event.data) if event.kind == "error" else _stopped(event.data)
                    break
        except EventTooLarge:
            self._fail(UpstreamError(TOO_LARGE))
        if texts:
            yield self._delta("".join(texts), len(texts))

    # The state

    def _read_state(self, content: bytes) -> Iterator[Delta | UpstreamState]:
        state, known = self._decoded(content), self.run_id
        if not isinstance(state, dict) or not is_run_id(state.get("id")) or not isinstance(state.get("status"), str):
            return self._fail_with_page(NOT_A_PREDICTION)
        if known and state["id"] != known:
            return self._fail(UpstreamError(NOT_A_PREDICTION))
        if not known:
            self.run_id = state["id"]
            yield UpstreamState(self.run_id)
        self.note_status(state["status"].lower())
        urls = state.get("urls")
        url = urls.get("stream") if isinstance(urls, dict) else None
        self.stream_url = url if isinstance(url, str) else ""
        if self.status in _FINAL:
            self._read_metrics(state)
        if self.status == "succeeded":
            yield from self._succeeded(state)
        elif self.status == "failed":
            error = state.get("error")
            self._fail_for_good(error_of(error) if error else self._reported or ErrorBody(""))
        elif self.status in _STOPPED:
            self._fail(self.giving_up or UpstreamError(_STOPPED[self.status]))
        elif self.ended and monotonic() > self._ended_at + SETTLE_S:
            self.lenient = True
            if self._reported is not None:
                self._fail_for_good(self._reported)
        elif self.polls and (text := _text_of(state.get("output"))):
            sent = self._emitted.text
            if text.startswith(sent) and len(text) > len(sent):
                yield self._delta(text[len(sent) :], 1)

    def _succeeded(self, state: dict[str, Any]) -> Iterator[Delta]:
        output, sent = state.get("output"), self._emitted.text
        text = _text_of(output)
        if text is None:
            return self._fail(UpstreamError(NOT_TEXT))
        if not text and state.get("data_removed") and not self.ended:
            self._fail(RunLost(DELETED))
        elif text.startswith(sent):
            yield from self._finish(text[len(sent) :])
        elif self.ended:
            if text:
                logger.warning("prediction=%s its stream and its output differ", self.run_id)
            yield from self._finish("")
        else:
            self._fail(RunLost(CHANGED))

    def _finish(self, rest: str) -> Iterator[Delta]:
        tokens = self._tokens + bool(rest) if self.usage is None else self.usage.completion_tokens
        reason = "length" if self._max_tokens is not None and tokens >= self._max_tokens else "stop"
        delta = self._delta(rest, int(bool(rest)))
        delta.finish_reason = reason
        self.done = True
        yield delta

    def _delta(self, text: str, tokens: int) -> Delta:
        delta = Delta(0, text, unidentified=tokens, cursor=self.ids.last or None)
        self._emitted.add(delta)
        self._tokens += tokens
        self.begun = True
        self.progressed()
        return delta

    def _read_metrics(self, state: dict[str, Any]) -> None:
        metrics = state.get("metrics")
        if not isinstance(metrics, dict):
            metrics = {}
        prompt, completion = count_of(metrics.get("input_token_count")), count_of(metrics.get("output_token_count"))
        if prompt or completion:
            self._usage = Usage(prompt, 0, completion or self._tokens)
        ran = _seconds(metrics.get("predict_time"))
        waited = _between(state.get("created_at"), state.get("started_at"))
        total = _seconds(metrics.get("total_time"))
        if waited is None and total is not None and ran is not None:
            waited = max(0.0, total - ran)
        self._on_times(self.run_id, waited, ran)


def _text_of(output: Any) -> str | None:
    """The text of an output; None if it is not text."""
    match output:
        case None:
            return ""
        case str():
            return output
        case list() if all(isinstance(piece, str) for piece in output):
            return "".join(output)
        case _:
            return None


def _reported(data: str) -> ErrorBody:
    try:
        return error_of(orjson.loads(data))
    except orjson.JSONDecodeError:
        return error_of(data)


def _stopped(data: str) -> ErrorBody | None:
    """The error for the last event of a stream, `{"reason": "error"}` or `"canceled"`; None for a complete one."""
    try:
        state = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    reason = state.get("reason") if isinstance(state, dict) else None
    return ErrorBody(f"its stream ended with the reason {reason:.50}") if reason and isinstance(reason, str) else None


def _seconds(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
        return None
    return float(value)


def _between(start: Any, end: Any) -> float | None:
    try:
        return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())
    except (TypeError, ValueError):
        return None
