"""Generation parameters of native jobs and OpenAI requests.

Names, bounds and defaults are those of vLLM's server. Before validation, `api.http.members` has dropped unknown members
and optional members that are null or empty.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from api.http.members import JsonForm
from api.http.submit_headers import AnswerParameters
from api.jobs.content_parts import ChatContent, read_content, with_path
from shared.domain.content import Content
from shared.domain.errors import InvalidRequest
from shared.domain.opaque import MAX_OPAQUE_PARTS, OpaquePart, decode_all, is_encoded
from shared.domain.request import (
    MAX_LOGPROBS,
    MAX_TOOLS,
    ChatOptions,
    ExtraBody,
    FunctionCall,
    JsonObject,
    Message,
    MessageToolCall,
    Sampling,
    StructuredOutputs,
    Tool,
    UnicodeText,
    contradiction,
    json_text,
    unicode_text,
)

DEFAULT_PRIORITY = 3
STRUCTURE_TYPES = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")

PLAIN_CHOICES = ("none", "auto", "required")


def _arguments_text(arguments: Any) -> Any:
    """The JSON text of a call's arguments. Clients also send them as an object, and none as nothing."""
    if isinstance(arguments, dict):
        return json_text(arguments)
    if arguments is None or arguments == [] or (isinstance(arguments, str) and not arguments.strip()):
        return "{}"
    return arguments


CallArguments = Annotated[
    UnicodeText, BeforeValidator(_arguments_text, json_schema_input_type=UnicodeText | dict[str, Any])
]


def plain_choice(choice: Any) -> Any:
    """`tool_choice` as a word, if it is one: Cursor sends `{"type": "auto"}`."""
    if isinstance(choice, dict) and choice.keys() == {"type"} and choice["type"] in PLAIN_CHOICES:
        return choice["type"]
    return choice


Logprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
PromptCacheKey = Annotated[
    UnicodeText, Field(description="A name for requests with a common prefix, sent to providers that route by it.")
]


class PastFunctionCall(FunctionCall):
    """The function of an earlier call, with arguments as clients send them back."""

    arguments: CallArguments = "{}"


class GoogleContent(BaseModel):
    """What Google's OpenAI-compatible API adds to a tool call."""

    thought_signature: str | None = None


class ExtraContent(BaseModel):
    """Data of the model's provider that belongs to a tool call, as in Google's OpenAI-compatible API."""

    google: GoogleContent | None = None


class PastToolCall(MessageToolCall):
    """A tool call in an earlier turn."""

    function: PastFunctionCall
    extra_content: ExtraContent | None = Field(None, description="As the response had it.")


ReasoningDetails = Annotated[list[dict[str, Any]], Field(max_length=MAX_OPAQUE_PARTS, fail_fast=True)]


class ChatMessage(Message):
    """A message in OpenAI's format. Its content is a string or a list of parts.

    The message of an assistant or a tool may have no content, because some responses and results have none.
    """

    content: Annotated[Content | None, JsonForm(ChatContent)] = None
    tool_calls: list[PastToolCall] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True)  # type: ignore[assignment]
    reasoning: UnicodeText | None = Field(None, validation_alias=AliasChoices("reasoning", "reasoning_content"))
    reasoning_details: ReasoningDetails | None = Field(None, description="As the response had them.")

    @model_validator(mode="before")
    @classmethod
    def _accept_earlier_message(cls, data: Any) -> Any:
        """Accept a response's message unchanged, without content or with both names of the reasoning; and no result."""
        if not isinstance(data, dict) or data.get("role") not in ("assistant", "tool"):
            return data
        message = dict(data)
        if "reasoning" in message:
            message.pop("reasoning_content", None)
        if message.get("content") is None and not message.get("tool_calls"):
            message["content"] = ""
        return message

    @field_validator("content", mode="before", json_schema_input_type=ChatContent | None)
    @classmethod
    def _parts(cls, content: Any) -> Any:
        return read_content(content)

    def message(self, path: str) -> Message:
        """Convert to the engine's form. `path` is that of the message in the request, for error messages."""
        calls = [
            MessageToolCall(
                id=call.id, function=FunctionCall(name=call.function.name, arguments=call.function.arguments)
            )
            for call in self.tool_calls or ()
        ]
        return Message(
            role=self.role,
            content=with_path(self.content, f"{path}.content"),
            name=self.name,
            tool_calls=None if self.tool_calls is None else calls,
            tool_call_id=self.tool_call_id,
            reasoning=self.reasoning,
            opaque=self._opaque_parts()[:MAX_OPAQUE_PARTS] or None,
        )

    def _opaque_parts(self) -> list[OpaquePart]:
        parts = list(self.opaque or ())
        for detail in self.reasoning_details or ():
            parts += decode_all([detail.get("data"), detail.get("signature")])
        for call in self.tool_calls or ():
            if call.extra_content is not None and call.extra_content.google is not None:
                parts += decode_all([call.extra_content.google.thought_signature])
        return parts


def has_parts(details: Any) -> bool:
    """Whether the `reasoning_details` of a message have opaque parts of this API."""
    return isinstance(details, list) and any(
        isinstance(detail, dict) and (is_encoded(detail.get("data")) or is_encoded(detail.get("signature")))
        for detail in details
    )


def has_part(extra_content: Any) -> bool:
    """Whether the `extra_content` of a tool call has an opaque part of this API."""
    match extra_content:
        case {"google": {"thought_signature": signature}}:
            return is_encoded(signature)
    return False


class JsonSchemaFormat(BaseModel):
    """A JSON Schema that the output must match."""

    model_config = ConfigDict(extra="forbid")

    name: UnicodeText
    description: UnicodeText | None = None
    json_schema: JsonObject = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """OpenAI's `response_format`, with both forms of vLLM's `structural_tag`."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    format: JsonObject | None = Field(None, description="For type structural_tag.")
    structures: list[JsonObject] | None = Field(
        None, fail_fast=True, description="For type structural_tag, in its legacy form."
    )
    triggers: list[UnicodeText] | None = Field(
        None, fail_fast=True, description="For type structural_tag, in its legacy form."
    )

    @model_validator(mode="after")
    def _required_fields_are_set(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise contradiction("json_schema", "json_schema is required with type 'json_schema'")
        if self.type == "structural_tag" and self.format is None and (self.structures is None or self.triggers is None):
            raise contradiction("format", "structural_tag requires `format`, or `structures` and `triggers`")
        return self

    def structure(self) -> StructuredOutputs | None:
        """Convert to the engine's form; None for plain text."""
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
    """vLLM's `structured_outputs`; exactly one field must be set."""

    model_config = ConfigDict(extra="forbid")

    json_schema: JsonObject | None = Field(None, alias="json", description="A JSON Schema, as an object or a string.")
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
            raise ValueError(f"give exactly one of {', '.join(STRUCTURE_TYPES)}")
        return self

    def structure(self) -> StructuredOutputs:
        """Convert to the engine's form."""
        fields = self.model_dump(exclude_none=True)
        if not fields.get("json_object", True):
            del fields["json_object"]
        return StructuredOutputs(**fields)


class NamedFunction(BaseModel):
    """The function that the model must call."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, StringConstraints(min_length=1)]


class NamedTool(BaseModel):
    """The tool that the model must call."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"] = "function"
    function: NamedFunction


def _without_template(kwargs: dict[str, Any]) -> dict[str, Any]:
    if kwargs.get("chat_template") is not None:
        raise ValueError("must not contain chat_template: a request cannot bring its own template, which is code")
    return kwargs


class CommonParameters(AnswerParameters, Sampling):
    """Parameters of all request types."""

    model: str = Field(min_length=1, description="A name from `GET /v1/models`.")
    priority: int = Field(DEFAULT_PRIORITY, ge=0, le=9, description="Lower values are served first, as in vLLM.")
    response_format: ResponseFormat | None = Field(None, description="The format of the output, as in OpenAI's API.")
    structured_outputs: Structure | None = Field(None, description="The format of the output, as in vLLM.")
    prompt_logprobs: Logprobs | None = Field(
        None,
        description="Return log probabilities of the prompt tokens and of this many most likely alternatives for each.",
    )
    extra_body: ExtraBody | None = Field(
        None,
        description="Parameters of the model's provider, by its names, that the model's entry allows. They may also be"
        " sent as members of the request, as OpenAI's SDK does.",
    )

    prompt_cache_key: PromptCacheKey | None = None

    @model_validator(mode="after")
    def _one_structure(self) -> Self:
        if self.structured_outputs is not None and self.response_format not in (None, ResponseFormat(type="text")):
            raise contradiction("response_format", "response_format and structured_outputs are mutually exclusive")
        return self

    def rename_param(self, error: InvalidRequest) -> InvalidRequest:
        """Name the parameter that this request has in an error about its job."""
        names = {"structured_outputs": "response_format"} if self.structured_outputs is None else {}
        if "top_logprobs" not in type(self).model_fields:
            names["top_logprobs"] = "logprobs"
        return error.renamed(names)

    def structure(self) -> StructuredOutputs | None:
        """The required format of the output; None if unconstrained."""
        if self.structured_outputs is not None:
            return self.structured_outputs.structure()
        return self.response_format.structure() if self.response_format is not None else None


class ChatParameters(CommonParameters):
    """Parameters of requests with a conversation."""

    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        None, description="Defaults to `auto` if there are tools."
    )
    parallel_tool_calls: bool = True
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    include_reasoning: bool = Field(True, description="Whether the response includes the reasoning.")
    add_generation_prompt: bool = True
    continue_final_message: bool = Field(
        False, description="Continue the last message; requires add_generation_prompt to be false."
    )
    add_special_tokens: bool = False
    chat_template_kwargs: Annotated[JsonObject, AfterValidator(_without_template)] | None = None
    documents: list[dict[UnicodeText, UnicodeText]] | None = Field(None, fail_fast=True)

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _choice_or_name(cls, choice: Any) -> Any:
        choice = plain_choice(choice)
        if choice is None or choice in PLAIN_CHOICES:
            return choice
        named = isinstance(choice, dict) and choice.keys() <= {"type", "function"}
        if named and choice.get("type", "function") == "function" and _is_named(choice.get("function")):
            return NamedTool.model_validate(choice)
        raise ValueError(
            'must be "none", "auto", "required" or {"type": "function", "function": {"name": "my_function"}}'
        )

    @model_validator(mode="after")
    def _consistent_chat_options(self) -> Self:
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise contradiction("tool_choice", "tool_choice requires tools")
        if isinstance(self.tool_choice, NamedTool):
            name = self.tool_choice.function.name
            if name not in {tool.function.name for tool in self.tools or ()}:
                raise contradiction("tool_choice", f"tool_choice names {name!r}, which is not in tools")
            if self.structured_outputs is not None:
                raise contradiction(
                    "structured_outputs", "structured_outputs and a named tool_choice are mutually exclusive"
                )
        if self.continue_final_message and self.add_generation_prompt:
            raise contradiction(
                "continue_final_message", "continue_final_message requires add_generation_prompt to be false"
            )
        return self

    def chat_options(self) -> ChatOptions | None:
        """Options for rendering the conversation and parsing the output; None for the defaults."""
        names = self.model_fields_set & ChatOptions.model_fields.keys()
        if not self.tools:
            names -= {"tools", "tool_choice"}
        if not names:
            return None
        options: dict[str, Any] = {name: getattr(self, name) for name in names}
        if isinstance(self.tool_choice, NamedTool):
            options["tool_choice"] = {"name": self.tool_choice.function.name}
        return ChatOptions.model_validate(options)


def _is_named(function: Any) -> bool:
    return isinstance(function, dict) and function.keys() == {"name"} and isinstance(function["name"], str)


def is_token_ids(prompt: Any) -> bool:
    """Whether a prompt is a list of token ids."""
    return isinstance(prompt, list) and bool(prompt) and all(type(token) is int for token in prompt)


def check_prompts(prompts: list[Any]) -> None:
    """Raise `ValueError` if these are not prompts: strings, or lists of token ids."""
    if not prompts or "" in prompts or [] in prompts:
        raise ValueError("must not be empty")
    if not (all(isinstance(prompt, str) for prompt in prompts) or all(map(is_token_ids, prompts))):
        raise ValueError(
            "must be a string or a list of token ids, or, if several prompts are allowed, a list of either"
        )
    for prompt in prompts:
        if isinstance(prompt, str):
            unicode_text(prompt)
        elif not all(0 <= token < 2**31 for token in prompt):
            raise ValueError("token ids must be from 0 to 2,147,483,647")


def sampling_of(request: Sampling) -> Sampling:
    """Extract the sampling parameters of a request."""
    sent = request.model_fields_set & Sampling.model_fields.keys()
    return Sampling.model_validate({name: value for name in sent if (value := getattr(request, name)) is not None})


MAX_METADATA = 16
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
