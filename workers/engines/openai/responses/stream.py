"""Parses the stream of a response, or a retrieved response, into deltas.

https://platform.openai.com/docs/api-reference/responses-streaming and .../responses/object

A delta's cursor is the number of its last event, so deltas are divided only between events. Events that were received
before a reconnection are skipped. Servers that give all events the same number are read as if there were no numbers.
Whatever the last event has beyond the deltas is emitted with it: some servers send only whole texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from shared.domain.events import CallDelta, Delta, UpstreamState, joined_calls
from shared.domain.job import Usage
from shared.domain.opaque import OpaquePart
from workers.engines.base import Prior, UpstreamError
from workers.engines.openai.responses.cursor import Cursor
from workers.engines.openai.responses.reasoning import item_id_of, opaque_part
from workers.engines.upstream.call_arguments import (
    NO_ARGUMENTS,
    ArgumentReader,
    arguments_text,
    plain_arguments,
)
from workers.engines.upstream.chat.logprobs import entries
from workers.engines.upstream.error_body import error_of
from workers.engines.upstream.errors import RunLost
from workers.engines.upstream.polling import RunParser
from workers.engines.upstream.sse import DONE, EventReader
from workers.engines.upstream.stream_errors import STREAM_ERRORS, stream_failure
from workers.engines.upstream.usage import UsageReader

# A delta has about so many log probabilities at most.
MAX_LOGPROBS = 64
NOT_A_STREAM = "The upstream sent something that is not the stream of a response."
CHANGED = "The upstream changed output that it had sent before."
CANCELLED = "The upstream cancelled the response."
PARAGRAPH = "\n\n"
_TEXT_PARTS = {"output_text": "text", "text": "text", "refusal": "refusal"}
# Order of the states of a response that runs.
_RANKS = {"queued": 0, "in_progress": 1}
_ENDED = ("completed", "incomplete", "failed", "cancelled")
# Gateways put encoded routes into their ids, which makes them long. Not `.` and `..`, which would change the path.
_RESPONSE_ID = re.compile(r"(?=\.*[^.])[!-~]{1,1024}")
_LAST = ("error", *(f"response.{status}" for status in _ENDED))


class ResponseParser(RunParser):
    """The parser of one answer."""

    ranks = _RANKS
    ends = _ENDED

    def __init__(self, prior: Prior, *, logprobs: bool, reasoning: bool, provider: str | None) -> None:
        """`logprobs` and `reasoning`: whether they are wanted. `provider`: the origin of the opaque parts."""
        super().__init__(prior)
        self._logprobs = logprobs
        self._reasoning = reasoning
        self._provider = provider
        self._events = EventReader(named=True)
        self._usage = UsageReader()
        self._part = _Part()
        # What has been emitted, by earlier attempts too.
        emitted = prior.deltas[0] if prior.deltas else Delta(0)
        self._texts = [emitted.text]
        self._reasoned = [emitted.reasoning]
        self._calls = [_Call(call.id, [call.arguments]) for call in emitted.tool_calls]
        self._items = {item_id_of(part) for part in emitted.opaque}
        self._tokens = emitted.tokens
        cursor = Cursor.of(prior.cursor)
        self.seq = cursor.seq
        # The last event with a number in this body, and whether numbers rise.
        self._last: dict[str, Any] | None = None
        self._has_numbers = True
        # The event that this body follows, if there was output before it.
        self._after = cursor.seq if prior.deltas else None
        # Whether events may have been lost: the output so far is compared with the whole one.
        self._has_gap = bool(prior.deltas) and cursor.seq is None
        # Calls that are not complete, by the index of their output item.
        self._open = {item: call for item, call in cursor.calls.items() if call < len(self._calls)}
        # What the deltas had of each item, by its index, unless they began before this attempt.
        self._received: dict[int, list[str]] = {}
        self._is_first = not prior.deltas
        self._reason: str | None = None
        # Whether a retrieved response was still running, and its output.
        self.running = False
        self._retrieved: Any = None
        # Whether there is output, of this or an earlier attempt.
        self.begun = bool(prior.deltas)

    @property
    def finished(self) -> bool:
        return self._reason is not None

    @property
    def usage(self) -> Usage | None:
        return self._usage.result(self._tokens)

    @property
    def resumable(self) -> bool:
        """Whether the stream can be resumed after its last event, or be read from its start."""
        return self.seq is not None or not self.begun

    def reconnect(self) -> None:
        """Prepare for another response's body. What was read of an incomplete event is dropped."""
        self._events = EventReader(named=True)
        self.running = False
        self._last, self._after = None, self.seq if self.begun else None
        self._has_gap = self._has_gap or (self.begun and self.seq is None)

    def forget(self) -> None:
        """Prepare for a new response, because the last one failed or is unknown, and had no output."""
        self.reconnect()
        self.run_id, self.seq, self.failure, self._rank, self.status = "", None, None, -1, "queued"
        self.progressed()
        self.done, self._has_numbers = False, True

    def feed(self, data: bytes) -> Iterator[Delta | UpstreamState]:
        return self._take(lambda: self._events.read(data))

    def end(self) -> Iterator[Delta | UpstreamState]:
        return iter(()) if self.done else self._take(self._events.end)

    def _take(self, values: Callable[[], Iterator[Any]]) -> Iterator[Delta | UpstreamState]:
        try:
            for value in values():
                if value is DONE:
                    continue
                yield from self._value(value)
                if self.done:
                    break
        except STREAM_ERRORS as error:
            self._fail(stream_failure(error, NOT_A_STREAM))
        yield from self._flush()

    def _value(self, value: dict[str, Any]) -> Iterator[Delta | UpstreamState]:
        """Take an event, or a whole response."""
        kind = value.get("type")
        if value.get("object") == "response" and kind is None:
            self.seq, self._has_gap = None, self.begun
            yield from self._known(value)
            yield from self._response(value)
            return
        seq = value.get("sequence_number")
        if isinstance(seq, int) and self._is_repeated(seq, value):
            return
        self.progressed()
        if self._part.opaque or len(self._part.logprobs) >= MAX_LOGPROBS:
            yield from self._flush()
        if kind == "error":
            self._fail(error_of(value))
        elif isinstance(kind, str):
            yield from self._event(kind.removeprefix("response."), value)
        elif error := value.get("error"):
            self._fail(error_of(error))
        if not self._has_numbers:
            self.seq = None
        elif isinstance(seq, int):
            self.seq = seq
        elif self._part:
            self.seq = None  # without numbers, the stream cannot be resumed after output

    def _is_repeated(self, seq: int, event: dict[str, Any]) -> bool:
        """Whether an event was received before. One that may end the response is always taken."""
        last, self._last = self._last, event
        if event.get("type") in _LAST:
            return False
        if self._after is not None and seq <= self._after:
            return True
        if self._has_numbers and last is not None and seq <= last["sequence_number"]:
            if event == last:
                return True
            self._has_numbers = False
        return False

    def _event(self, kind: str, value: dict[str, Any]) -> Iterator[Delta | UpstreamState]:
        match kind:
            case "output_text.delta" | "refusal.delta":
                self._receive(value, text := _string(value["delta"]))
                self._part.texts.append(text)
                self._part.tokens += 1
                self._part.refused |= kind == "refusal.delta"
                if self._logprobs and (logprobs := value.get("logprobs")):
                    self._part.logprobs += entries({"content": logprobs})
            case "reasoning_summary_text.delta" | "reasoning_text.delta" if self._reasoning:
                self._receive(value, text := _string(value["delta"]))
                yield from self._reason_with(text)
            case "reasoning_summary_part.added" if self._reasoning and (self._part.reasoning or any(self._reasoned)):
                yield from self._reason_with(PARAGRAPH, tokens=0)
            case "function_call_arguments.delta":
                if (call := self._open.get(_place(value))) is not None:
                    self._read_arguments(call, arguments_text(value["delta"]))
            case "function_call_arguments.done":
                self._complete_arguments(_place(value), value.get("arguments"))
            case "output_item.added":
                self._begin_item(_place(value), value["item"])
            case "output_text.done" | "refusal.done":
                self._complete_text(value, str(value.get("text") or value.get("refusal") or ""), whole=False)
            case "output_item.done":
                yield from self._complete_item(value, value["item"])
                self._end_item(_place(value), value["item"])
            case _ if isinstance(response := value.get("response"), Mapping):
                yield from self._known(response)
                if kind in _ENDED:
                    yield from self._response(response)

    def _receive(self, event: Mapping[str, Any], text: str) -> None:
        """Note a delta of an item, unless its first deltas may have come before this attempt."""
        index = _place(event)
        if self._is_first or index in self._received:
            self._received.setdefault(index, []).append(text)

    def _complete_item(self, event: Mapping[str, Any], item: Mapping[str, Any]) -> Iterator[Delta]:
        """Emit what the deltas lacked of a message, or reasoning that had none."""
        if text := _text_of(item):
            self._complete_text(event, text)
        elif self._reasoning and (reasoning := _reasoning_of(item)) and self._lacks(event):
            self._receive(event, reasoning)
            is_first = not (self._part.reasoning or any(self._reasoned))
            yield from self._reason_with(reasoning if is_first else PARAGRAPH + reasoning)

    def _complete_text(self, event: Mapping[str, Any], text: str, *, whole: bool = True) -> None:
        """Emit what the deltas lacked of a text: of a `whole` item, or of a part of one that had no deltas."""
        sent = "".join(self._received.get(_place(event), ()))
        if (
            not text.startswith(sent)
            or len(text) == len(sent)
            or (sent and not whole)
            or not (sent or self._lacks(event))
        ):
            return
        self._receive(event, text[len(sent) :])
        self._part.texts.append(text[len(sent) :])
        self._part.tokens += 1

    def _lacks(self, event: Mapping[str, Any]) -> bool:
        """Whether no delta of an item has come, neither here nor before this attempt."""
        index = _place(event)
        return not self._received.get(index) and (self._is_first or index in self._received)

    def _known(self, response: Mapping[str, Any]) -> Iterator[UpstreamState]:
        """The state of a response, when its id is first seen. One that cannot be in a path cannot be resumed either."""
        response_id = response.get("id")
        if not self.run_id and isinstance(response_id, str) and _RESPONSE_ID.fullmatch(response_id):
            self.run_id = response_id
            yield UpstreamState(response_id)
        if isinstance(status := response.get("status"), str):
            self.note_status(status)

    def _reason_with(self, text: str, tokens: int = 1) -> Iterator[Delta]:
        """Add reasoning, which precedes the text and the calls of its delta."""
        if self._part.answered:
            yield from self._flush()
        self._part.reasoning.append(text)
        self._part.tokens += tokens

    def _begin_item(self, index: int, item: Mapping[str, Any]) -> None:
        self._received.setdefault(index, [])
        if item.get("type") != "function_call" or index in self._open:
            return
        self._open[index] = len(self._calls)
        self._calls.append(_Call(str(item["call_id"]), []))
        self._part.calls.append(CallDelta(self._open[index], str(item["call_id"]), str(item["name"])))
        self._read_arguments(self._open[index], arguments_text(item.get("arguments")))

    def _read_arguments(self, call: int, fragment: str) -> None:
        known = self._calls[call]
        self._add_arguments(call, fragment if any(known.arguments) else known.reader.add(fragment))

    def _add_arguments(self, call: int, arguments: str) -> None:
        if arguments:
            self._calls[call].arguments.append(arguments)
            self._part.calls.append(CallDelta(call, arguments=arguments))
            self._part.tokens += 1

    def _complete_arguments(self, index: int, arguments: Any) -> None:
        """Emit what the deltas lacked of a call's arguments."""
        if (call := self._open.get(index)) is not None and (whole := arguments_text(arguments)):
            sent = "".join(self._calls[call].arguments)
            if not sent:
                self._add_arguments(call, plain_arguments(whole))
            elif whole.startswith(sent):
                self._add_arguments(call, whole[len(sent) :])

    def _fill_in(self, call: int) -> None:
        """Complete a call without arguments, which OpenAI sends as an empty text, or with those that were held back."""
        if not "".join(self._calls[call].arguments).strip():
            self._add_arguments(call, self._calls[call].reader.end() or NO_ARGUMENTS)

    def _end_item(self, index: int, item: Mapping[str, Any], *, is_cut: bool = False) -> None:
        """`is_cut`: the response is incomplete, so that arguments that are missing may not be complete."""
        match item.get("type"):
            case "function_call":
                if index not in self._open and all(call.id != item.get("call_id") for call in self._calls):
                    self._begin_item(index, item)
                self._complete_arguments(index, item.get("arguments"))
                call = self._open.pop(index, None)
                if call is not None and not is_cut and item.get("status") != "incomplete":
                    self._fill_in(call)
            case "reasoning" if self._provider is not None and item.get("id") not in self._items:
                if (part := opaque_part(item, self._provider)) is not None:
                    self._items.add(item_id_of(part))
                    self._part.opaque.append(part)

    def _response(self, response: Mapping[str, Any]) -> Iterator[Delta]:
        """Take a response with all its output."""
        status = response.get("status")
        self.running = status in _RANKS
        if self.running:
            if (output := response.get("output")) != self._retrieved:
                self._retrieved = output
                self.progressed()
            return
        self._usage.add(response.get("usage"), response.get("service_tier"))
        if status == "failed":
            self._fail(error_of(response.get("error") or ""))
            return
        if status == "cancelled":
            self._fail(self.giving_up or UpstreamError(CANCELLED))
            return
        output = [item for item in response.get("output") or () if isinstance(item, Mapping)]
        yield from self._rest(output, is_cut=status == "incomplete")
        self._part.refused |= any(map(_has_refusal, output))
        details = response.get("incomplete_details") or {}
        if status == "incomplete":
            self._reason = "content_filter" if details.get("reason") == "content_filter" else "length"
        else:
            self._reason = "tool_calls" if self._calls else "stop"
        self._part.finish_reason = self._reason
        self.done = True

    def _rest(self, output: list[Mapping[str, Any]], *, is_cut: bool) -> Iterator[Delta]:
        """Emit what the deltas lacked of the whole output.

        Raises:
            RunLost: something else was emitted.
        """
        if self._reasoning:
            whole = PARAGRAPH.join(filter(None, map(_reasoning_of, output)))
            sent = "".join([*self._reasoned, *self._part.reasoning])
            if not sent or whole.startswith(sent):
                yield from self._reason_with(whole[len(sent) :], tokens=int(len(whole) > len(sent)))
        for index, item in enumerate(output):
            if item.get("type") == "reasoning":
                self._end_item(index, item)
        if self._part.opaque:
            yield from self._flush()
        whole, sent = "".join(map(_text_of, output)), "".join([*self._texts, *self._part.texts])
        if whole.startswith(sent):
            self._part.texts.append(whole[len(sent) :])
            self._part.tokens += len(whole) > len(sent)
        elif self._has_gap and whole:
            raise RunLost(CHANGED)
        for index, item in enumerate(output):
            if item.get("type") == "function_call":
                known = next((at for at, call in enumerate(self._calls) if call.id == item.get("call_id")), None)
                if known is not None:
                    self._open[index] = known
                self._end_item(index, item, is_cut=is_cut)
        if not is_cut:
            for call in self._open.values():
                self._fill_in(call)

    def _flush(self) -> Iterator[Delta]:
        """The output since the last delta."""
        part = self._part
        if not part:
            return
        self._part = _Part()
        self._texts += part.texts
        self._reasoned += part.reasoning
        delta = Delta(
            0,
            "".join(part.texts),
            (),
            part.finish_reason,
            max(part.tokens, len(part.logprobs)),
            "".join(part.reasoning),
            joined_calls(part.calls) if part.calls else (),
            tuple(part.logprobs),
            opaque=tuple(part.opaque),
            cursor=Cursor(self.seq, self._open).encoded(),
            refused=part.refused,
        )
        self._tokens += delta.unidentified
        self.begun = True
        yield delta


class _Call:
    """A function call: its id, and its arguments so far. `reader` reads them if they begin."""

    __slots__ = ("arguments", "id", "reader")

    def __init__(self, call_id: str | None, arguments: list[str]) -> None:
        self.id = call_id
        self.arguments = arguments
        self.reader = ArgumentReader()


class _Part:
    """The output of some events. Each delta event counts as one token unless it has more log probabilities."""

    __slots__ = ("calls", "finish_reason", "logprobs", "opaque", "reasoning", "refused", "texts", "tokens")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[CallDelta] = []
        self.logprobs: list[bytes] = []
        self.opaque: list[OpaquePart] = []
        self.finish_reason: str | None = None
        self.tokens = 0
        self.refused = False

    @property
    def answered(self) -> bool:
        return bool(self.texts or self.calls)

    def __bool__(self) -> bool:
        return bool(self.texts or self.reasoning or self.calls or self.logprobs or self.opaque or self.finish_reason)


def _string(value: Any) -> str:
    """A text in an event; null is an empty one.

    Raises:
        TypeError: it is no text.
    """
    if value is None:
        return ""
    if value.__class__ is not str:
        raise TypeError
    text: str = value
    return text


def _place(event: Mapping[str, Any]) -> int:
    """The index of the output item that an event belongs to. Some servers, which have one, omit it."""
    index = event.get("output_index")
    return 0 if index is None else int(index)


def _text_of(item: Mapping[str, Any]) -> str:
    """The text of an output item, if it is a message."""
    if item.get("type") != "message":
        return ""
    parts = [part for part in item.get("content") or () if isinstance(part, Mapping)]
    return "".join(str(part.get(_TEXT_PARTS.get(str(part.get("type")), "")) or "") for part in parts)


def _has_refusal(item: Mapping[str, Any]) -> bool:
    """Whether an output item is a message in which the model refuses to answer."""
    parts = item.get("content") if item.get("type") == "message" else None
    return any(isinstance(part, Mapping) and part.get("type") == "refusal" for part in parts or ())


def _reasoning_of(item: Mapping[str, Any]) -> str:
    """The reasoning of an output item, if it is a reasoning item."""
    if item.get("type") != "reasoning":
        return ""
    content = "".join(str(part.get("text") or "") for part in item.get("content") or ())
    return content or PARAGRAPH.join(str(part.get("text") or "") for part in item.get("summary") or ())
