"""Redacts the texts of a body: a request, in its neutral form or in that of an API, or the choices of an answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import orjson

from shared.domain.content import FilePart, ImagePart, TextPart
from shared.domain.job import Choice, ToolCall
from shared.domain.request import (
    CacheBreakpoint,
    ChatOptions,
    Function,
    FunctionCall,
    GenerateRequest,
    Message,
    MessageToolCall,
    Sampling,
    StructuredOutputs,
    Tool,
)

# Lists with these names are tokens: their texts can be joined to what was removed elsewhere.
_TOKENS = ("logprobs", "prompt_logprobs", "token_ids")
# A prompt is a text, or the ids of its tokens.
_PROMPT = "prompt"
# An opaque part (`shared.domain.opaque`).
_OPAQUE = re.compile(r"hr[0-9]{1,3}\.[a-z][a-z0-9_-]{0,31}\.[A-Za-z0-9_-]+")
_DATA_URL = re.compile(
    r"data:(?P<type>[\w.+-]{1,80}/[\w.+-]{1,80})?(?:;[\w=.+-]{1,80}){0,4};base64,(?P<data>[\w+/=-]{16,})"
)
# Texts that may be JSON: the arguments of calls, results of tools, structured outputs.
_JSON = ("{", "[")
# A number with fewer digits is neither that of a card nor of a phone.
_LONG_NUMBER = 10**8
# Redacts a value by the name of its member; returns other values as they are.
RedactNamed = Callable[[str, str], str]
_MAX_DEPTH = 200
_MODELS = (
    GenerateRequest, Sampling, ChatOptions, StructuredOutputs, CacheBreakpoint, Message, MessageToolCall, FunctionCall,
    Tool, Function, TextPart, ImagePart, FilePart,
)  # fmt: skip
# The names of the members of requests and answers themselves, which are never redacted.
_STRUCTURE = frozenset(
    {name for model in _MODELS for name in model.model_fields}
    | {member.name for kind in (Choice, ToolCall) for member in fields(kind)}
    | {"request", "output", "metadata", "error_message"}
)
# Their values that say what something is: roles, types, and reasons of ends.
_VOCABULARY = frozenset(
    {
        "system", "developer", "user", "assistant", "tool", "text", "image", "file", "function", "none", "auto",
        "required", "stop", "length", "tool_calls", "content_filter",
    }
)  # fmt: skip


class BodyWalk:
    """Applies a function to all texts of a body, after another one that knows the name of the member that a text is."""

    def __init__(self, redact: Callable[[str], str], redact_named: RedactNamed) -> None:
        self._redact = redact
        self._redact_named = redact_named

    def redact(self, value: Any, depth: int = 0) -> Any:
        """Return a value with its texts redacted. Values that are nested too deeply are left out."""
        if isinstance(value, str):
            return self._text(value, depth)
        if isinstance(value, Mapping):
            return self._object(value, depth + 1) if depth < _MAX_DEPTH else "[NESTED]"
        if isinstance(value, list | tuple):
            return [self.redact(item, depth + 1) for item in value] if depth < _MAX_DEPTH else "[NESTED]"
        if type(value) is int and abs(value) >= _LONG_NUMBER:
            redacted = self._redact(str(value))
            return value if redacted == str(value) else redacted
        return value

    def _object(self, value: Mapping[str, Any], depth: int) -> dict[str, Any]:
        if isinstance(data := value.get("data"), str) and isinstance(kind := value.get("media_type"), str):
            # An image or a file, with its data in base64.
            value = {**value, "data": _data(kind, len(data))}
        redacted: dict[str, Any] = {}
        # How many members were named alike; searched from there on, so that many of them take linear time.
        numbers: dict[str, int] = {}
        for name, item in value.items():
            key = name if name in _STRUCTURE else self._redact(name)
            if key in redacted:
                number = numbers.get(key, 1) + 1
                while f"{key}_{number}" in redacted:
                    number += 1
                numbers[key] = number
                key = f"{key}_{number}"
            if isinstance(item, list) and item and (name in _TOKENS or (name == _PROMPT and type(item[0]) is int)):
                redacted[key] = f"[TOKENS {len(item)}]"
            else:
                redacted[key] = self.redact(item if name in _STRUCTURE else self._named(name, item), depth)
        return redacted

    def _named(self, name: str, item: Any) -> Any:
        """A member's value without what only its name shows: `{"password": "hunter2"}`."""
        if not (isinstance(item, str) or type(item) is int):
            return item
        redacted = self._redact_named(name, str(item))
        return item if redacted == str(item) else redacted

    def _text(self, text: str, depth: int) -> str:
        if text in _VOCABULARY:
            return text
        if text.startswith("hr") and _OPAQUE.fullmatch(text):
            return f"[OPAQUE {len(text)} characters]"
        if "data:" in text:
            text = _DATA_URL.sub(lambda url: _data(url["type"] or "text/plain", len(url["data"])), text)
        if text.startswith(_JSON) or (text[:1].isspace() and text.lstrip().startswith(_JSON)):
            return self._json(text, depth)
        return self._redact(text)

    def _json(self, text: str, depth: int) -> str:
        """Redact a text that may be JSON, so that it remains JSON, and what is escaped in it is found."""
        try:
            value = orjson.loads(text)
        except ValueError:
            return self._redact(text)
        redacted = self.redact(value, depth)
        # Of members with the same name, only the last one is in the value.
        if redacted == value and orjson.dumps(value).count(b'"') == text.count('"'):
            return text
        return orjson.dumps(redacted).decode()


def _data(media_type: str, characters: int) -> str:
    return f"[DATA {media_type} {characters * 3 // 4} bytes]"
