"""Parses OpenAI's event stream into deltas.

Under load one read returns many events; those of one choice become one delta.
"""

from __future__ import annotations

from typing import Any

import orjson

from shared.domain.events import CallDelta, Delta, joined_calls
from shared.domain.job import Usage
from shared.domain.logprobs import Candidate, candidate, encode_entry
from workers.engines.base import UpstreamError
from workers.engines.upstream.errors import ErrorBody

MAX_LINE_BYTES = 1 << 20
MAX_MESSAGE = 500
# Any other finish reason becomes "stop".
FINISH_REASONS = {"length": "length", "tool_calls": "tool_calls", "function_call": "tool_calls"}
NOT_A_STREAM = "The upstream sent something that is not OpenAI's stream."


class StreamParser:
    """The parser of one answer; an implementation of `workers.engines.upstream.engine.Reply`."""

    def __init__(self, choices: int) -> None:
        self._choices = choices
        self._open = set(range(choices))
        self._rest = b""
        self._calls: dict[int, list[str]] = {}
        self.begun = False
        self.done = False
        self.usage: Usage | None = None
        self.failure: UpstreamError | None = None

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish reason."""
        return not self._open

    def feed(self, data: bytes) -> list[Delta]:
        """Parse the bytes of one read; returns one delta for each choice in them.

        An error from the upstream, or data that is not a stream, sets `done` and `failure`.
        """
        if self._rest:
            data = self._rest + data
        *lines, self._rest = data.split(b"\n")
        parts: dict[int, _Part] = {}
        try:
            for line in lines:
                if line.startswith(b"data:"):
                    payload = line[5:].strip()
                    if payload == b"[DONE]":
                        self.done = True
                        break
                    self._parse_chunk(orjson.loads(payload), parts)
        except UpstreamError as error:
            self.failure, self.done = error, True
        except (ValueError, TypeError, KeyError, AttributeError):
            self.failure, self.done = UpstreamError(NOT_A_STREAM), True
        if len(self._rest) > MAX_LINE_BYTES:
            self.failure, self.done = UpstreamError(NOT_A_STREAM), True
        if parts:
            self.begun = True
        return [part.delta(index) for index, part in parts.items()]

    def _parse_chunk(self, chunk: dict[str, Any], parts: dict[int, _Part]) -> None:
        if error := chunk.get("error"):
            raise UpstreamError(f"The upstream failed: {_message(error) or 'no reason was given'}")
        if usage := chunk.get("usage"):
            self.usage = _usage(usage)
        for choice in chunk.get("choices") or ():
            index = choice.get("index", 0)
            delta = choice.get("delta")
            content = choice if delta is None else delta
            text = choice.get("text") if delta is None else delta.get("content")
            reasoning = content.get("reasoning") or content.get("reasoning_content")
            calls = content.get("tool_calls")
            reason = choice.get("finish_reason")
            logprobs = choice.get("logprobs")
            if not (text or reasoning or calls or reason or logprobs):
                continue
            if index not in self._open:
                if 0 <= index < self._choices:
                    continue  # it already has its finish reason
                raise ValueError(index)
            if (part := parts.get(index)) is None:
                part = parts[index] = _Part()
            if text:
                part.add(text, part.texts)
            if reasoning:
                part.add(reasoning, part.reasoning)
            if calls:
                part.add_calls(calls, self._calls.setdefault(index, []))
            if logprobs:
                part.logprobs += _entries(logprobs)
            if reason:
                part.reason, part.stop_reason = FINISH_REASONS.get(reason, "stop"), choice.get("stop_reason")
                self._open.discard(index)


class _Part:
    """The content of one choice in one read. A chunk counts as one token unless there are more logprobs."""

    __slots__ = ("calls", "chunks", "logprobs", "reason", "reasoning", "stop_reason", "texts")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[CallDelta] = []
        self.logprobs: list[bytes] = []
        self.chunks = 0
        self.reason: str | None = None
        self.stop_reason: int | str | None = None

    def add(self, text: Any, texts: list[str]) -> None:
        if not isinstance(text, str):
            raise TypeError
        texts.append(text)
        self.chunks += 1

    def add_calls(self, fragments: list[dict[str, Any]], begun: list[str]) -> None:
        """Add fragments of tool calls.

        `begun`: the ids of this choice's calls so far, which is extended. It is needed because some servers do not
        number their fragments and some repeat the call's name in each.
        """
        for fragment in fragments:
            function = fragment.get("function") or {}
            call_id, number = fragment.get("id"), fragment.get("index")
            if number is None:
                number = len(begun) if call_id and call_id not in begun else max(0, len(begun) - 1)
            if not 0 <= number <= len(begun):
                raise ValueError(number)
            first = number == len(begun)
            if first:
                begun.append(str(call_id or ""))
            name = function.get("name") if first else None
            self.calls.append(
                CallDelta(number, begun[number] if first else None, name, str(function.get("arguments") or ""))
            )
        self.chunks += 1

    def delta(self, index: int) -> Delta:
        return Delta(
            index,
            "".join(self.texts),
            (),
            self.reason,
            max(self.chunks, len(self.logprobs)),
            "".join(self.reasoning),
            joined_calls(self.calls),
            tuple(self.logprobs),
            self.stop_reason,
        )


def _usage(usage: dict[str, Any]) -> Usage:
    prompt, completion = int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0)
    cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
    if min(prompt, cached, completion) < 0:
        raise ValueError(usage)
    return Usage(prompt, cached, completion)


def _entries(logprobs: dict[str, Any]) -> list[bytes]:
    """One encoded entry per token, from a chat's `content` list or a completion's four lists."""
    if "tokens" not in logprobs:
        return [
            encode_entry(_candidate(item), [_candidate(other) for other in item.get("top_logprobs") or ()])
            for item in logprobs.get("content") or ()
        ]
    tops = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
    return [
        encode_entry(
            Candidate(str(token), _number(logprob)),
            [Candidate(str(other), _number(value)) for other, value in (top or {}).items()],
        )
        for token, logprob, top in zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True)
    ]


def _candidate(item: dict[str, Any]) -> Candidate:
    token, logprob, data = str(item["token"]), _number(item["logprob"]), item.get("bytes")
    return candidate(token, logprob, bytes(data)) if isinstance(data, list) else Candidate(token, logprob)


def _number(logprob: Any) -> float | None:
    return None if logprob is None else float(logprob)


def parse_error(content: bytes) -> ErrorBody:
    """Parse an error's body in the shape of OpenAI, TGI or Gemini (a list), or as plain text."""
    try:
        error = orjson.loads(content)
    except orjson.JSONDecodeError:
        return ErrorBody(content.decode("utf-8", "replace").strip()[:MAX_MESSAGE])
    if isinstance(error, list) and error:
        error = error[0]
    if isinstance(error, dict):
        error = error.get("error") or error
    param = error.get("param") if isinstance(error, dict) else None
    return ErrorBody(_message(error), param if isinstance(param, str) else None)


def _message(error: Any) -> str:
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or ""
    return str(error).strip()[:MAX_MESSAGE]
