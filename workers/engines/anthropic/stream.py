"""Parses Anthropic's event stream into deltas.

A message is a list of content blocks, each with its own deltas. Under load one read returns many events, which become
one delta as long as their order can be kept. Unknown events, blocks and deltas are skipped, as the API's versioning
policy requires. https://platform.claude.com/docs/en/build-with-claude/streaming
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

from shared.domain.events import CallDelta, Delta, joined_calls
from shared.domain.job import Usage
from shared.domain.opaque import REDACTED_THINKING, THINKING, OpaquePart
from workers.engines.anthropic.continuation import FROM_START, Continuation
from workers.engines.anthropic.opaque import thinking_part
from workers.engines.anthropic.usage import UsageReader
from workers.engines.base import UpstreamError
from workers.engines.upstream.call_arguments import ArgumentReader, arguments_text, plain_arguments
from workers.engines.upstream.error_body import error_of, is_error
from workers.engines.upstream.errors import ErrorBody
from workers.engines.upstream.finish_reasons import (
    INTERRUPTED,
    TRUNCATED,
    UNFINISHED,
    finish_reason_of,
    interruption,
    kind_of,
)
from workers.engines.upstream.sse import DONE, EventReader
from workers.engines.upstream.stream_errors import STREAM_ERRORS, ReportedError, stream_failure

NOT_A_STREAM = "The upstream sent something that is not Anthropic's stream."
# The order in which readers of a delta present its parts.
_REASONING, _TEXT, _CALLS, _OPAQUE = range(4)


class StreamParser:
    """The parser of one answer; an implementation of `workers.engines.upstream.engine.ReplyParser`."""

    def __init__(self, so_far: Continuation = FROM_START) -> None:
        """`so_far`: what the answer continues after."""
        self._so_far = so_far
        # White space that the answer has already, and that the model may generate again.
        self._space = so_far.space
        self._events = EventReader(named=True)
        self._usage = UsageReader()
        # The open blocks by their index in the message.
        self._blocks: dict[int, _Block] = {}
        # Blocks of thinking that ended without a signature.
        self._unsigned: dict[int, _Block] = {}
        self._calls = 0
        self._ids: set[str] = set()
        self._reason: str | None = None
        self._stop_sequence: str | None = None
        self._tokens = 0
        self._ended = False
        # Whether the message has ended without a reason, which may follow.
        self._stopped = False
        self.begun = False
        self.done = False
        self.failure: UpstreamError | ErrorBody | None = None

    @property
    def finished(self) -> bool:
        """Whether the reason why the message ends is known, or the message is complete without one."""
        return self._reason is not None or self._stopped

    @property
    def usage(self) -> Usage | None:
        """The usage that the upstream reported; output tokens that are missing in it were counted here."""
        usage = self._usage.result(self._tokens)
        if usage is None or not (tokens := self._so_far.tokens):
            return usage
        # As if the answer had not been interrupted: its first part was in the prompt.
        prompt = max(usage.prompt_tokens - tokens, usage.cached_tokens)
        return replace(usage, prompt_tokens=prompt, completion_tokens=usage.completion_tokens + tokens)

    def feed(self, data: bytes) -> Iterator[Delta]:
        """Parse the bytes of one read; yields one delta, or several if one would change the order of their parts.

        An error from the upstream, or data that is not a stream, sets `done` and `failure`.
        """
        return self._take(self._events.read(data))

    def end(self) -> Iterator[Delta]:
        """Parse what is left at the end of the body, and end the message if its reason is known."""
        return self._take(iter(()) if self.done else self._events.end(), at_end=True)

    def _take(self, values: Iterator[Any], *, at_end: bool = False) -> Iterator[Delta]:
        parts: list[_Part] = []
        try:
            for value in values:
                if value is DONE:
                    self._stop_message(parts)
                elif value is not None:
                    self._event(value, parts)
                if self.done:
                    break
        except STREAM_ERRORS as error:
            self.failure, self.done = stream_failure(error, NOT_A_STREAM), True
        if (at_end or self.done) and self.finished and not self._ended:
            self._end_message(parts)
        for part in parts:
            if not (part.tokens or part.calls or part.opaque or part.reason):
                continue
            self.begun = True
            self._tokens += part.tokens
            yield part.delta()

    def _event(self, event: dict[str, Any], parts: list[_Part]) -> None:
        match event.get("type"):
            case "content_block_delta":
                self._delta(_index(event), _member(event, "delta"), parts)
            case "content_block_start":
                self._start(_index(event), _member(event, "content_block"), parts)
            case "content_block_stop":
                if (block := self._blocks.pop(index := _index(event), None)) is not None:
                    self._stop(block, parts)
                    if block.thinking and not block.signature:
                        self._unsigned[index] = block
            case "message_start":
                self._usage.add(_member(event, "message").get("usage"))
            case "message_delta":
                self._usage.add(event.get("usage"))
                self._set_reason(_member(event, "delta"))
                self.done = self._stopped and self._reason is not None
            case "message_stop":
                self._stop_message(parts)
            case "message":  # the upstream did not stream
                self._whole(event, parts)
            case _:
                if event.get("error") or is_error(event):
                    raise ReportedError(error_of(event))

    def _stop_message(self, parts: list[_Part]) -> None:
        """End the message. If its reason is missing, it is complete unless it has no output or a call is cut."""
        is_cut = any(block.call is not None for block in self._blocks.values())
        self._stopped = self._reason is None and bool(self.begun or parts) and not is_cut
        self.done = not self._stopped

    def _whole(self, message: dict[str, Any], parts: list[_Part]) -> None:
        self._usage.add(message.get("usage"))
        for index, block in enumerate(message["content"]):
            self._start(index, block, parts)
            self._stop(self._blocks.pop(index), parts)
        self._set_reason(message)
        self._reason = self._reason or "end_turn"
        self.done = True

    def _set_reason(self, delta: dict[str, Any]) -> None:
        if (reason := delta.get("stop_reason")) and (kind := kind_of(reason)) not in UNFINISHED:
            if kind in INTERRUPTED:
                raise ReportedError(interruption(kind, reason, delta.get("error")))
            self._reason = kind
        if isinstance(sequence := delta.get("stop_sequence"), str):
            self._stop_sequence = sequence

    def _start(self, index: int, content: dict[str, Any], parts: list[_Part]) -> None:
        kind = content.get("type")
        block = _Block("text" if kind == "output_text" else str(kind))
        known, call_id = self._blocks.get(index), str(content.get("id") or "")
        if known is not None:
            if known.call is not None and call_id and known.call_id == call_id:  # the event was repeated
                return
            self._stop(known, parts)  # the event of its end was lost
        self._emit_signed(parts)
        if kind == "tool_use":
            block.call, self._calls = self._calls, self._calls + 1
            block.call_id, block.input = call_id, content.get("input")
            _part(parts, _CALLS).calls.append(
                CallDelta(block.call, self._unique_id(call_id), str(content.get("name") or ""))
            )
        elif block.kind == "text":
            self._text(content.get("text"), parts)
        elif kind == THINKING:
            block.sign(content.get("signature"))
            self._think(block, content.get("thinking"), parts)
        elif kind == REDACTED_THINKING:
            block.data = str(content.get("data") or "")
        self._blocks[index] = block

    def _delta(self, index: int, delta: dict[str, Any], parts: list[_Part]) -> None:
        block, kind = self._blocks.get(index), delta.get("type")
        if block is None:
            if kind == "signature_delta" and (unsigned := self._unsigned.get(index)) is not None:
                unsigned.sign(delta["signature"])
                return
            block = self._blocks[index] = _Block(_KIND_OF.get(str(kind), ""))  # its start was lost
        if kind == "text_delta":
            if block.kind in _GENERATED:
                self._text(delta["text"], parts)
        elif kind == "input_json_delta":
            if block.call is not None and (arguments := delta["partial_json"]):
                text = arguments_text(arguments)
                block.filled = block.filled or not text.isspace()
                self._add_arguments(block.call, block.arguments.add(text), parts)
        elif kind == "thinking_delta" and block.kind in _GENERATED:
            self._think(block, delta["thinking"], parts)
        elif kind == "signature_delta" and block.kind in _GENERATED:
            block.sign(delta["signature"])

    def _text(self, text: Any, parts: list[_Part]) -> None:
        while self._space and text and text.startswith(self._space[0]):
            text, self._space = text[1:], self._space[1:]
        if text:
            self._space = ""
            _part(parts, _TEXT).add(text)

    def _think(self, block: _Block, text: Any, parts: list[_Part]) -> None:
        if text:
            block.thinking.append(text)
            _part(parts, _REASONING).think(text)

    def _stop(self, block: _Block, parts: list[_Part]) -> None:
        if block.call is not None:
            text = block.arguments.end() if block.filled else plain_arguments(arguments_text(block.input or None))
            self._add_arguments(block.call, text, parts)
        elif block.signature:
            part = thinking_part(THINKING, thinking="".join(block.thinking), signature=block.signature)
            _part(parts, _OPAQUE).opaque.append(part)
        elif block.kind == REDACTED_THINKING and block.data:
            _part(parts, _OPAQUE).opaque.append(thinking_part(REDACTED_THINKING, data=block.data))

    def _emit_signed(self, parts: list[_Part]) -> None:
        """Emit the thinking whose signature came after its end."""
        for index, block in list(self._unsigned.items()):
            if block.signature:
                self._stop(self._unsigned.pop(index), parts)

    def _add_arguments(self, call: int, text: str, parts: list[_Part]) -> None:
        if text:
            _part(parts, _CALLS).add_call(CallDelta(call, arguments=text))

    def _end_message(self, parts: list[_Part]) -> None:
        """Emit the finish reason. A call that was cut at the limit of tokens or by a refusal stays as it is."""
        self._ended = True
        self._emit_signed(parts)
        reason = finish_reason_of(self._reason or "")
        for block in self._blocks.values():
            if reason not in TRUNCATED:
                self._stop(block, parts)
            elif block.call is not None:
                self._add_arguments(block.call, block.arguments.end(), parts)
        if reason == "stop" and self._calls and self._stop_sequence is None:
            reason = "tool_calls"
        elif reason == "tool_calls" and not self._calls:
            reason = "stop"  # clients would wait for a call, or ask again
        part = parts[-1] if parts else _part(parts, _CALLS)
        part.reason, part.stop_reason = reason, self._stop_sequence

    def _unique_id(self, call_id: str) -> str:
        unique = call_id if call_id and call_id not in self._ids else f"toolu_{uuid4().hex[:24]}"
        self._ids.add(unique)
        return unique


# Kinds of blocks with text or thinking: the kinds of their deltas say which, since gateways mix them.
_GENERATED = ("text", THINKING)
# The blocks of deltas whose start was lost. A tool call without its name is of no use.
_KIND_OF = {"text_delta": "text", "thinking_delta": THINKING}


class _Block:
    """An open content block. `call` is the number of a tool call, and `input` its arguments if they came at once.

    `thinking` and `signature`, or `data` if it is encrypted, are what the upstream needs back of its thinking.
    """

    __slots__ = ("arguments", "call", "call_id", "data", "filled", "input", "kind", "signature", "thinking")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.thinking: list[str] = []
        self.signature = self.data = ""
        self.call: int | None = None
        self.call_id = ""
        self.input: Any = None
        self.filled = False
        self.arguments = ArgumentReader()

    def sign(self, piece: Any) -> None:
        """Add a piece of the signature; some servers repeat what came before."""
        text = str(piece or "")
        self.signature = text if text.startswith(self.signature) else self.signature + text


class _Part:
    """Output that becomes one delta. Each fragment counts as one token."""

    __slots__ = ("calls", "opaque", "order", "reason", "reasoning", "stop_reason", "texts", "tokens")

    def __init__(self) -> None:
        self.order = _REASONING
        self.texts: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[CallDelta] = []
        self.opaque: list[OpaquePart] = []
        self.tokens = 0
        self.reason: str | None = None
        self.stop_reason: str | None = None

    def add(self, text: Any) -> None:
        self._append(self.texts, text)

    def think(self, text: Any) -> None:
        self._append(self.reasoning, text)

    def _append(self, texts: list[str], text: Any) -> None:
        if text.__class__ is not str:
            raise TypeError
        texts.append(text)
        self.tokens += 1

    def add_call(self, call: CallDelta) -> None:
        self.calls.append(call)
        self.tokens += 1

    def delta(self) -> Delta:
        return Delta(
            0,
            "".join(self.texts),
            (),
            self.reason,
            self.tokens,
            "".join(self.reasoning),
            joined_calls(self.calls) if self.calls else (),
            (),
            self.stop_reason,
            opaque=tuple(self.opaque),
        )


def _part(parts: list[_Part], order: int) -> _Part:
    """The part that content of this kind is appended to: a new one if readers would present it too early."""
    if not parts or parts[-1].order > order:
        parts.append(_Part())
    parts[-1].order = order
    return parts[-1]


def _index(event: dict[str, Any]) -> int:
    index = event.get("index")
    return index if index.__class__ is int else 0 if index is None else int(index)


def _member(event: dict[str, Any], name: str) -> Any:
    """A member that is an object; null stands for an empty one."""
    value = event[name]
    return {} if value is None else value
