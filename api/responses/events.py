"""A job's log as the events of a response.

The same log gives the same events with the same numbers, whoever asks, whenever, on whichever API process; so a
stream is resumed after event N by making all of it again and leaving out what was seen.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

import orjson

from api.responses.output_items import CallOutput, Fields, MessageOutput, OutputItem, ReasoningOutput
from api.responses.view import error, usage, view
from shared.domain.events import SEQ_PER_ATTEMPT, Event, EventType
from shared.domain.job import JobStatus
from shared.domain.response import StoredResponse

# A log that was lost with Redis restarts far above every number it had (`shared.domain.events.seq_before`). So do the
# numbers of response events, several of which follow from one event of the log, and the positions of items.
NUMBERS_PER_SEQ = 10
ITEMS_PER_ATTEMPT = 1000

# The last event of a stream, by how its job ended. OpenAI has no event for a response that was cancelled; it is told
# as incomplete, and the response in it has the status `cancelled`.
_LAST = {
    EventType.COMPLETED: "response.completed",
    EventType.INCOMPLETE: "response.incomplete",
    EventType.CANCELLED: "response.incomplete",
    EventType.FAILED: "response.failed",
    EventType.EXPIRED: "response.failed",
}

ResponseEvent = dict[str, Any]


class ResponseEvents:
    """One stream as it is made. `response` is the response as the events so far tell it."""

    def __init__(self, response: StoredResponse) -> None:
        self._stored = response
        self._digits = response.digits
        self.response = view(response, JobStatus.QUEUED)
        self._made: list[ResponseEvent] = []
        self._number = 0
        self._seq = 0
        self._started = False
        self._begin(0)

    def opening(self) -> list[ResponseEvent]:
        """What comes before a log's first event; `response.queued` in the background alone, as at OpenAI."""
        self._tell("response.created", response=self.response)
        if self._stored.facts.background:
            self._tell("response.queued", response=self.response)
        return self._take()

    def of(self, event: Event) -> list[ResponseEvent]:
        """What an event of the log makes; nothing, for some."""
        whole = event.seq == self._seq + 1
        self._seq = event.seq
        match event.type:
            case EventType.STARTED:
                self._start()
            case EventType.DELTA:
                self._grow(event)
            case EventType.RESTARTED:
                self._restart(event.seq, whole=whole)
            case _:
                self._end(event)
        return self._take()

    # What happens in a log

    def _start(self) -> None:
        if self._started:
            return
        self._started = True
        self.response = view(self._stored, JobStatus.IN_PROGRESS)
        self._tell("response.in_progress", response=self.response)

    def _grow(self, event: Event) -> None:
        delta = event.delta()
        if delta.reasoning:
            self._reasoning_tokens += event.payload().get("tokens", 0)
            reasoning = self._open
            if not isinstance(reasoning, ReasoningOutput):
                reasoning = ReasoningOutput(self._digits, self._next_index)
                self._add(reasoning)
            self._tell_of_open(reasoning.grown(delta.reasoning))
        if delta.text:
            message = self._open
            if not isinstance(message, MessageOutput):
                message = MessageOutput(self._digits, self._next_index)
                self._add(message)
            self._tell_of_open(message.grown(delta.text, delta.logprobs))
        for fragment in delta.tool_calls:
            call = self._open
            if not (isinstance(call, CallOutput) and call.number == fragment.index):
                call = CallOutput(self._digits, self._next_index, fragment)
                self._add(call)
            if fragment.arguments:
                self._tell_of_open(call.grown(fragment.arguments))

    def _restart(self, seq: int, *, whole: bool) -> None:
        """The job is answered anew: what was open ends as incomplete, and the answer begins with a new item.

        Where the log before it is lost, numbers and places go on above all that it can have had.
        """
        self._start()
        self._close("incomplete")
        if whole:
            self._begin(self._next_index)
        else:
            self._number = NUMBERS_PER_SEQ * seq
            self._begin(seq // SEQ_PER_ATTEMPT * ITEMS_PER_ATTEMPT)

    def _end(self, event: Event) -> None:
        payload = event.payload()
        self._close("completed" if event.type is EventType.COMPLETED else "incomplete")
        status = JobStatus(event.type.value)
        self.response = {
            **view(self._stored, status),
            "error": error(payload.get("error")),
            "incomplete_details": {"reason": "max_output_tokens"} if status is JobStatus.INCOMPLETE else None,
            "output": self._items,
            "usage": usage(payload["usage"], self._reasoning_tokens),
        }
        self._tell(_LAST[event.type], response=self.response)

    # Items

    def _begin(self, index: int) -> None:
        """Items from this place on are the answer."""
        self._first = index
        self._items: list[dict[str, Any]] = []
        self._open: OutputItem | None = None
        self._reasoning_tokens = 0

    @property
    def _next_index(self) -> int:
        return self._first + len(self._items) + (self._open is not None)

    def _add(self, item: OutputItem) -> None:
        self._close("completed")
        self._tell("response.output_item.added", output_index=self._next_index, item=item.added())
        self._open = item
        for fields in item.opened():
            self._tell_of_open(fields)

    def _close(self, status: str) -> None:
        item = self._open
        if item is None:
            return
        for fields in item.closed():
            self._tell_of_open(fields)
        done = item.view(status)
        self._tell("response.output_item.done", output_index=self._first + len(self._items), item=done)
        self._items.append(done)
        self._open = None

    # Events

    def _tell_of_open(self, fields: Fields) -> None:
        assert self._open is not None
        kind, more = fields
        self._tell(kind, item_id=self._open.id, output_index=self._first + len(self._items), **more)

    def _tell(self, kind: str, **fields: Any) -> None:
        self._made.append({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1

    def _take(self) -> list[ResponseEvent]:
        made, self._made = self._made, []
        return made


def replayed(response: StoredResponse, log: Iterable[Event]) -> dict[str, Any]:
    """A response as its log so far tells it."""
    events = ResponseEvents(response)
    for event in log:
        events.of(event)
    return events.response


async def frames(
    response: StoredResponse, log: AsyncIterator[list[Event]], after: int | None = None
) -> AsyncIterator[bytes]:
    """A response's whole log as frames of server-sent events, those after a number alone."""
    events = ResponseEvents(response)
    if opening := _encoded(events.opening(), after):
        yield opening
    async for batch in log:
        if made := b"".join(_encoded(events.of(event), after) for event in batch):
            yield made


def _encoded(events: list[ResponseEvent], after: int | None) -> bytes:
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event))
        for event in events
        if after is None or event["sequence_number"] > after
    )
