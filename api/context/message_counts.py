"""Counts the tokens of a conversation message by message, so that a long one is read once, not once per turn.

A conversation is its messages, each with the tokens that the chat template puts around it, and a fixed rest: what the
template adds once, and the definitions of tools. For texts, the sum is what the engine counts if the model's tokenizer
and template are here (a line break at the start of a message may be one token less). Calls, reasoning, images and files
are estimated: only the engine knows how they are rendered.
"""

from __future__ import annotations

import math
from typing import Protocol

import orjson

from api.context.estimates import DEFAULT_TOKENS_PER_BYTE, IMAGE_TOKENS, media_tokens
from shared.domain.errors import InvalidRequest
from shared.domain.request import GenerateRequest, Message
from shared.prompts.token_counter import TokenCounter, is_plain, words_in

# The ratio of tokens to bytes is rounded to a multiple of this.
RATIO_STEP = 0.05
# What a template puts around a message, and around a call, if it is unknown.
MESSAGE_TOKENS = 8
CALL_TOKENS = 16


class MessageCounts(Protocol):
    """Counts the tokens of messages, and of what a prompt has beside them."""

    def message(self, message: Message) -> int:
        """The tokens of a message, which do not depend on the messages around it."""

    def rest(self, request: GenerateRequest) -> int:
        """The tokens of a prompt beside its messages."""

    def is_counted(self, request: GenerateRequest) -> bool:
        """Whether the tokens are counted as by the engine, not estimated."""


class WordCounts:
    """Counts as the simulated engine does: words, of texts only."""

    def message(self, message: Message) -> int:
        return words_in(message.text) + 1  # the role

    def rest(self, request: GenerateRequest) -> int:
        return 1

    def is_counted(self, request: GenerateRequest) -> bool:
        return True


class EstimatedCounts:
    """Estimates the tokens from the number of bytes, as `api.context.estimates` does for whole prompts."""

    def __init__(self, tokens_per_byte: float) -> None:
        # Rounded up, so that a slightly different learned ratio does not move the places where conversations are
        # cut.
        self._ratio = math.ceil(tokens_per_byte / RATIO_STEP - 0.001) * RATIO_STEP

    def message(self, message: Message) -> int:
        media = message.media
        size = message.size - sum(part.size for part in media)
        return math.ceil(size * self._ratio + sum(media_tokens(part, self._ratio) for part in media))

    def rest(self, request: GenerateRequest) -> int:
        return math.ceil(request.options_size * self._ratio)

    def is_counted(self, request: GenerateRequest) -> bool:
        return False


class TemplateCounts:
    """Counts with the model's tokenizer. What its template adds is found by rendering short conversations."""

    def __init__(self, counter: TokenCounter) -> None:
        self._counter = counter
        self._around = dict.fromkeys(("system", "developer", "user", "assistant", "tool"), MESSAGE_TOKENS)
        self._rest = self._rest_with_system = 2 * MESSAGE_TOKENS
        self._is_measured = False
        self._measure()

    def message(self, message: Message) -> int:
        return self._around[message.role] + self._text(message.text) + _other_tokens(message, self._text)

    def rest(self, request: GenerateRequest) -> int:
        first = request.messages[0].role if request.messages else "user"
        rest = self._rest_with_system if first in ("system", "developer") else self._rest
        return max(0, rest) + _option_tokens(request, self._text)

    def is_counted(self, request: GenerateRequest) -> bool:
        roles = {message.role for message in request.messages or ()}
        return self._is_measured and is_plain(request) and roles <= {"system", "user", "assistant"}

    def _text(self, text: str) -> int:
        return self._counter.count_text(text, add_special_tokens=False)

    def _measure(self) -> None:
        word = self._text("x")
        alone, answered = self._rendered("user"), self._rendered("user", "assistant")
        asked_twice = self._rendered("user", "assistant", "user")
        instructed = self._rendered("system", "user")
        if alone is None or answered is None or asked_twice is None:
            return
        # With an answer at the end, some templates leave out the beginning of the next one.
        user, both = asked_twice - answered, asked_twice - alone
        thrice = self._rendered("user", "assistant", "user", "assistant", "user")
        if thrice is None or thrice - asked_twice != both or min(user, both - user) < word:
            return
        self._around |= {"user": user - word, "assistant": both - user - word, "tool": user - word}
        self._rest = self._rest_with_system = alone - user
        if instructed is not None:
            twice = self._rendered("system", "system", "user")
            system = twice - instructed if twice is not None else user
            self._around |= {"system": system - word, "developer": system - word}
            self._rest_with_system = instructed - system - user
        self._is_measured = True

    def _rendered(self, *roles: str) -> int | None:
        """The tokens of a conversation of messages with one word; None if the template rejects it."""
        messages = [Message.model_validate({"role": role, "content": "x"}) for role in roles]
        try:
            return self._counter.count(GenerateRequest(messages=messages))
        except InvalidRequest:
            return None


class _TextTokens(Protocol):
    def __call__(self, text: str) -> int: ...


def _other_tokens(message: Message, text_tokens: _TextTokens) -> int:
    """The tokens of a message beside its texts."""
    tokens = text_tokens(message.reasoning) if message.reasoning else 0
    for call in message.tool_calls or ():
        tokens += CALL_TOKENS + text_tokens(call.function.name) + text_tokens(call.function.arguments)
    other = sum(part.size for part in message.opaque or ()) * DEFAULT_TOKENS_PER_BYTE
    return tokens + math.ceil(other + sum(media_tokens(part, DEFAULT_TOKENS_PER_BYTE) for part in message.media))


def _option_tokens(request: GenerateRequest, text_tokens: _TextTokens) -> int:
    """The tokens of tools and documents, as JSON."""
    if request.chat is None:
        return 0
    tools = [tool.model_dump(mode="json", exclude_none=True) for tool in request.chat.tools or ()]
    parts = [value for value in (tools, request.chat.documents) if value]
    return sum(text_tokens(orjson.dumps(value).decode()) for value in parts)


def most_tokens(request: GenerateRequest) -> int:
    """More tokens than a prompt can have: its bytes, and what the template and images add."""
    messages = request.messages or ()
    media = sum(len(message.media) for message in messages)
    return request.size + request.options_size + 4 * MESSAGE_TOKENS * (len(messages) + 1) + IMAGE_TOKENS * media
