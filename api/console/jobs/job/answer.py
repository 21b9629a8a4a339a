"""Answers and requests as a page shows them: readable, and cut if they are long."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from api.console.filters import plural, size
from shared.domain.content import TextPart
from shared.domain.job import Choice, Job
from shared.domain.request import Message

# Characters of a text that a page has; the whole text is another address.
SHOWN = 20_000
SHOWN_MESSAGES = 100
SHOWN_TOOLS = 50
TITLE = 72


@dataclass(frozen=True, slots=True)
class Text:
    """A text, or its beginning. `whole_size`: that of the whole text, if this is only a part. `is_json`: formatted."""

    shown: str
    whole_size: str | None = None
    is_json: bool = False


@dataclass(frozen=True, slots=True)
class CallView:
    """A call of a tool."""

    id: str
    name: str
    arguments: Text


@dataclass(frozen=True, slots=True)
class ChoiceView:
    """One of the answers of a job."""

    index: int
    text: Text
    reasoning: Text | None
    calls: Sequence[CallView]
    finish_reason: str | None
    note: str


@dataclass(frozen=True, slots=True)
class MessageView:
    """A message of the conversation. `parts`: descriptions of its images and files."""

    role: str
    name: str | None
    text: Text
    reasoning: Text | None
    calls: Sequence[CallView]
    call_id: str | None
    parts: Sequence[str]


@dataclass(frozen=True, slots=True)
class RequestView:
    """What was sent. `more_messages` are those in the middle that are left out."""

    messages: Sequence[MessageView]
    more_messages: int
    parameters: Sequence[tuple[str, str]]
    tools: Sequence[tuple[str, str, Text]]
    more_tools: int
    structure: tuple[str, Text] | None
    size: str


def text_of(text: str, *, limit: int = SHOWN) -> Text:
    """A text for a page. JSON objects and lists are formatted."""
    formatted = _formatted(text) if len(text) <= limit else None
    shown = text if formatted is None else formatted
    if len(shown) <= limit:
        return Text(shown, is_json=formatted is not None)
    return Text(shown[:limit], size(len(text.encode("utf-8", "surrogatepass"))))


def _formatted(text: str) -> str | None:
    stripped = text.strip()
    if not (stripped.startswith(("{", "[")) and stripped.endswith(("}", "]"))):
        return None
    try:
        json.loads(stripped)
    except (ValueError, RecursionError):
        return None
    return _indented(stripped)


# A string, a bracket or a separator, or another value.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^\s\[\]{}:,"]+')


def _indented(text: str) -> str:
    """A JSON text with a line for each member. Its values stay as they are written."""
    parts: list[str] = []
    depth, previous = 0, ""
    for part in _TOKEN.findall(text):
        if part in ("}", "]"):
            depth -= 1
            parts.append(part if previous in ("{", "[") else f"\n{'  ' * depth}{part}")
        else:
            parts.append(f"\n{'  ' * depth}{part}" if previous in ("{", "[", ",") else part)
            parts.append(" " if part == ":" else "")
            depth += part in ("{", "[")
        previous = part
    return "".join(parts)


def choices(output: Sequence[Choice]) -> list[ChoiceView]:
    """The answers of a job."""
    return [
        ChoiceView(
            choice.index,
            text_of(choice.text),
            text_of(choice.reasoning) if choice.reasoning else None,
            [CallView(call.id, call.name, text_of(call.arguments)) for call in choice.tool_calls],
            choice.finish_reason,
            _finish_note(choice),
        )
        for choice in output
    ]


def _finish_note(choice: Choice) -> str:
    notes = {
        None: "interrupted",
        "stop": "finished" if choice.stop_reason is None else f"stopped at {choice.stop_reason!r}",
        "length": "cut by its token limit",
        "tool_calls": "calls tools",
        "content_filter": "ended by a filter of the provider",
    }
    return notes.get(choice.finish_reason, choice.finish_reason or "")


def title_of(job: Job) -> str:
    """The first words of what the job is about: of its last message by the user, or its prompt."""
    request = job.request
    if request.messages:
        asked = [message for message in request.messages if message.role == "user"] or request.messages
        text = asked[-1].text
    else:
        text = request.prompt if isinstance(request.prompt, str) else ""
    words = " ".join(text[:1000].split())
    if not words:
        return f"{plural(len(request.prompt), 'token id')}" if isinstance(request.prompt, list) else "Job without text"
    if len(words) <= TITLE:
        return words
    return f"{words[:TITLE].rpartition(' ')[0] or words[:TITLE]}…"


def request_view(job: Job) -> RequestView:
    """The request of a job."""
    request = job.request
    messages = request.messages or []
    shown = messages
    if len(messages) > SHOWN_MESSAGES:
        half = SHOWN_MESSAGES // 2
        shown = [*messages[:half], *messages[-half:]]
    views = [_message(message) for message in shown]
    if request.prompt is not None:
        prompt = request.prompt if isinstance(request.prompt, str) else ", ".join(map(str, request.prompt[:SHOWN]))
        views = [MessageView("prompt", None, text_of(prompt), None, (), None, ())]
    tools = (request.chat.tools if request.chat is not None else None) or []
    structure = None
    if request.structured_outputs is not None:
        ((name, value),) = request.structured_outputs.model_dump(exclude_none=True).items()
        structure = (name.replace("_", " "), text_of(value if isinstance(value, str) else _json(value)))
    return RequestView(
        views,
        len(messages) - len(shown),
        _parameters(job),
        [
            (
                tool.function.name,
                (tool.function.description or "")[:500],
                text_of(_json(tool.function.parameters or {})),
            )
            for tool in tools[:SHOWN_TOOLS]
        ],
        max(0, len(tools) - SHOWN_TOOLS),
        structure,
        size(request.size + request.options_size),
    )


def _message(message: Message) -> MessageView:
    parts = []
    for part in message.media:
        what = getattr(part, "filename", None) or part.type
        where = part.url if part.url is not None else part.file_id
        kind = part.media_type or ""
        about = where if where is not None else f"{kind}, {size(len(part.data or '') * 3 // 4)}"
        parts.append(f"{what}: {about}"[:500])
    calls = [
        CallView(call.id, call.function.name, text_of(call.function.arguments)) for call in message.tool_calls or ()
    ]
    text = message.content if isinstance(message.content, str) else "\n".join(_texts(message))
    reasoning = text_of(message.reasoning) if message.reasoning else None
    return MessageView(message.role, message.name, text_of(text), reasoning, calls, message.tool_call_id, parts)


def _texts(message: Message) -> list[str]:
    return [part.text for part in message.content or () if isinstance(part, TextPart)]


def _parameters(job: Job) -> list[tuple[str, str]]:
    """The parameters that were set, as the job has them."""
    request = job.request
    values: dict[str, Any] = request.sampling.model_dump(exclude_defaults=True)
    if request.chat is not None:
        values |= request.chat.model_dump(exclude_defaults=True, exclude_none=True, exclude={"tools"})
    for name in ("logprobs", "prompt_logprobs", "extra_body", "prompt_cache_key"):
        if (value := getattr(request, name)) is not None:
            values[name] = value
    values["priority"] = job.priority
    for name in ("start_before", "finish_before"):
        if (moment := getattr(job, name)) is not None:
            values[name] = moment.isoformat(timespec="seconds")
    return [
        (name, value if isinstance(value, str) else _json(value, indent=None)[:2000]) for name, value in values.items()
    ]


def _json(value: Any, indent: int | None = 2) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
