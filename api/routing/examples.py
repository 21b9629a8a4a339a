"""Reads labelled requests, from which `python -m api.routing fit` learns."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from api.routing.errors import RoutingModelError
from shared.domain.field_types import message_of
from shared.domain.request import ChatOptions, GenerateRequest, Message, Sampling

MAX_EXAMPLES = 100_000
# Errors that are reported at once.
_MAX_ERRORS = 10


class ExamplesError(RoutingModelError):
    """The file has lines that cannot be used; the message has one line per error."""


@dataclass(frozen=True, slots=True)
class Example:
    """A request, and how complex it is: from 0 (the cheapest model suffices) to 1."""

    request: GenerateRequest
    label: float


def read_examples(path: Path, levels: Sequence[str]) -> list[Example]:
    """Read a file with a JSON object per line: `prompt` or `messages`, and `label`, a level or a number from 0 to 1.

    Raises:
        ExamplesError: the file cannot be read, or a line cannot be used; it names lines, fields and the reason.
    """
    examples: list[Example] = []
    errors: list[str] = []
    try:
        for number, line in _lines(path):
            try:
                examples.append(_example(line, levels))
            except ValueError as error:
                errors.append(f"{path}:{number}: {error}")
            if len(errors) == _MAX_ERRORS or len(examples) > MAX_EXAMPLES:
                break
    except OSError as error:
        raise ExamplesError(f"{path}: {error.strerror}") from error
    if len(examples) > MAX_EXAMPLES:
        errors.append(f"{path}: at most {MAX_EXAMPLES:,} examples are supported; take a random part of them")
    if errors:
        raise ExamplesError("\n".join(errors))
    return examples


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            stripped = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
            if stripped:
                yield number, stripped


def _example(line: bytes, levels: Sequence[str]) -> Example:
    try:
        fields = json.loads(line)
    except UnicodeDecodeError:
        raise ValueError("must be UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"must be a JSON object: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError("must be a JSON object")  # noqa: TRY004  reported with the others
    label = _label(fields.get("label"), levels)
    return Example(_request(fields), label)


def _label(label: Any, levels: Sequence[str]) -> float:
    if isinstance(label, str) and label.strip().casefold() in levels:
        return levels.index(label.strip().casefold()) / (len(levels) - 1)
    if isinstance(label, int | float) and not isinstance(label, bool) and math.isfinite(label) and 0 <= label <= 1:
        return float(label)
    found = "nothing" if label is None else json.dumps(label, ensure_ascii=False)[:100]
    raise ValueError(f"label: must be {', '.join(levels)}, or a number from 0 to 1; got {found}")


def _request(fields: dict[str, Any]) -> GenerateRequest:
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if (prompt is None) == (messages is None):
        raise ValueError("exactly one of prompt and messages is required")
    if prompt is not None and not isinstance(prompt, str):
        raise ValueError("prompt: must be a string")
    if prompt is not None and not prompt.strip():
        raise ValueError("prompt: must not be empty")
    if messages is not None and not (isinstance(messages, list) and messages):
        raise ValueError("messages: must be a list with at least one message")
    try:
        return GenerateRequest(
            prompt=prompt,
            messages=None if messages is None else [_message(item) for item in messages],
            sampling=Sampling(max_tokens=fields.get("max_tokens")),
            chat=ChatOptions(reasoning_effort=fields.get("reasoning_effort"), tools=fields.get("tools")),
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {message_of(first)}") from None


def _message(item: Any) -> Message:
    """A message of the chat completions API. Parts other than texts and tool calls are left out."""
    if not isinstance(item, dict):
        raise ValueError("messages: each message must be an object")  # noqa: TRY004  reported with the others
    known = {name: value for name, value in item.items() if name in Message.model_fields and value is not None}
    if isinstance(content := known.get("content"), list):
        known["content"] = "\n".join(
            part["text"]
            for part in content
            if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        )
    return Message.model_validate(known)
