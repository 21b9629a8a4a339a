"""OpenAI's stream, as it comes off the wire, to deltas.

Under load many events come with one read: what a choice gains in one read is one delta, and only the last of it
costs more than its JSON.
"""

from __future__ import annotations

from typing import Any

import orjson

from shared.domain.events import CallDelta, Delta, joined_calls
from shared.domain.job import Usage
from workers.engines.base import UpstreamError

MAX_LINE_BYTES = 1 << 20
MAX_TOLD = 500
# Any other is a stop.
REASONS = {"length": "length", "tool_calls": "tool_calls", "function_call": "tool_calls"}
STRANGE = "The upstream sent something that is not OpenAI's stream."


class Reply:
    """One answer of so many choices, while it is read."""

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
        """What one read adds: a delta for each choice that gained something.

        Where the upstream reports an error, or this is no such stream, it is `done`, and `failure` says so.
        """
        if self._rest:
            data = self._rest + data
        *lines, self._rest = data.split(b"\n")
        gained: dict[int, _Gain] = {}
        try:
            for line in lines:
                if line.startswith(b"data:"):
                    payload = line[5:].strip()
                    if payload == b"[DONE]":
                        self.done = True
                        break
                    self._take(orjson.loads(payload), gained)
        except UpstreamError as error:
            self.failure, self.done = error, True
        except (ValueError, TypeError, KeyError, AttributeError):
            self.failure, self.done = UpstreamError(STRANGE), True
        if len(self._rest) > MAX_LINE_BYTES:
            self.failure, self.done = UpstreamError(STRANGE), True
        if gained:
            self.begun = True
        return [gain.delta(index) for index, gain in gained.items()]

    def _take(self, chunk: dict[str, Any], gained: dict[int, _Gain]) -> None:
        if error := chunk.get("error"):
            raise UpstreamError(f"The upstream failed: {_message(error) or 'it does not say why'}")
        if usage := chunk.get("usage"):
            self.usage = _usage(usage)
        for choice in chunk.get("choices") or ():
            index = choice.get("index", 0)
            delta = choice.get("delta")
            piece = choice if delta is None else delta
            text = choice.get("text") if delta is None else delta.get("content")
            reasoning = piece.get("reasoning") or piece.get("reasoning_content")
            calls = piece.get("tool_calls")
            reason = choice.get("finish_reason")
            logprobs = choice.get("logprobs")
            if not (text or reasoning or calls or reason or logprobs):
                continue
            if index not in self._open:
                if 0 <= index < self._choices:
                    continue  # it has its finish reason already
                raise ValueError(index)
            if (gain := gained.get(index)) is None:
                gain = gained[index] = _Gain()
            if text:
                gain.add(text, gain.texts)
            if reasoning:
                gain.add(reasoning, gain.thoughts)
            if calls:
                gain.call(calls, self._calls.setdefault(index, []))
            if logprobs:
                gain.logprobs += _entries(logprobs)
            if reason:
                gain.reason, gain.stop_reason = REASONS.get(reason, "stop"), choice.get("stop_reason")
                self._open.discard(index)


class _Gain:
    """What one choice gained in one read. A chunk with something in it counts as a token, unless logprobs say more."""

    __slots__ = ("calls", "chunks", "logprobs", "reason", "stop_reason", "texts", "thoughts")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.thoughts: list[str] = []
        self.calls: list[CallDelta] = []
        self.logprobs: list[dict[str, Any]] = []
        self.chunks = 0
        self.reason: str | None = None
        self.stop_reason: int | str | None = None

    def add(self, text: Any, texts: list[str]) -> None:
        if not isinstance(text, str):
            raise TypeError
        texts.append(text)
        self.chunks += 1

    def call(self, fragments: list[dict[str, Any]], begun: list[str]) -> None:
        """Fragments of calls. `begun` has the ids of this choice's calls so far: some servers number none of their
        fragments, and some name a call in each."""
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
            "".join(self.thoughts),
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


def _entries(logprobs: dict[str, Any]) -> list[dict[str, Any]]:
    """A conversation's logprobs, or the four lists of a completion's, as entries."""
    if "tokens" not in logprobs:
        return [
            {**_entry(one), "top": [_entry(other) for other in one.get("top_logprobs") or ()]}
            for one in logprobs.get("content") or ()
        ]
    tops = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
    return [
        {
            **_entry({"token": token, "logprob": logprob}),
            "top": [_entry({"token": other, "logprob": value}) for other, value in (top or {}).items()],
        }
        for token, logprob, top in zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True)
    ]


def _entry(one: dict[str, Any]) -> dict[str, Any]:
    token, logprob = str(one["token"]), one["logprob"]
    known = one.get("bytes")
    return {
        "token": token,
        "logprob": None if logprob is None else float(logprob),
        "bytes": list(token.encode("utf-8", "replace")) if known is None else known,
    }


def told(body: bytes) -> str:
    """The message of an error's body, in any of the shapes that are about: OpenAI's, TGI's, Gemini's list."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode("utf-8", "replace").strip()[:MAX_TOLD]
    if isinstance(content, list) and content:
        content = content[0]
    if isinstance(content, dict):
        content = content.get("error") or content
    return _message(content)


def told_param(body: bytes) -> str | None:
    """The field that an error's body is about, where it says so."""
    try:
        param = orjson.loads(body)["error"]["param"]
    except (ValueError, TypeError, KeyError, IndexError):
        return None
    return param if isinstance(param, str) else None


def _message(error: Any) -> str:
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or ""
    return str(error).strip()[:MAX_TOLD]
