"""Converts a job's log to the events of a response.

The conversion is deterministic: the same log results in the same events and sequence numbers on every API process. A
stream is resumed after event N by converting the log from its start and skipping the events up to N.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

import orjson

from api.http.large_json import encoded
from api.responses.output_items import CallOutput, Fields, MessageOutput, OpaqueOutput, OutputItem, ReasoningOutput
from api.responses.view import error, usage, view
from shared.domain.events import SEQ_PER_ATTEMPT, Event, EventType
from shared.domain.job import JobStatus
from shared.domain.opaque import THINKING, TOOL_CALL, OpaquePart
from shared.domain.response import StoredResponse
from shared.runtime.offload import INLINE_BYTES

# A log that Redis has lost restarts far above all its sequence numbers (`shared.domain.events.seq_before`). So do the
# numbers of response events, several of which can result from one event of the log, and the indices of items.
NUMBERS_PER_SEQ = 10
ITEMS_PER_ATTEMPT = 1000

# The last event of a stream, by the last event of the log. OpenAI has no event for a cancelled response; it is reported
# as incomplete, and the response in the event has the status `cancelled`.
_LAST = {
    EventType.COMPLETED: "response.completed",
    EventType.INCOMPLETE: "response.incomplete",
    EventType.CANCELLED: "response.incomplete",
    EventType.FAILED: "response.failed",
    EventType.EXPIRED: "response.failed",
}

ResponseEvent = dict[str, Any]


class ResponseEvents:
    """Converts the events of one stream. `response` is the response after the events so far.

    `size` is about the bytes of the response: the parameters that it repeats, and the output so far. Events at the
    start and at the end of an item and of the response contain them.
    """

    def __init__(self, response: StoredResponse) -> None:
        self._stored = response
        self._digits = response.digits
        self.response = view(response, JobStatus.QUEUED)
        self._pending: list[ResponseEvent] = []
        self._number = 0
        self._seq = 0
        self._started = False
        self.size = response.facts.size
        job = response.job
        # While another model may take over, the first events, which name the model, wait for output or a keepalive.
        self._may_move = self._waits = job.decisions.may_move and not job.status.terminal
        self._model = job.model
        self._attempted = False
        self._begin(0)

    def opening(self) -> list[ResponseEvent]:
        """Return the events before a log's first. As at OpenAI, only background responses have `response.queued`."""
        if not self._waits:
            self._create()
        return self._drain()

    def opened(self) -> list[ResponseEvent]:
        """Return the first events, if they still wait."""
        if self._waits:
            self._waits = False
            self._create()
            if self._attempted:
                self._start()
        return self._drain()

    def _create(self) -> None:
        self.response = view(self._stored, JobStatus.QUEUED, self._model)
        self._emit("response.created", response=self.response)
        if self._stored.facts.background:
            self._emit("response.queued", response=self.response)

    def convert(self, event: Event) -> list[ResponseEvent]:
        """Convert an event of the log; some result in no response event."""
        contiguous = event.seq == self._seq + 1
        self._seq = event.seq
        if event.type is EventType.STARTED:
            self._attempted = True
            if self._may_move:
                self._model = event.payload().get("model", self._model)
        elif self._waits:
            return [*self.opened(), *self._converted(event, contiguous=contiguous)]
        return self._converted(event, contiguous=contiguous)

    def _converted(self, event: Event, *, contiguous: bool) -> list[ResponseEvent]:
        match event.type:
            case EventType.STARTED:
                if not self._waits:
                    self._start()
            case EventType.DELTA:
                self._delta(event)
            case EventType.RESTARTED:
                self._restart(event.seq, contiguous=contiguous)
            case _:
                self._end(event)
        return self._drain()

    def keepalive(self, after: int | None) -> bytes:
        """OpenAI's undocumented event of that name; it does not change the response.

        Its number is that of the last event that the client has, so that it is no new position to resume from.
        """
        number = max(self._number - 1, after or 0)
        return b'event: keepalive\ndata: {"type":"keepalive","sequence_number":%d}\n\n' % number

    # Events of the log

    def _start(self) -> None:
        if self._started:
            return
        self._started = True
        self.response = view(self._stored, JobStatus.IN_PROGRESS, self._model)
        self._emit("response.in_progress", response=self.response)

    def _delta(self, event: Event) -> None:
        delta = event.delta()
        self.size += len(event.data)
        if delta.finish_reason == "content_filter":
            self._incomplete_reason = "content_filter"
        if delta.reasoning:
            self._reasoning_tokens += event.payload().get("tokens", 0)
            reasoning = self._open
            if not isinstance(reasoning, ReasoningOutput):
                reasoning = ReasoningOutput(self._digits, self._next_index)
                self._add(reasoning)
            self._emit_for_item(reasoning.append(delta.reasoning))
        if delta.text:
            message = self._open
            if not isinstance(message, MessageOutput):
                message = MessageOutput(self._digits, self._next_index)
                self._add(message)
            self._emit_for_item(message.append(delta.text, event.payload().get("logprobs", ())))
        for fragment in delta.tool_calls:
            call = self._open
            if not (isinstance(call, CallOutput) and call.number == fragment.index):
                call = CallOutput(self._digits, self._next_index, fragment)
                self._add(call)
            if fragment.arguments:
                self._emit_for_item(call.append(fragment.arguments))
        for part in delta.opaque:
            self._part(part)

    def _part(self, part: OpaquePart) -> None:
        """A part belongs to the reasoning before it, or is an item of its own; that of a call follows the call's item.

        Without encrypted content, only reasoning is an item.
        """
        encrypted = part.encoded() if self._stored.facts.encrypted_reasoning else None
        if part.kind == THINKING and isinstance(self._open, ReasoningOutput):
            self._open.encrypted_content = encrypted
            self._close("completed")
        elif part.kind == TOOL_CALL and isinstance(self._open, CallOutput):
            self._deferred.append(part)
        elif encrypted is not None or part.kind == THINKING:
            self._add(OpaqueOutput(self._digits, self._next_index, encrypted))
            self._close("completed")

    def _restart(self, seq: int, *, contiguous: bool) -> None:
        """The job has been restarted: the open item ends as incomplete, and the output begins with a new item.

        If the earlier log is lost, sequence numbers and indices continue above all that it can have had.
        """
        self._start()
        self._close("incomplete")
        if contiguous:
            self._begin(self._next_index)
        else:
            self._number = NUMBERS_PER_SEQ * seq
            self._begin(seq // SEQ_PER_ATTEMPT * ITEMS_PER_ATTEMPT)

    def _end(self, event: Event) -> None:
        payload = event.payload()
        self._close("completed" if event.type is EventType.COMPLETED else "incomplete")
        status = JobStatus(event.type.value)
        self.response = {
            **view(self._stored, status, self._model),
            "error": error(self._stored.job, payload.get("error")),
            "incomplete_details": {"reason": self._incomplete_reason} if status is JobStatus.INCOMPLETE else None,
            "output": self._items,
            "usage": usage(payload["usage"], self._reasoning_tokens),
        }
        self._emit(_LAST[event.type], response=self.response)

    # Items

    def _begin(self, index: int) -> None:
        """Start the output at this item index; earlier items are discarded."""
        self._first = index
        self._items: list[dict[str, Any]] = []
        self._open: OutputItem | None = None
        self._deferred: list[OpaquePart] = []
        self._reasoning_tokens = 0
        self._incomplete_reason = "max_output_tokens"

    @property
    def _next_index(self) -> int:
        return self._first + len(self._items) + (self._open is not None)

    def _add(self, item: OutputItem) -> None:
        self._close("completed")
        self._emit("response.output_item.added", output_index=self._next_index, item=item.empty_view())
        self._open = item
        for fields in item.opening_events():
            self._emit_for_item(fields)

    def _close(self, status: str) -> None:
        item = self._open
        if item is None:
            return
        for fields in item.closing_events():
            self._emit_for_item(fields)
        done = item.view(status)
        self._emit("response.output_item.done", output_index=self._first + len(self._items), item=done)
        self._items.append(done)
        self._open = None
        deferred, self._deferred = self._deferred, []
        for part in deferred:
            self._part(part)

    # Events

    def _emit_for_item(self, fields: Fields) -> None:
        assert self._open is not None
        kind, more = fields
        self._emit(kind, item_id=self._open.id, output_index=self._first + len(self._items), **more)

    def _emit(self, kind: str, **fields: Any) -> None:
        self._pending.append({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1

    def _drain(self) -> list[ResponseEvent]:
        pending, self._pending = self._pending, []
        return pending


def build_response(response: StoredResponse, log: Iterable[Event]) -> dict[str, Any]:
    """Build a response's body from its log so far."""
    events = ResponseEvents(response)
    for event in log:
        events.convert(event)
    return events.response


async def frames(
    response: StoredResponse, log: AsyncIterator[list[Event]], after: int | None = None
) -> AsyncIterator[bytes]:
    """Convert a response's complete log to SSE frames, and yield those after a sequence number."""
    events = ResponseEvents(response)
    async for data in _encoded(events, _after(events.opening(), after)):
        yield data
    async for batch in log:
        if not batch:
            async for data in _encoded(events, _after(events.opened(), after)):
                yield data
            yield events.keepalive(after)
        converted = (item for event in batch for item in _after(events.convert(event), after))
        async for data in _encoded(events, converted):
            yield data


async def _encoded(events: ResponseEvents, converted: Iterable[ResponseEvent]) -> AsyncIterator[bytes]:
    """Encode events: small ones together, large ones in chunks.

    Escaping and sending all of a large event at once would take as long as encoding it.
    """
    small = b""
    for event in converted:
        if events.size <= INLINE_BYTES or event["type"].endswith(".delta"):
            # Log probabilities are a `Mapped` sequence.
            small += b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event, default=list))
            continue
        yield small + b"event: %b\ndata: " % event["type"].encode()
        async for chunk in encoded(event):
            yield chunk
        small = b"\n\n"
    if small:
        yield small


def _after(events: list[ResponseEvent], after: int | None) -> list[ResponseEvent]:
    return events if after is None else [event for event in events if event["sequence_number"] > after]
