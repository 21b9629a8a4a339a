"""Parses OpenAI's event stream into deltas, in the dialects of the servers that offer it.

Under load one read returns many events; those of one choice become one delta. Text, tool calls and finish reasons are
read strictly where they are ambiguous. Other malformed parts never fail an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import chain
from typing import Any

from shared.domain.events import CallDelta, Delta, joined_calls
from shared.domain.job import Usage
from shared.domain.opaque import OpaquePart
from workers.engines.base import UpstreamError
from workers.engines.upstream.chat.logprobs import entries
from workers.engines.upstream.chat.opaque import OpaqueReader
from workers.engines.upstream.chat.tool_calls import ToolCalls
from workers.engines.upstream.error_body import error_of, is_blank, is_error, is_error_document
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
from workers.engines.upstream.usage import UsageReader

# A delta has at most so many log probabilities, so that a large chunk is not converted in one step.
MAX_LOGPROBS = 64
NOT_A_STREAM = "The upstream sent something that is not OpenAI's stream."
TOO_LARGE = (
    "The upstream sent too much in one event: at most 2 MiB are read at once, 1 MiB if they are mostly log"
    " probabilities. Let it stream its answers."
)
_TEXT_PARTS = ("text", "output_text", "refusal")


class StreamParser:
    """The parser of one answer; an implementation of `workers.engines.upstream.exchange.ReplyParser`."""

    def __init__(
        self,
        choices: int,
        *,
        logprobs: bool = True,
        reasoning: bool = True,
        named_tool: bool = False,
        tools: Collection[str] = (),
        thoughts_apart: bool = False,
        opaque: Callable[[], OpaqueReader] | None = None,
    ) -> None:
        """`logprobs`, `reasoning`: whether they are read. `named_tool`: whether `tool_choice` names one; OpenAI's
        finish reason is "stop" then. `tools`: the names of the tools. `thoughts_apart`: as in `Preset`. `opaque`
        creates a choice's reader."""
        self._choices = choices
        self._logprobs = logprobs
        self._reasoning = reasoning
        self._new_opaque = opaque
        self._opaque: dict[int, OpaqueReader] = {}
        self._named_tool = named_tool
        self._tools = tools
        # Choices that have not ended, and the reasons why choices end. Some servers send text after the finish
        # reason, so a choice ends with the stream.
        self._open = set(range(choices))
        self._reasons: dict[int, tuple[str, int | str | None]] = {}
        # Choices with output after their finish reason.
        self._resumed: set[int] = set()
        self._events = EventReader()
        self._calls: dict[int, ToolCalls] = {}
        self._usage = UsageReader(thoughts_apart=thoughts_apart)
        # The index that the only choice has, if it is not 0.
        self._shown_index = 0
        self._tokens = 0
        # Whether output came as a `message`, in whole or in pieces, and not as deltas.
        self._messages = False
        self.begun = False
        self.done = False
        self.failure: UpstreamError | ErrorBody | None = None

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish reason, and no output after it. It may not have been returned yet."""
        return len(self._reasons) == self._choices and not self._resumed

    @property
    def usage(self) -> Usage | None:
        """The usage that the upstream reported; what is missing in it was counted here."""
        return self._usage.result(self._tokens)

    def feed(self, data: bytes) -> Iterator[Delta]:
        """Parse the bytes of one read; yields one delta for each choice in them, or more if there are many logprobs.

        An error from the upstream, or data that is not a stream, sets `done` and `failure`.
        """
        return self._take(self._events.read(data))

    def end(self) -> Iterator[Delta]:
        """Parse what is left at the end of the body, and end the choices that have their finish reason."""
        return self._take(iter(()) if self.done else self._events.end(), at_end=True)

    def _take(self, values: Iterator[Any], *, at_end: bool = False) -> Iterator[Delta]:
        parts: dict[int, _Part] = {}
        try:
            for value in values:
                if value.__class__ is dict:
                    self._chunk(value, parts)
                elif value is DONE or value == "[DONE]":
                    self._finish(parts)
                    break
                elif value is not None:
                    for chunk in value if isinstance(value, list) and value else (value,):
                        self._chunk(chunk, parts)
        except STREAM_ERRORS as error:
            self.failure, self.done = stream_failure(error, NOT_A_STREAM, TOO_LARGE), True
        if at_end or self.done:
            self._close_finished(parts)
        for index, part in parts.items():
            if not (part.chunks or part.logprobs or part.reason or part.opaque):
                continue
            self.begun = True
            if not self._reasoning:
                part.reasoning.clear()
            for delta in part.deltas(index) if part.logprobs else (part.delta(index),):
                self._tokens += delta.unidentified
                yield delta

    def _finish(self, parts: dict[int, _Part]) -> None:
        """The upstream says that it is done: choices without a finish reason are complete if there was any output."""
        if parts or self.begun:
            for index in range(self._choices):
                self._reasons.setdefault(index, ("stop", None))
            self._resumed.clear()
        self.done = True

    def _chunk(self, chunk: Any, parts: dict[int, _Part]) -> None:
        choices = chunk.get("choices")
        if (error := chunk.get("error")) and not (choices and is_blank(error)):
            raise ReportedError(error_of(chunk if isinstance(error, str) else error))
        if usage := chunk.get("usage"):
            self._usage.add(usage, chunk.get("service_tier"))
        if not choices:
            if is_error(chunk) or (self._events.bare and is_error_document(chunk)):
                raise ReportedError(error_of(chunk))
            return
        for position, choice in enumerate((choices,) if isinstance(choices, dict) else choices):
            index = choice.get("index")
            if index.__class__ is not int:
                index = _choice_index(index, position)
            content = choice.get("delta")
            whole = content is None and self._events.bare
            if content is None:
                content = self._message(choice, index, parts)
            text = content.get("content") or choice.get("text")
            is_refusal = not text and bool(text := content.get("refusal"))
            reasoning = content.get("reasoning") or content.get("reasoning_content")
            calls = content.get("tool_calls") or content.get("function_call")
            reason = choice.get("finish_reason") or choice.get("finishReason")
            if whole and not reason:
                reason = "stop"
            logprobs = choice.get("logprobs") if self._logprobs else None
            opaque = self._opaque_parts(index, content) if self._new_opaque is not None else None
            if not (text or reasoning or calls or reason or logprobs or opaque):
                if usage := choice.get("usage"):
                    self._usage.add(usage)
                continue
            if not 0 <= index < self._choices:
                has_output = bool(text or reasoning or (calls and 0 in self._calls))
                index = self._only_choice(index, has_output=has_output, is_known=bool(parts))
            if (part := parts.get(index)) is None:
                part = parts[index] = _Part()
            if reasoning:
                part.add(reasoning, part.reasoning)
            if opaque:
                part.opaque += opaque
            if text:
                part.add(text, part.texts)
                part.refused = part.refused or is_refusal
            if calls:
                known = self._calls.setdefault(index, ToolCalls(self._tools))
                part.add_calls(known.add(calls))
                self._add_extras(index, known, part)
            if logprobs:
                part.logprobs.append(logprobs)
            if self._reasons and not reason and index in self._reasons:
                self._resumed.add(index)
            if reason:
                for holder in (choice, chunk.get("x_groq")):
                    if isinstance(holder, dict) and (usage := holder.get("usage")):
                        self._usage.add(usage)
                kind = kind_of(reason)
                if kind in INTERRUPTED:
                    raise ReportedError(interruption(kind, reason, choice.get("error")))
                if kind not in UNFINISHED:
                    self._resumed.discard(index)
                    self._end_choice(index, finish_reason_of(kind), choice.get("stop_reason"))

    def _only_choice(self, index: int, *, has_output: bool, is_known: bool) -> int:
        """The index of the only choice, which has another one in some chunks, such as the last, or that with its calls.

        Raises:
            ValueError: it may be another choice.
        """
        if self._choices > 1 or index < 0 or (has_output and index != self._shown_index and (self.begun or is_known)):
            raise ValueError(index)
        if has_output:
            self._shown_index = index
        return 0

    def _end_choice(self, index: int, reason: str, stop_reason: Any) -> None:
        """Note a finish reason. If there are several, the last one other than "stop" is used."""
        known, known_stop = self._reasons.get(index, (reason, None))
        if not isinstance(stop_reason, (int, str)) or isinstance(stop_reason, bool):
            stop_reason = known_stop
        self._reasons[index] = known if reason == "stop" else reason, stop_reason

    def _opaque_parts(self, index: int, content: dict[str, Any]) -> list[OpaquePart]:
        assert self._new_opaque is not None
        if (reader := self._opaque.get(index)) is None:
            reader = self._opaque[index] = self._new_opaque()
        return reader.add(content)

    def _add_extras(self, index: int, calls: ToolCalls, part: _Part) -> None:
        for call_id, extra in calls.take_extras():
            if (reader := self._opaque.get(index)) is not None:
                part.opaque += reader.of_call(call_id, extra)

    def _message(self, choice: dict[str, Any], index: int, parts: dict[int, _Part]) -> Any:
        """The content of a choice without a delta. A message that follows deltas repeats them."""
        message = choice.get("message")
        if not message:
            return choice
        if not self._messages and (self.begun or index in parts):
            return {}
        self._messages = True
        return message

    def _close_finished(self, parts: dict[int, _Part]) -> None:
        """End the choices that have their finish reason."""
        for index in sorted(self._open & self._reasons.keys() - self._resumed):
            reason, stop_reason = self._reasons[index]
            if (part := parts.get(index)) is None:
                part = parts[index] = _Part()
            if calls := self._calls.get(index):
                part.calls += calls.close(truncated=reason in TRUNCATED)
                self._add_extras(index, calls, part)
            if calls is None or not calls.emitted:
                reason = "stop" if reason == "tool_calls" else reason  # clients would wait for a call, or ask again
            elif reason == "stop" and not self._named_tool:
                reason = "tool_calls"
            if (reader := self._opaque.get(index)) is not None:
                part.opaque += reader.close()
            part.reason, part.stop_reason = reason, stop_reason
            self._open.discard(index)


class _Part:
    """The content of one choice in one read. A chunk counts as one token unless there are more logprobs."""

    __slots__ = ("calls", "chunks", "logprobs", "opaque", "reason", "reasoning", "refused", "stop_reason", "texts")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[CallDelta] = []
        self.logprobs: list[Any] = []
        self.opaque: list[OpaquePart] = []
        self.chunks = 0
        self.reason: str | None = None
        self.stop_reason: int | str | None = None
        self.refused = False

    def add(self, text: Any, texts: list[str]) -> None:
        if text.__class__ is not str:
            for is_thought, piece in _pieces(text):
                (self.reasoning if is_thought else texts).append(piece)
            self.refused = self.refused or _has_refusal(text)
        else:
            texts.append(text)
        self.chunks += 1

    def add_calls(self, calls: list[CallDelta]) -> None:
        self.calls += calls
        self.chunks += 1

    def delta(self, index: int) -> Delta:
        """The content without log probabilities."""
        return Delta(
            index,
            "".join(self.texts),
            (),
            self.reason,
            self.chunks,
            "".join(self.reasoning),
            joined_calls(self.calls) if self.calls else (),
            (),
            self.stop_reason,
            opaque=tuple(self.opaque),
            refused=self.refused,
        )

    def deltas(self, index: int) -> Iterator[Delta]:
        """Divide many log probabilities among several deltas; the last has the calls and the finish reason."""
        last = self.delta(index)
        batch: list[bytes] = []
        for entry in chain.from_iterable(map(entries, self.logprobs)):
            if len(batch) == MAX_LOGPROBS:
                yield Delta(index, last.text, unidentified=len(batch), reasoning=last.reasoning, logprobs=tuple(batch))
                last.text, last.reasoning, last.unidentified = "", "", last.unidentified - len(batch)
                batch = []
            batch.append(entry)
        last.logprobs, last.unidentified = tuple(batch), max(last.unidentified, len(batch))
        yield last


def _pieces(content: Any) -> Iterator[tuple[bool, str]]:
    """The texts of content in parts, and whether each is reasoning. Parts without text (references) are skipped.

    Raises:
        TypeError: it is neither text nor parts.
    """
    if not isinstance(content, (list, dict)):
        raise TypeError
    for part in [content] if isinstance(content, dict) else content:
        if isinstance(part, str):
            yield False, part
            continue
        kind = part.get("type", "text")
        is_thought = kind in ("thinking", "reasoning")
        value = next((part[name] for name in (kind, "text", "content") if part.get(name) is not None), None)
        if value is None or not (is_thought or kind in _TEXT_PARTS):
            continue
        if isinstance(value, str):
            yield is_thought, value
        else:
            for _, text in _pieces(value):
                yield is_thought, text


def _has_refusal(content: Any) -> bool:
    """Whether one of the parts of a content is a refusal."""
    parts = [content] if isinstance(content, dict) else content
    return any(isinstance(part, dict) and part.get("type") == "refusal" for part in parts)


def _choice_index(index: Any, position: int) -> int:
    """The index of a choice, which some servers omit or send as text.

    Raises:
        ValueError, TypeError: it is no number.
    """
    return position if index is None else int(index)
