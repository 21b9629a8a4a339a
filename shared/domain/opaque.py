"""Opaque parts: data of a provider's answer that only the provider can read, such as the signature of its thinking.

The provider expects them unchanged, and in their order, in the next turn of the conversation. A client holds a part as
a text that names its origin, in the place that its API has for such data, and sends it back with the turn. The part
then reaches a model of the same provider only (`GenerateRequest.for_provider`), so a conversation can move between
models of different providers.

A part holds everything that its provider needs to get back: of signed thinking the whole block, with its text, because
clients change or drop the text. It also holds its place among the reasoning, the text and the calls of its turn, so
that an engine can rebuild the order of the provider's blocks (`in_order`). In a client's list of blocks or items, which
has an order of its own, that order counts instead.

Clients can forge parts: an engine sends those members of `data` that it has itself put there, and checks their types.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import orjson

# Kinds of parts. An engine may have others; they stand alone.
# A block of thinking: it belongs to the reasoning text that precedes it, if there is any.
THINKING = "thinking"
# Thinking of which no text is shown.
REDACTED_THINKING = "redacted_thinking"
# Belongs to the tool call `call_id`.
TOOL_CALL = "tool_call"

# Most parts in one message, and most characters in one part. A longer one is not read.
MAX_OPAQUE_PARTS = 1000
MAX_ENCODED = 2 * 1024 * 1024
# Values that are nested more deeply could not be encoded again; values with more objects and lists take long to read.
MAX_DEPTH = 100
MAX_BRACKETS = 50_000

_PREFIX = "hr1"
_TEXT = re.compile(r"hr1\.([a-z][a-z0-9_-]{0,31})\.([A-Za-z0-9_-]+)")
_TO_STANDARD = str.maketrans("-_", "+/")
_TO_URL = bytes.maketrans(b"+/", b"-_")

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class OpaquePart:
    """A part of a provider's answer. `data` is JSON, and belongs to the engine that created the part.

    `origin`: the provider (`Spec.provider`). `reasoning`, `text` and `calls`: the place of the part, as the number of
    characters and calls of its turn that precede it. Engines leave the place out: `Transcript.placed` fills it in.
    """

    origin: str
    kind: str
    data: Any
    call_id: str | None = None
    reasoning: int = 0
    text: int = 0
    calls: int = 0

    @property
    def size(self) -> int:
        """About the bytes of its text. Only the strings of `data` are counted that are not deep inside."""
        values = self.data.values() if isinstance(self.data, dict) else (self.data,)
        return _PART_BYTES + sum(len(value) for value in values if isinstance(value, str))

    def encoded(self) -> str:
        """The text that clients hold: `hr1.<origin>.<base64url>`."""
        values = [self.kind, self.data, self.call_id, self.reasoning, self.text, self.calls]
        content = binascii.b2a_base64(orjson.dumps(values), newline=False)
        return f"{_PREFIX}.{self.origin}.{content.translate(_TO_URL).rstrip(b'=').decode()}"

    def at(self, *, reasoning: int, text: int, calls: int) -> OpaquePart:
        """The same part in another place."""
        return replace(self, reasoning=reasoning, text=text, calls=calls)


_PART_BYTES = 64


def is_encoded(text: Any) -> bool:
    """Whether a value is meant to be the text of a part, of this or another version."""
    return isinstance(text, str) and re.match(r"hr[0-9]+\.", text) is not None


def decode(text: Any) -> OpaquePart | None:
    """Read a part from the text that a client holds; None if it is not such a text, or damaged."""
    if not isinstance(text, str) or len(text) > MAX_ENCODED or (match := _TEXT.fullmatch(text)) is None:
        return None
    content = match[2].translate(_TO_STANDARD)
    try:
        encoded = binascii.a2b_base64(content + "=" * (-len(content) % 4), strict_mode=True)
        brackets = encoded.count(b"[") + encoded.count(b"{")
        values = orjson.loads(encoded) if brackets <= MAX_BRACKETS else None
    except ValueError:
        return None
    match values:
        case [str(kind), data, None | str() as call_id, int(reasoning), int(before), int(calls), *_] if min(
            reasoning, before, calls
        ) >= 0 and (brackets <= MAX_DEPTH or not _is_deep(data)):
            return OpaquePart(match[1], kind, data, call_id, reasoning, before, calls)
    return None


def decode_all(texts: Iterable[Any]) -> tuple[OpaquePart, ...]:
    """Read several parts. Texts that are none are left out."""
    return tuple(part for text in texts if (part := decode(text)) is not None)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True


class Reasoning(NamedTuple):
    """Reasoning text in the order of a turn. If it is signed, its part follows."""

    text: str


def in_order(
    reasoning: str, texts: Sequence[str], calls: Sequence[C], parts: Iterable[OpaquePart]
) -> Iterator[Reasoning | str | C | OpaquePart]:
    """Yield reasoning, texts, calls and parts of a turn in the order in which the provider generated them.

    Parts of calls are left out, because they belong to their calls. Places that a turn does not have, because a client
    has shortened its text, count as its end.
    """
    position = _Position(reasoning, texts, calls)
    for part in parts:
        if part.kind != TOOL_CALL:
            if part.kind != THINKING:  # the reasoning before it is not signed by it
                yield from position.reasoning_until(part.reasoning)
            yield from position.texts_until(part.text)
            yield from position.calls_until(part.calls)
            yield from position.reasoning_until(part.reasoning)
            yield part
    yield from position.reasoning_until(len(reasoning))
    yield from position.texts_until(sum(map(len, texts)))
    yield from position.calls_until(len(calls))


class _Position:
    """How much of a turn has been yielded."""

    def __init__(self, reasoning: str, texts: Sequence[str], calls: Sequence[Any]) -> None:
        self._reasoning = reasoning
        self._reasoned = 0
        self._texts = texts
        # The text at which it stands, how much of that has been yielded, and how much of all texts.
        self._at = self._within = self._yielded = 0
        self._calls = calls
        self._called = 0

    def reasoning_until(self, end: int) -> Iterator[Reasoning]:
        if piece := self._reasoning[self._reasoned : end]:
            self._reasoned += len(piece)
            yield Reasoning(piece)

    def texts_until(self, end: int) -> Iterator[str]:
        while self._at < len(self._texts):
            text = self._texts[self._at]
            if self._within == len(text):
                self._at, self._within = self._at + 1, 0
                continue
            if self._yielded >= end:
                return
            piece = text[self._within : self._within + end - self._yielded]
            self._within += len(piece)
            self._yielded += len(piece)
            yield piece

    def calls_until(self, end: int) -> Iterator[Any]:
        yield from self._calls[self._called : end]
        self._called = max(self._called, min(end, len(self._calls)))
