"""What may be asked of a model, under vLLM's names: one definition for native jobs and for OpenAI's calls.

Names, bounds and defaults are those of vLLM's server. A parameter that is not supported is refused, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from shared.domain.request import (
    MAX_TOOLS,
    ChatOptions,
    JsonObject,
    Message,
    Sampling,
    StructuredOutputs,
    Tool,
    UnicodeText,
    contradiction,
    unicode_text,
)

DEFAULT_PRIORITY = 3
# vLLM's own limit, unless a server raises it.
MAX_LOGPROBS = 20
KINDS_OF_STRUCTURE = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
# What an answer of this API or of OpenAI's may hold, and what says nothing when a client sends it back.
EMPTY_IN_MESSAGES: tuple[Any, ...] = (None, [])

Logprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]


class ChatMessage(Message):
    """A message as OpenAI's clients send it: content is a text, or a list of text parts."""

    @model_validator(mode="before")
    @classmethod
    def _as_it_was_answered(cls, data: Any) -> Any:
        """An answer's message can be sent back as it came: with nulls, empty lists, or `reasoning_content`."""
        if not isinstance(data, dict):
            return data
        message = {name: value for name, value in data.items() if name == "content" or value not in EMPTY_IN_MESSAGES}
        if "reasoning_content" in message:
            message.setdefault("reasoning", message.pop("reasoning_content"))
        if message.get("role") == "assistant" and message.get("tool_calls"):
            message.setdefault("content", None)
        return message

    @field_validator("content", mode="before")
    @classmethod
    def _text_parts(cls, content: Any) -> Any:
        """Parts are joined with line breaks, as vLLM joins them for templates that take a text."""
        if not isinstance(content, list):
            return content
        texts: list[str] = []
        for position, part in enumerate(content):
            if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                raise ValueError(f"content part {position} is not a text part; this model takes text only")
            texts.append(part["text"])
        return "\n".join(texts)


class JsonSchemaFormat(BaseModel):
    """A JSON Schema that the text must follow."""

    model_config = ConfigDict(extra="forbid")

    name: UnicodeText
    description: UnicodeText | None = None
    json_schema: JsonObject = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """What the text must be, in OpenAI's words, with vLLM's `structural_tag` in its two forms."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    format: JsonObject | None = Field(None, description="Of a structural_tag.")
    structures: list[JsonObject] | None = Field(
        None, fail_fast=True, description="Of a structural_tag, in its older form."
    )
    triggers: list[UnicodeText] | None = Field(
        None, fail_fast=True, description="Of a structural_tag, in its older form."
    )

    @model_validator(mode="after")
    def _has_what_its_type_needs(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise contradiction("json_schema", "json_schema must be given when type is 'json_schema'")
        if self.type == "structural_tag" and self.format is None and (self.structures is None or self.triggers is None):
            raise contradiction("format", "a structural_tag needs `format`, or `structures` and `triggers`")
        return self

    def structure(self) -> StructuredOutputs | None:
        """The same in one form for all; None for plain text."""
        match self.type:
            case "text":
                return None
            case "json_object":
                return StructuredOutputs(json_object=True)
            case "json_schema":
                assert self.json_schema is not None
                return StructuredOutputs(json_schema=self.json_schema.json_schema)
            case "structural_tag":
                tag = orjson.dumps(self.model_dump(exclude_none=True))
                return StructuredOutputs(structural_tag=tag.decode())


class Structure(BaseModel):
    """vLLM's `structured_outputs`: exactly one of these."""

    model_config = ConfigDict(extra="forbid")

    json_schema: JsonObject | None = Field(None, alias="json", description="A JSON Schema, or its text.")
    regex: UnicodeText | None = None
    choice: list[UnicodeText] | None = Field(None, min_length=1, fail_fast=True)
    grammar: UnicodeText | None = None
    json_object: bool | None = None
    structural_tag: UnicodeText | None = None

    @field_validator("json_schema", mode="before")
    @classmethod
    def _parsed(cls, schema: Any) -> Any:
        if not isinstance(schema, str):
            return schema
        try:
            return orjson.loads(schema)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"must be a JSON Schema: {error}") from None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self.structure().model_dump(exclude_none=True)) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS_OF_STRUCTURE)}")
        return self

    def structure(self) -> StructuredOutputs:
        """The same in one form for all."""
        given = self.model_dump(exclude_none=True)
        if not given.get("json_object", True):
            del given["json_object"]
        return StructuredOutputs(**given)


class NamedFunction(BaseModel):
    """The function that must be called."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, StringConstraints(min_length=1)]


class NamedTool(BaseModel):
    """The tool that must be called."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"] = "function"
    function: NamedFunction


def _without_template(kwargs: dict[str, Any]) -> dict[str, Any]:
    if kwargs.get("chat_template") is not None:
        raise ValueError("a template cannot come with a request; it is code")
    return kwargs


class CommonParameters(Sampling):
    """What every kind of request may have."""

    model: str = Field(min_length=1, description="A name from `GET /v1/models`.")
    priority: int = Field(DEFAULT_PRIORITY, ge=0, le=9, description="Lower is served first, as in vLLM.")
    response_format: ResponseFormat | None = Field(None, description="What the text must be, in OpenAI's words.")
    structured_outputs: Structure | None = Field(None, description="What the text must be, in vLLM's words.")
    prompt_logprobs: Logprobs | None = Field(
        None, description="Log probabilities of the prompt's tokens, and of so many likeliest in their places."
    )

    @model_validator(mode="after")
    def _one_structure(self) -> Self:
        if self.structured_outputs is not None and self.response_format not in (None, ResponseFormat(type="text")):
            raise contradiction(
                "response_format", "response_format and structured_outputs exclude each other; give one of them"
            )
        return self

    def structure(self) -> StructuredOutputs | None:
        """What the text must be; None: anything."""
        if self.structured_outputs is not None:
            return self.structured_outputs.structure()
        return self.response_format.structure() if self.response_format is not None else None


class ChatParameters(CommonParameters):
    """What a request with a conversation may have."""

    tools: list[Tool] | None = Field(None, min_length=1, max_length=MAX_TOOLS, fail_fast=True)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        None, description="By default `auto` where there are tools."
    )
    parallel_tool_calls: bool = True
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    include_reasoning: bool = Field(True, description="Whether the answer tells the reasoning.")
    add_generation_prompt: bool = True
    continue_final_message: bool = Field(
        False, description="The last message is gone on with; add_generation_prompt must be false then."
    )
    add_special_tokens: bool = False
    chat_template_kwargs: Annotated[JsonObject, AfterValidator(_without_template)] | None = None
    documents: list[dict[UnicodeText, UnicodeText]] | None = Field(None, fail_fast=True)

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _choice_or_name(cls, choice: Any) -> Any:
        if choice is None or choice in ("none", "auto", "required"):
            return choice
        named = isinstance(choice, dict) and choice.keys() <= {"type", "function"}
        if named and choice.get("type", "function") == "function" and _is_named(choice.get("function")):
            return NamedTool.model_validate(choice)
        raise ValueError(
            'must be "none", "auto", "required" or {"type": "function", "function": {"name": "my_function"}}'
        )

    @model_validator(mode="after")
    def _tools_fit_together(self) -> Self:
        if self.tool_choice is not None and self.tool_choice != "none" and self.tools is None:
            raise contradiction("tool_choice", "tool_choice needs tools")
        if isinstance(self.tool_choice, NamedTool):
            name = self.tool_choice.function.name
            if name not in {tool.function.name for tool in self.tools or ()}:
                raise contradiction("tool_choice", f"tool_choice names {name!r}, which is none of the tools")
            if self.structured_outputs is not None:
                raise contradiction(
                    "structured_outputs", "structured_outputs and a named tool exclude each other; give one of them"
                )
        if self.continue_final_message and self.add_generation_prompt:
            raise contradiction(
                "continue_final_message", "continue_final_message needs add_generation_prompt to be false"
            )
        return self

    def chat_options(self) -> ChatOptions | None:
        """How the conversation is rendered and its answer parsed; None: as always."""
        asked = self.model_fields_set & ChatOptions.model_fields.keys()
        if not asked:
            return None
        given = self.model_dump(include=asked)
        if isinstance(self.tool_choice, NamedTool):
            given["tool_choice"] = {"name": self.tool_choice.function.name}
        return ChatOptions.model_validate(given)


def _is_named(function: Any) -> bool:
    return isinstance(function, dict) and function.keys() == {"name"} and isinstance(function["name"], str)


def is_token_ids(prompt: Any) -> bool:
    """Whether a prompt is given as token ids."""
    return isinstance(prompt, list) and bool(prompt) and all(type(token) is int for token in prompt)


def check_prompts(prompts: list[Any]) -> None:
    """Raise `ValueError` where these are not prompts: texts, or lists of token ids."""
    if not prompts or "" in prompts or [] in prompts:
        raise ValueError("must not be empty")
    if not (all(isinstance(prompt, str) for prompt in prompts) or all(map(is_token_ids, prompts))):
        raise ValueError("must be a text or a list of token ids, or, where several are taken, a list of either")
    for prompt in prompts:
        if isinstance(prompt, str):
            unicode_text(prompt)
        elif not all(0 <= token < 2**31 for token in prompt):
            raise ValueError("token ids are from 0 to 2,147,483,647")


def sampling_of(request: Sampling) -> Sampling:
    """The sampling parameters of a larger request, and nothing else of it."""
    return Sampling.model_validate(
        request.model_dump(include=set(Sampling.model_fields), exclude_unset=True, exclude_none=True)
    )


MAX_METADATA = 16
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
