"""What the history of a conversation means for the choice of a model, and how a conversation is recognized."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Message

# The messages at the end of a request that identify it. Fewer than those that clients keep when they shorten a
# conversation, and with the last answer in them, which hardly any other conversation has.
_NEWEST = 3
# Messages with instructions that are part of it.
_INSTRUCTIONS = 16
# Characters of a text, and of the data of an image or a file, that identify it together with its length.
_TEXT, _DATA = 16_384, 1024


@dataclass(frozen=True, slots=True)
class ConversationIds:
    """The ids of a request, under which its model is remembered, and those of the request before it; best first.

    The second id is without the system prompt, into which some clients put the time.
    """

    own: tuple[str, ...]
    previous: tuple[str, ...]


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
    def continues(self) -> bool:
        """Whether a model has answered before."""
        return self._last_answer is not None

    @property
    def in_tool_loop(self) -> bool:
        """Whether the model has called tools, and has not answered since."""
        last = next((item for item in reversed(self._messages) if item.role == "assistant"), None)
        return last is not None and bool(last.tool_calls)

    @property
    def provider(self) -> str | None:
        """The provider of the newest opaque parts in the history, which only its models can read; None without any."""
        newest = next((item.opaque for item in reversed(self._messages) if item.opaque), None)
        return newest[-1].origin if newest else None

    def ids(self, route: str, owner: Owner) -> ConversationIds:
        """The conversation's ids, apart by project, route, end user and `prompt_cache_key`."""
        key = self._request.prompt_cache_key
        scope = (route, str(owner.project_id), owner.end_user or "", key or "")
        previous = 0 if self._last_answer is None else _before_answer(self._messages, self._last_answer + 1)
        return ConversationIds(self._ids(scope, self._end), self._ids(scope, previous))

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

    def _ids(self, scope: Sequence[str], end: int) -> tuple[str, ...]:
        """The ids of the request that consisted of the messages up to a position."""
        newest: list[Message] = []
        for at in range(end - 1, -1, -1):
            if not _instructs(self._messages[at]):
                newest.append(self._messages[at])
                if len(newest) == _NEWEST:
                    break
        if not newest:
            return ()
        instructions = [item for item in self._messages[:_INSTRUCTIONS] if _instructs(item)]
        rough = _digest("conversation", *scope, *_parts(newest))
        return _digest("instructed", rough, *_parts(instructions)), rough


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
        for text in message.texts:
            yield from _clipped(text, _TEXT)
        for part in message.media:
            yield from _clipped(part.data or part.url or part.file_id or "", _DATA)
        for call in message.tool_calls or ():
            yield call.id
            yield call.function.name
            yield from _clipped(call.function.arguments, _TEXT)


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
