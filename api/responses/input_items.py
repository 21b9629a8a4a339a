"""The input items of a response: messages, function calls, their outputs, and reasoning.

All of OpenAI's notations are accepted and normalized: a message's content becomes a list of parts. Unsupported items
(images, files, references, items of other tools) are rejected.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from api.http.members import JsonForm
from api.http.validation import describe
from api.jobs.parameters import CallArguments
from shared.domain.request import UnicodeText, contradiction

TEXT_PARTS = ("input_text", "output_text", "text")
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class _Item(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: UnicodeText | None = Field(None, min_length=1, max_length=128)
    status: ItemStatus | None = None


class InputTextPart(BaseModel):
    """A text as clients send it. Output texts of responses have annotations and logprobs, which are dropped."""

    type: Literal["input_text", "output_text", "text"]
    text: UnicodeText
    annotations: Any = None
    logprobs: Any = None


TextParts = JsonForm(UnicodeText | list[InputTextPart])


class TextPart(BaseModel):
    """A text in a message. The annotations and logprobs of output texts are dropped."""

    type: Literal["input_text", "output_text"]
    text: UnicodeText
    annotations: list[Any] | None = None


class MessageItem(_Item):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[list[TextPart], TextParts] = Field(fail_fast=True)

    @model_validator(mode="before")
    @classmethod
    def _parts(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "content" not in data:
            return data
        is_output = data.get("role") == "assistant"
        texts = _texts(data["content"], "content")
        part = {"type": "output_text", "annotations": []} if is_output else {"type": "input_text"}
        return {**data, "content": [{**part, "text": text} for text in texts]}

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content)


class FunctionCallItem(_Item):
    """A function call by the model."""

    type: Literal["function_call"]
    call_id: UnicodeText = Field(min_length=1, max_length=128)
    name: UnicodeText = Field(min_length=1, max_length=128)
    arguments: CallArguments = "{}"


class FunctionCallOutputItem(_Item):
    """The output of a called function."""

    type: Literal["function_call_output"]
    call_id: UnicodeText = Field(min_length=1, max_length=128)
    output: Annotated[UnicodeText, TextParts] = ""

    @model_validator(mode="before")
    @classmethod
    def _joined(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("output"), list):
            return {**data, "output": "".join(_texts(data["output"], "output"))}
        return data


class SummaryPart(BaseModel):
    """A part of a reasoning summary."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["summary_text"] = "summary_text"
    text: UnicodeText


class ReasoningPart(BaseModel):
    """A part of the reasoning."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["reasoning_text"] = "reasoning_text"
    text: UnicodeText


class ReasoningItem(_Item):
    """The model's reasoning before its output."""

    type: Literal["reasoning"]
    summary: list[SummaryPart] = Field(default_factory=list, fail_fast=True)
    content: list[ReasoningPart] = Field(default_factory=list, fail_fast=True)

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content or self.summary)


InputItem = MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem

_KINDS: dict[str, type[_Item]] = {
    "message": MessageItem,
    "function_call": FunctionCallItem,
    "function_call_output": FunctionCallOutputItem,
    "reasoning": ReasoningItem,
}

_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def read_items(value: Any) -> Any:
    """Parse an `input`: a string, which becomes one user message, or a list of items.

    Other values are returned unchanged, and rejected by the schema.

    Raises:
        pydantic_core.PydanticCustomError: an item is invalid; names the first one and its field.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        return value
    items = [_read_item(item, f"input[{position}]") for position, item in enumerate(value)]
    seen: set[str] = set()
    for position, item in enumerate(items):
        if item.id is not None and item.id in seen:
            raise contradiction(f"input[{position}].id", f"input[{position}].id: {item.id!r} is used by another item")
        seen.update(filter(None, [item.id]))
    return items


def _read_item(value: Any, path: str) -> _Item:
    if not isinstance(value, dict):
        raise contradiction(path, f"{path}: must be an object")
    kind = value.get("type", "message" if "role" in value else None)
    model = _KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        known = ", ".join(_KINDS)
        got = "nothing" if kind is None else repr(str(kind)[:64])
        raise contradiction(f"{path}.type", f"{path}.type: must be one of {known}; got {got}")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        message, param = describe(error.errors(include_url=False))
        field = f"{path}.{param}" if param else path
        text = f"{path}.{message}" if param and message.startswith(param) else f"{field}: {message}"
        raise contradiction(field, text) from None


def _texts(content: Any, field: str) -> list[str]:
    """The texts of a content, which is a string or a list of text parts."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise contradiction(field, f"{field}: must be a string or a list of text parts")
    return [_text(part, f"{field}[{position}]") for position, part in enumerate(content)]


def _text(part: Any, path: str) -> str:
    if not (isinstance(part, dict) and part.get("type") in TEXT_PARTS and isinstance(part.get("text"), str)):
        kind = part.get("type") if isinstance(part, dict) else None
        raise contradiction(path, f"{path}: is not a text part ({str(kind)[:64]!r}); this model accepts text only")
    return str(part["text"])


def with_ids(items: list[dict[str, Any]], digits: str) -> list[dict[str, Any]]:
    """Add status and ids to stored input items. Items without an id get one derived from their index."""
    return [
        {"id": f"{_PREFIXES[item['type']]}_{digits}_in{index}", "status": "completed", **item}
        for index, item in enumerate(items)
    ]
