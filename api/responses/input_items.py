"""The input items of a response: messages, function calls, their outputs, and reasoning.

All of OpenAI's notations are accepted and normalized: a message's content becomes a list of parts. Unsupported items
(references, items of other tools) are rejected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from api.http.members import JsonForm
from api.http.validation import describe
from api.jobs.content_parts import url_source
from api.jobs.parameters import CallArguments
from shared.domain.content import ContentPart, FilePart, ImageDetail, ImagePart
from shared.domain.content import TextPart as DomainText
from shared.domain.request import UnicodeText, contradiction

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


class InputImagePart(BaseModel):
    """An image: a data URL, a URL that the model's provider fetches, or the id of a file that it has."""

    type: Literal["input_image"]
    image_url: UnicodeText | None = None
    file_id: UnicodeText | None = None
    detail: ImageDetail | None = None

    def part(self) -> ImagePart:
        """Convert to the engine's form. Raises `ValueError`."""
        source = {"file_id": self.file_id} if self.image_url is None else url_source(self.image_url)
        return ImagePart.model_validate({"type": "image", "detail": self.detail, **source})


class InputFilePart(BaseModel):
    """A file: its data, a URL that the model's provider fetches, or the id of a file that it has."""

    type: Literal["input_file"]
    file_data: str | None = None
    file_url: UnicodeText | None = None
    file_id: UnicodeText | None = None
    filename: UnicodeText | None = None

    def part(self) -> FilePart:
        """Convert to the engine's form. Raises `ValueError`."""
        source: dict[str, Any] = {"file_id": self.file_id, "url": self.file_url}
        if self.file_data is not None:
            source |= url_source(self.file_data, filename=self.filename)
        return FilePart.model_validate({"type": "file", "filename": self.filename, **source})


Parts = JsonForm(UnicodeText | list[InputTextPart | InputImagePart | InputFilePart])


class TextPart(BaseModel):
    """A text in a message. The annotations and logprobs of output texts are dropped."""

    type: Literal["input_text", "output_text"]
    text: UnicodeText
    annotations: list[Any] | None = None


def _part_tag(part: Any) -> str:
    match part:
        case InputImagePart():
            return "<image>"
        case InputFilePart():
            return "<file>"
    return "<text>"


# Tags in <> are omitted from the field names in errors. `_parts` has read the images and files.
ItemPart = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[InputImagePart, Tag("<image>")]
    | Annotated[InputFilePart, Tag("<file>")],
    Discriminator(_part_tag),
]


class MessageItem(_Item):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[list[ItemPart], Parts] = Field(fail_fast=True)

    @model_validator(mode="before")
    @classmethod
    def _parts(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "content" not in data:
            return data
        is_output = data.get("role") == "assistant"
        parts = _parts(data["content"], "content")
        text = {"type": "output_text", "annotations": []} if is_output else {"type": "input_text"}
        return {**data, "content": [{**text, "text": part} if isinstance(part, str) else part for part in parts]}

    @model_validator(mode="after")
    def _media_of_users(self) -> Self:
        if self.role != "user" and any(not isinstance(part, TextPart) for part in self.content):
            raise contradiction("content", f"content: a message of role {self.role} has texts only")
        return self

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    def parts(self, path: str) -> str | list[ContentPart]:
        """The content in the engine's form; a string if it has only texts."""
        return _content(self.content, f"{path}.content")


class FunctionCallItem(_Item):
    """A function call by the model."""

    type: Literal["function_call"]
    call_id: UnicodeText = Field(min_length=1, max_length=128)
    name: UnicodeText = Field(min_length=1, max_length=128)
    arguments: CallArguments = "{}"


_Output = Annotated[
    Annotated[UnicodeText, Tag("<text>")] | Annotated[list[ItemPart], Field(fail_fast=True), Tag("<parts>")],
    Discriminator(lambda output: "<parts>" if isinstance(output, list) else "<text>"),
]


class FunctionCallOutputItem(_Item):
    """The output of a called function."""

    type: Literal["function_call_output"]
    call_id: UnicodeText = Field(min_length=1, max_length=128)
    output: Annotated[_Output, Parts] = ""

    @model_validator(mode="before")
    @classmethod
    def _joined(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("output"), list):
            return data
        parts = _parts(data["output"], "output")
        if all(isinstance(part, str) for part in parts):
            return {**data, "output": "".join(parts)}
        texts = [{"type": "input_text", "text": part} if isinstance(part, str) else part for part in parts]
        return {**data, "output": texts}

    def parts(self, path: str) -> str | list[ContentPart]:
        """The output in the engine's form; a string if it has only texts."""
        return self.output if isinstance(self.output, str) else _content(self.output, f"{path}.output")


def _content(parts: Sequence[TextPart | InputImagePart | InputFilePart], path: str) -> str | list[ContentPart]:
    if all(isinstance(part, TextPart) for part in parts):
        return "".join(part.text for part in parts if isinstance(part, TextPart))
    converted: list[ContentPart] = []
    for position, part in enumerate(parts):
        if isinstance(part, TextPart):
            converted.append(DomainText(type="text", text=part.text))
        else:
            converted.append(part.part().model_copy(update={"path": f"{path}[{position}]"}))
    return converted


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
    """The model's reasoning before its output. `encrypted_content` is the opaque part of an earlier response."""

    type: Literal["reasoning"]
    encrypted_content: str | None = None
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


def _parts(content: Any, field: str) -> list[Any]:
    """The parts of a content, which is a string or a list of parts; texts as strings."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise contradiction(field, f"{field}: must be a string or a list of parts")
    return [_part(part, f"{field}[{position}]") for position, part in enumerate(content)]


def _part(part: Any, path: str) -> Any:
    match part:
        case {"type": "input_text" | "output_text" | "text", "text": str(text)}:
            return text
        case {"type": "input_text" | "output_text" | "text"}:
            raise contradiction(f"{path}.text", f"{path}.text: must be a string")
        case {"type": "input_image" | "input_file" as kind}:
            return _media(part, kind, path)
    kind = part.get("type") if isinstance(part, dict) else None
    raise contradiction(
        path, f"{path}: {str(kind)[:64]!r} is not supported; parts are input_text, input_image and input_file"
    )


def _media(part: dict[str, Any], kind: str, path: str) -> InputImagePart | InputFilePart:
    try:
        media = (InputImagePart if kind == "input_image" else InputFilePart).model_validate(part)
        media.part()
    except ValidationError as error:
        message, _ = describe(error.errors(include_url=False, include_input=False))
        raise contradiction(path, f"{path}: {message}") from None
    except ValueError as error:
        name = "image_url" if kind == "input_image" else "file_data"
        raise contradiction(path, f"{path}: {name} {error}") from None
    return media


def with_ids(items: list[dict[str, Any]], digits: str) -> list[dict[str, Any]]:
    """Add status and ids to stored input items. Items without an id get one derived from their index."""
    return [
        {"id": f"{_PREFIXES[item['type']]}_{digits}_in{index}", "status": "completed", **item}
        for index, item in enumerate(items)
    ]
