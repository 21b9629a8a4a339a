"""What a response's input is made of: messages, calls of functions, their outputs, and reasoning.

Items are read in OpenAI's spellings and kept in one: a message's content is a list of parts. What cannot be used here
(images, files, references, other tools' items) is refused by name.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from api.http.validation import describe
from shared.domain.request import UnicodeText, contradiction

TEXT_PARTS = ("input_text", "output_text", "text")
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class _Item(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: UnicodeText | None = Field(None, min_length=1, max_length=128)
    status: ItemStatus | None = None


class TextPart(BaseModel):
    """A text in a message. What came beside one that a model wrote (annotations, logprobs) is not needed again."""

    type: Literal["input_text", "output_text"]
    text: UnicodeText
    annotations: list[Any] | None = None


class MessageItem(_Item):
    """A turn of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: list[TextPart] = Field(fail_fast=True)

    @model_validator(mode="before")
    @classmethod
    def _parts(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "content" not in data:
            return data
        written = data.get("role") == "assistant"
        texts = _texts(data["content"], "content")
        kept = {"type": "output_text", "annotations": []} if written else {"type": "input_text"}
        return {**data, "content": [{**kept, "text": text} for text in texts]}

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content)


class FunctionCallItem(_Item):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: UnicodeText = Field(min_length=1, max_length=128)
    name: UnicodeText = Field(min_length=1, max_length=128)
    arguments: UnicodeText


class FunctionCallOutputItem(_Item):
    """What a called function gave."""

    type: Literal["function_call_output"]
    call_id: UnicodeText = Field(min_length=1, max_length=128)
    output: UnicodeText

    @model_validator(mode="before")
    @classmethod
    def _joined(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("output"), list):
            return {**data, "output": "".join(_texts(data["output"], "output"))}
        return data


class SummaryPart(BaseModel):
    """A piece of a summary of reasoning."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["summary_text"] = "summary_text"
    text: UnicodeText


class ReasoningPart(BaseModel):
    """A piece of reasoning."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["reasoning_text"] = "reasoning_text"
    text: UnicodeText


class ReasoningItem(_Item):
    """What the model thought before it answered."""

    type: Literal["reasoning"]
    summary: list[SummaryPart] = Field(default_factory=list, fail_fast=True)
    content: list[ReasoningPart] = Field(default_factory=list, fail_fast=True)

    @model_validator(mode="before")
    @classmethod
    def _readable(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("encrypted_content") is not None:
            raise contradiction("encrypted_content", "encrypted_content: encrypted reasoning cannot be read here")
        return data

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


def read_items(given: Any) -> Any:
    """The items of an `input`: a text is one message of the user's. What is no list is left to be refused.

    Raises:
        pydantic_core.PydanticCustomError: names the first item that is wrong, and its field.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list):
        return given
    items = [_read_item(item, f"input[{position}]") for position, item in enumerate(given)]
    seen: set[str] = set()
    for position, item in enumerate(items):
        if item.id is not None and item.id in seen:
            raise contradiction(f"input[{position}].id", f"input[{position}].id: {item.id!r} is another item's id too")
        seen.update(filter(None, [item.id]))
    return items


def _read_item(given: Any, place: str) -> _Item:
    if not isinstance(given, dict):
        raise contradiction(place, f"{place}: must be an object")
    given = {name: value for name, value in given.items() if value is not None}
    kind = given.get("type", "message" if "role" in given else None)
    model = _KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        known = ", ".join(_KINDS)
        shown = "nothing" if kind is None else repr(str(kind)[:64])
        raise contradiction(f"{place}.type", f"{place}.type: must be one of {known}; got {shown}")
    try:
        return model.model_validate(given)
    except ValidationError as error:
        message, param = describe(error.errors(include_url=False))
        within = f"{place}.{param}" if param else place
        text = f"{place}.{message}" if param and message.startswith(param) else f"{within}: {message}"
        raise contradiction(within, text) from None


def _texts(content: Any, field: str) -> list[str]:
    """The texts of a content: one, or a list of text parts."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise contradiction(field, f"{field}: must be a text or a list of text parts")
    return [_text(part, f"{field}[{position}]") for position, part in enumerate(content)]


def _text(part: Any, place: str) -> str:
    if not (isinstance(part, dict) and part.get("type") in TEXT_PARTS and isinstance(part.get("text"), str)):
        kind = part.get("type") if isinstance(part, dict) else None
        raise contradiction(place, f"{place}: is not a text part ({str(kind)[:64]!r}); this model takes text only")
    return str(part["text"])


def listed(items: list[dict[str, Any]], digits: str) -> list[dict[str, Any]]:
    """Stored input items as they are listed: each with an id, its own or one that follows from its place."""
    return [
        {"id": f"{_PREFIXES[item['type']]}_{digits}_in{place}", "status": "completed", **item}
        for place, item in enumerate(items)
    ]
