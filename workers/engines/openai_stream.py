"""OpenAI's stream, as it comes off the wire, to deltas.

Under load many events come with one read: what a choice gains in one read is one delta, and only the last of it
costs more than its JSON.
"""

from __future__ import annotations

from typing import Any

import orjson

from shared.events import Delta
from shared.job import Usage
from workers.engines.base import UpstreamError

MAX_LINE_BYTES = 1 << 20
MAX_TOLD = 500
STRANGE = "The upstream sent something that is not OpenAI's stream."


class Reply:
    """One answer of so many choices, while it is read."""

    def __init__(self, choices: int) -> None:
        self._choices = choices
        self._open = set(range(choices))
        self._rest = b""
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
            self.usage = Usage(
                int(usage["prompt_tokens"]),
                int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
                int(usage.get("completion_tokens") or 0),
            )
        for choice in chunk.get("choices") or ():
            index = choice.get("index", 0)
            delta = choice.get("delta")
            text = choice.get("text") if delta is None else delta.get("content")
            reason = choice.get("finish_reason")
            if not text and not reason:
                continue
            if index not in self._open:
                if 0 <= index < self._choices:
                    continue  # it has its finish reason already
                raise ValueError(index)
            if (gain := gained.get(index)) is None:
                gain = gained[index] = _Gain()
            if text:
                if not isinstance(text, str):
                    raise TypeError
                gain.texts.append(text)
            if reason:
                gain.reason = "length" if reason == "length" else "stop"
                self._open.discard(index)


class _Gain:
    """What one choice gained in one read. A chunk with text counts as a token."""

    __slots__ = ("reason", "texts")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.reason: str | None = None

    def delta(self, index: int) -> Delta:
        return Delta(index, "".join(self.texts), (), self.reason, len(self.texts))


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


def _message(error: Any) -> str:
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or ""
    return str(error).strip()[:MAX_TOLD]
