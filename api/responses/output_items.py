"""The items of a response's output during streaming, and their events.

The methods return events as `(type, fields)`, in the order of OpenAI's streams. `api.responses.events` adds the
sequence numbers and the index of the item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from shared.domain.events import CallDelta
from shared.domain.logprobs import entry_object
from shared.runtime.chunked_json import EncodedLists, Mapped

Fields = tuple[str, dict[str, Any]]


class OutputItem(Protocol):
    """An output item. It is opened, extended by deltas, and closed."""

    id: str

    def opening_events(self) -> list[Fields]:
        """The events after `response.output_item.added`."""

    def closing_events(self) -> list[Fields]:
        """The events before `response.output_item.done`."""

    def view(self, status: str) -> dict[str, Any]:
        """The item with its current content."""

    def empty_view(self) -> dict[str, Any]:
        """The item without content, for `response.output_item.added`."""


class MessageOutput:
    """The text of the output."""

    def __init__(self, digits: str, index: int) -> None:
        self.id = f"msg_{digits}_{index}"
        self._texts: list[str] = []
        self._entries = EncodedLists()
        self._logprobs = Mapped(self._entries, _logprob)

    def append(self, text: str, logprobs: Sequence[Any]) -> Fields:
        self._texts.append(text)
        self._entries.add(logprobs)
        entries = Mapped(logprobs, _logprob)
        return "response.output_text.delta", {"content_index": 0, "delta": text, "logprobs": entries}

    def opening_events(self) -> list[Fields]:
        return [("response.content_part.added", {"content_index": 0, "part": _output_text("", [])})]

    def closing_events(self) -> list[Fields]:
        text = "".join(self._texts)
        return [
            ("response.output_text.done", {"content_index": 0, "text": text, "logprobs": self._logprobs}),
            ("response.content_part.done", {"content_index": 0, "part": _output_text(text, self._logprobs)}),
        ]

    def view(self, status: str) -> dict[str, Any]:
        return self._item([_output_text("".join(self._texts), self._logprobs)], status)

    def empty_view(self) -> dict[str, Any]:
        return self._item([], "in_progress")

    def _item(self, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "status": status, "content": content}


class ReasoningOutput:
    """The model's reasoning, unsummarized."""

    def __init__(self, digits: str, index: int) -> None:
        self.id = f"rs_{digits}_{index}"
        self.encrypted_content: str | None = None
        self._texts: list[str] = []

    def append(self, text: str) -> Fields:
        self._texts.append(text)
        return "response.reasoning_text.delta", {"content_index": 0, "delta": text}

    def opening_events(self) -> list[Fields]:
        return [("response.content_part.added", {"content_index": 0, "part": _reasoning_text("")})]

    def closing_events(self) -> list[Fields]:
        text = "".join(self._texts)
        return [
            ("response.reasoning_text.done", {"content_index": 0, "text": text}),
            ("response.content_part.done", {"content_index": 0, "part": _reasoning_text(text)}),
        ]

    def view(self, status: str) -> dict[str, Any]:
        return self._item([_reasoning_text("".join(self._texts))], status)

    def empty_view(self) -> dict[str, Any]:
        return self._item([], "in_progress")

    def _item(self, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        return _reasoning(self.id, status, content, self.encrypted_content)


class OpaqueOutput:
    """A part of the provider without text: reasoning that is encrypted."""

    def __init__(self, digits: str, index: int, encrypted_content: str | None) -> None:
        self.id = f"rs_{digits}_{index}"
        self._encrypted_content = encrypted_content

    def opening_events(self) -> list[Fields]:
        return []

    def closing_events(self) -> list[Fields]:
        return []

    def view(self, status: str) -> dict[str, Any]:
        return _reasoning(self.id, status, [], self._encrypted_content)

    def empty_view(self) -> dict[str, Any]:
        return _reasoning(self.id, "in_progress", [], None)


class CallOutput:
    """A function call, created from its first fragment. `number` is its index among the output's calls."""

    def __init__(self, digits: str, index: int, first: CallDelta) -> None:
        self.id = f"fc_{digits}_{index}"
        self.number = first.index
        self._call_id = first.id or f"call_{digits}_{first.index}"
        self._name = first.name or ""
        self._arguments: list[str] = []

    def append(self, arguments: str) -> Fields:
        self._arguments.append(arguments)
        return "response.function_call_arguments.delta", {"delta": arguments}

    def opening_events(self) -> list[Fields]:
        return []

    def closing_events(self) -> list[Fields]:
        return [("response.function_call_arguments.done", {"arguments": "".join(self._arguments)})]

    def view(self, status: str) -> dict[str, Any]:
        return self._item("".join(self._arguments), status)

    def empty_view(self) -> dict[str, Any]:
        return self._item("", "in_progress")

    def _item(self, arguments: str, status: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "function_call",
            "status": status,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": arguments,
        }


def _reasoning(
    item_id: str, status: str, content: list[dict[str, Any]], encrypted_content: str | None
) -> dict[str, Any]:
    encrypted = {} if encrypted_content is None else {"encrypted_content": encrypted_content}
    return {"id": item_id, "type": "reasoning", "status": status, "summary": [], "content": content, **encrypted}


def _output_text(text: str, logprobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _reasoning_text(text: str) -> dict[str, Any]:
    return {"type": "reasoning_text", "text": text}


def _logprob(stored: Any) -> dict[str, Any]:
    """Convert an entry of the log to OpenAI's field names."""
    entry = entry_object(stored)
    return {
        "token": entry["token"],
        "logprob": entry["logprob"],
        "bytes": entry["bytes"],
        "top_logprobs": entry["top"],
    }
