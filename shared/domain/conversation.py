"""What the history of a conversation means for the choice of a model, and how a conversation is recognized."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from shared.domain.content import TextPart
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Message

# The messages at the end of a request that identify it. Fewer than those that clients keep when they shorten a
# conversation, and with the last answer in them, which hardly any other conversation has.
_NEWEST = 3
# Messages with instructions that are part of it.
_INSTRUCTIONS = 16
# Characters of a message's texts, of its arguments, and of the data of an image or a file, that identify it together
# with the lengths.
_TEXT, _DATA = 16_384, 1024
# Parts, and calls, at each end of a message that has more.
_PARTS = 16

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ConversationNames:
    """Names of a request's conversation, by which its next request finds its model, and those of the request before.

    The best come first. Those of `own` are with the system prompt, and without, because some clients put the time into
    it. Those of `previous` are also with the answer.
    """

    own: tuple[str, ...]
    previous: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EarlierAnswer:
    """The answer that a request names as the one that it continues: who gave it, and when its job was created.

    `conversation` is as in `RouteDecision`.
    """

    route: str
    model: str
    conversation: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ConversationNote:
    """What is remembered about a request that a route has given a model: by which names the conversation's next request
    finds the model, and for how long.

    `conversation` is as in `RouteDecision`. `floor`: the highest of the route's `levels` that has answered.
    """

    conversation: str
    names: tuple[str, ...]
    model: str
    floor: str | None
    levels: tuple[str, ...]
    ttl_s: int


class Conversation:
    """The history of a request: of a conversation, or of a prompt, which has none."""

    def __init__(self, request: GenerateRequest) -> None:
        self._request = request
        self._messages = request.messages or []
        self._end = _before_answer(self._messages, len(self._messages))
        self._last_answer = next(
            (at for at in range(self._end - 1, -1, -1) if self._messages[at].role == "assistant"), None
        )

    @property
    def in_tool_loop(self) -> bool:
        """Whether the model has called tools, and has not answered since."""
        last = next((item for item in reversed(self._messages) if item.role == "assistant"), None)
        return last is not None and bool(last.tool_calls)

    @property
    def has_tools(self) -> bool:
        """Whether the model may call tools, or has called some."""
        chat = self._request.chat
        return (chat is not None and bool(chat.tools)) or self.in_tool_loop

    @property
    def provider(self) -> str | None:
        """The provider of the newest opaque parts in the history, which only its models can read; None without any."""
        newest = next((item.opaque for item in reversed(self._messages) if item.opaque), None)
        return newest[-1].origin if newest else None

    def names(self, route: str, owner: Owner) -> ConversationNames:
        """The conversation's names, apart by project, route, end user and `prompt_cache_key`."""
        own = self._names(route, owner, self._end)
        found = () if own is None else (own.instructed, own.rough)
        if self._last_answer is None:
            return ConversationNames(found, ())
        end = _before_answer(self._messages, self._last_answer + 1)
        before = self._names(route, owner, end)
        if before is None:
            return ConversationNames(found, ())
        answer = self._messages[end : self._last_answer + 1]
        calls = [call.id for message in answer for call in message.tool_calls or ()]
        exact, last = before.answered("".join(message.text for message in answer), calls)
        return ConversationNames(found, (exact, before.instructed, before.rough, last))

    def answered(self, route: str, owner: Owner, answers: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
        """The names of this conversation with each of these answers: a text and the ids of tool calls."""
        own = self._names(route, owner, self._end)
        return [] if own is None else [name for text, calls in answers for name in own.answered(text, calls)]

    def sample(self, salt: str, owner: Owner) -> float:
        """A number below 100 that is always the same for an end user, or without one, for the same first message."""
        if owner.end_user is not None:
            return _percentage("user", salt, str(owner.project_id), owner.end_user)
        first = next((item for item in self._messages if not _instructs(item)), None)
        if first is not None:
            return _percentage("message", salt, str(owner.project_id), *_parts([first]))
        prompt = self._request.prompt or ""
        text = prompt if isinstance(prompt, str) else repr(prompt[:_DATA])
        return _percentage("prompt", salt, str(owner.project_id), *_clipped(text, _TEXT))

    def _names(self, route: str, owner: Owner, end: int) -> _Names | None:
        """The names of the request that consisted of the messages up to a position; None if it had none."""
        newest: list[Message] = []
        for at in range(end - 1, -1, -1):
            if not _instructs(self._messages[at]):
                newest.append(self._messages[at])
                if len(newest) == _NEWEST:
                    break
        if not newest:
            return None
        key = self._request.prompt_cache_key
        scope = (route, str(owner.project_id), owner.end_user or "", key or "")
        instructions = [item for item in self._messages[:_INSTRUCTIONS] if _instructs(item)]
        rough = _digest("conversation", *scope, *_parts(newest))
        last = _digest("last", *scope, *_parts(newest[:1]))
        return _Names(_digest("instructed", rough, *_parts(instructions)), rough, last)


@dataclass(frozen=True, slots=True)
class _Names:
    """Names of a request: by its newest messages with the system prompt, by these without it, and by the last one."""

    instructed: str
    rough: str
    last: str

    def answered(self, text: str, calls: Sequence[str]) -> tuple[str, str]:
        """The names after an answer: by the newest messages, and by the last one, in case the client drops the others.

        Calls have ids of their own, so the text does not matter then, which clients may leave out.
        """
        parts = ("calls", *_ends(calls)) if calls else ("answer", *_clipped(text.strip(), _TEXT))
        return _digest(self.rough, *parts), _digest(self.last, *parts)


def _before_answer(messages: Sequence[Message], end: int) -> int:
    """The position where the messages of the assistant begin that come last before a position."""
    while end and messages[end - 1].role == "assistant":
        end -= 1
    return end


def _instructs(message: Message) -> bool:
    return message.role in ("system", "developer")


def _parts(messages: Iterable[Message]) -> Iterator[str]:
    """What identifies messages: bounded, whatever their size, and without reasoning, which clients may leave out."""
    for message in messages:
        yield message.role
        yield message.tool_call_id or ""
        content, left = message.content, _TEXT
        parts = [TextPart(type="text", text=content)] if isinstance(content, str) else content or []
        yield str(len(parts))
        for part in _ends(parts):
            if isinstance(part, TextPart):
                yield from _clipped(part.text, left)
                left -= min(left, len(part.text))
            else:
                yield from _clipped(part.data or part.url or part.file_id or "", _DATA)
        calls, left = message.tool_calls or [], _TEXT
        yield str(len(calls))
        for call in _ends(calls):
            yield call.id
            yield call.function.name
            yield from _clipped(call.function.arguments, left)
            left -= min(left, len(call.function.arguments))


def _ends(items: Sequence[T]) -> Sequence[T]:
    """The first and the last of many items."""
    return items if len(items) <= 2 * _PARTS else [*items[:_PARTS], *items[-_PARTS:]]


def _clipped(text: str, characters: int) -> tuple[str, str]:
    return text[:characters], str(len(text))


def _percentage(*parts: str) -> float:
    return int(_digest(*parts)[:13], 16) / 16**13 * 100


def _digest(*parts: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(4, "big"))
        digest.update(data)
    return digest.hexdigest()
