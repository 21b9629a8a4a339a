"""Schemas of OpenAI's Responses API."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from api.http.end_user import EndUserParameters
from api.http.members import MemberRules
from api.http.pagination import PageView
from api.http.submit_headers import AnswerParameters
from api.jobs import dialects
from api.jobs.dialects import ENCRYPTED_REASONING, LOGPROBS
from api.jobs.parameters import (
    DEFAULT_PRIORITY,
    MAX_METADATA,
    PLAIN_CHOICES,
    MetadataKey,
    MetadataValue,
    PromptCacheKey,
    plain_choice,
)
from api.responses.input_items import InputItem, read_items
from api.responses.stored_media import without_data
from shared.domain.answer_options import ContextOptions
from shared.domain.request import (
    MAX_MESSAGES,
    ChatOptions,
    ExtraBody,
    Function,
    GenerateRequest,
    JsonObject,
    Message,
    NonEmpty,
    Sampling,
    StructuredOutputs,
    Tool,
    UnicodeText,
    contradiction,
)
from shared.domain.response import ENCRYPTED, ResponseFacts

MAX_TOP_LOGPROBS = 20
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
# OpenAI's bound of the name of a format is lower than that of a function.
FormatName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class FunctionTool(BaseModel):
    """A function that the model may call; `parameters` is a JSON Schema."""

    model_config = _STRICT

    type: Literal["function"]
    name: Name
    description: UnicodeText | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class FunctionChoice(BaseModel):
    """The function that the model must call."""

    model_config = _STRICT

    type: Literal["function"]
    name: Name


def _choice(value: Any) -> Any:
    value = plain_choice(value)
    if value in PLAIN_CHOICES:
        return value
    if isinstance(value, dict) and value.keys() == {"type", "name"} and value["type"] == "function":
        return value
    raise ValueError('must be "none", "auto", "required" or {"type": "function", "name": ...}')


ToolChoice = Annotated[Literal["none", "auto", "required"] | FunctionChoice, BeforeValidator(_choice)]


class TextFormat(BaseModel):
    """The format of the output: unconstrained, any JSON object, or an instance of a JSON Schema."""

    model_config = _STRICT

    type: Literal["text", "json_object", "json_schema"]
    name: FormatName | None = None
    schema_: JsonObject | None = Field(None, alias="schema")
    description: UnicodeText | None = None
    strict: bool | None = Field(None, description="No effect: the output always matches the schema.")

    @model_validator(mode="after")
    def _schema_matches_type(self) -> Self:
        for name, value in (("name", self.name), ("schema", self.schema_)):
            if value is None and self.type == "json_schema":
                raise contradiction(name, f"text.format.{name}: this field is required with type json_schema")
            if value is not None and self.type != "json_schema":
                raise contradiction(name, f"text.format.{name}: is only allowed with type json_schema, not {self.type}")
        return self


class TextConfig(BaseModel):
    """Options of the output text."""

    model_config = _STRICT

    format: TextFormat = TextFormat(type="text")


class ReasoningConfig(BaseModel):
    """Reasoning effort, for models that support it."""

    model_config = _STRICT

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


class StreamOptions(BaseModel):
    """Options of a stream. Streams are not padded."""

    model_config = _STRICT

    include_obfuscation: Literal[False] = False


COMPACTION = "compaction"


class ContextManagement(BaseModel):
    """How a long conversation is shortened. Only the type `compaction` is supported."""

    model_config = _STRICT

    type: UnicodeText
    compact_threshold: int | None = Field(
        None, ge=1, lt=2**31, description="Summarize the oldest turns of a conversation with more tokens."
    )


class ResponseCreate(EndUserParameters, AnswerParameters):
    """`POST /v1/responses`."""

    member_rules: ClassVar[MemberRules] = dialects.RESPONSES
    model_config = ConfigDict(
        **_STRICT,
        json_schema_extra={
            "examples": [
                {"model": "smollm2", "input": "Name three rivers.", "max_output_tokens": 64},
                {
                    "model": "smollm2",
                    "instructions": "Answer in one word.",
                    "input": [{"role": "user", "content": "What is the capital of France?"}],
                    "max_output_tokens": 16,
                    "temperature": 0,
                    "stream": True,
                    "cache": {"ttl": 3600},
                    "truncation": "auto",
                },
                {
                    "model": "smollm2",
                    "input": "Tell me a story about a mill.",
                    "max_output_tokens": 32,
                    "background": True,
                    "webhook": "https://hooks.example.com/headrace",
                },
            ]
        },
    )

    model: str = Field(min_length=1, description="A name from `GET /v1/models`.")
    input: list[InputItem] = Field(
        min_length=1, max_length=MAX_MESSAGES, fail_fast=True, description="A string, or a list of items."
    )
    instructions: UnicodeText | None = Field(None, description="System message; not carried over to later responses.")
    previous_response_id: str | None = Field(None, description="The response to continue.")
    tools: list[FunctionTool] = Field(default_factory=list, max_length=128, fail_fast=True)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    text: TextConfig = TextConfig()
    reasoning: ReasoningConfig = ReasoningConfig()
    max_output_tokens: int | None = Field(
        None, ge=1, lt=2**31, description="Limit of output tokens, including reasoning."
    )
    temperature: float | None = Field(None, ge=0, le=2, description="0 means greedy decoding.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS, description=f"With `include: [{LOGPROBS}]`.")
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] = Field(
        default_factory=list, fail_fast=True
    )
    metadata: dict[MetadataKey, MetadataValue] = Field(default_factory=dict, max_length=MAX_METADATA)
    store: bool = Field(
        True, description="If false, the response cannot be retrieved, and is deleted soon after its end."
    )
    background: bool = Field(False, description="Return immediately; the response continues without the client.")
    stream: bool = False
    stream_options: StreamOptions | None = None
    truncation: Literal["auto", "disabled"] = Field(
        "disabled", description="`auto` drops the oldest turns of a conversation that outgrows the context."
    )
    context_management: list[ContextManagement] = Field(default_factory=list, max_length=16, fail_fast=True)
    service_tier: Literal["auto", "default"] = "auto"
    prompt_cache_key: PromptCacheKey | None = None

    extra_body: ExtraBody | None = Field(
        None,
        description="Parameters of the model's provider, by its names, that the model's entry allows. They may also be"
        " sent as members of the request, as OpenAI's SDK does.",
    )

    # vLLM's extensions of OpenAI's API.
    priority: int = Field(DEFAULT_PRIORITY, ge=0, le=9, description="Lower values are served first, as in vLLM.")
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=1e6)
    stop: list[NonEmpty] = Field(default_factory=list, max_length=16, fail_fast=True)

    @model_validator(mode="before")
    @classmethod
    def _normalize(cls, data: Any) -> Any:
        """Parse the input items, and name an unsupported tool in the error."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if "input" in data:
            data["input"] = read_items(data["input"])
        for position, tool in enumerate(data["tools"] if isinstance(data.get("tools"), list) else ()):
            kind = tool.get("type") if isinstance(tool, dict) else None
            if isinstance(kind, str) and kind != "function":
                path = f"tools[{position}].type"
                raise contradiction(path, f"{path}: {kind[:64]!r} is not supported; only function tools are")
        if isinstance(data.get("stop"), str):
            data["stop"] = [data["stop"]]
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise contradiction("stream_options", "stream_options is only allowed with stream=true")
        if self.background and not self.store:
            raise contradiction(
                "store", "store must be true with background=true, because the response is retrieved by its id"
            )
        if self.top_logprobs and LOGPROBS not in self.include:
            raise contradiction("top_logprobs", f'top_logprobs requires include: ["{LOGPROBS}"]')
        names = [tool.name for tool in self.tools]
        if isinstance(self.tool_choice, FunctionChoice) and self.tool_choice.name not in names:
            raise contradiction("tool_choice", f"tool_choice: there is no tool `{self.tool_choice.name}` in tools")
        if self.tool_choice == "required" and not names:
            raise contradiction("tool_choice", "tool_choice: `required` requires tools")
        if len(set(names)) < len(names):
            raise contradiction("tools", "tools: names must be unique")
        return self

    def generate_request(self, messages: list[Message]) -> GenerateRequest:
        """Build the engine request for a conversation that ends with the input."""
        return GenerateRequest(
            messages=messages,
            sampling=self._sampling(),
            priority=self.priority,
            chat=self._chat(),
            structured_outputs=self._structured_outputs(),
            logprobs=(self.top_logprobs or 0) if LOGPROBS in self.include else None,
            extra_body=self.extra_body,
            prompt_cache_key=self.prompt_cache_key,
            token_counts=True,  # needed for usage.output_tokens_details.reasoning_tokens
        )

    @property
    def context_options(self) -> ContextOptions | None:
        """How a long conversation is shortened, by this API's parameters or OpenAI's."""
        if self.context is not None:
            return self.context
        for entry in self.context_management:
            if entry.type == COMPACTION:
                return ContextOptions(strategy="summarize", trigger_tokens=entry.compact_threshold)
        if "truncation" not in self.model_fields_set:
            return None
        return ContextOptions(strategy="sliding_window" if self.truncation == "auto" else "error")

    def echoed(self) -> dict[str, Any]:
        """The request parameters that the response repeats."""
        echoed = self.model_dump(mode="json", by_alias=True, exclude_none=True, include=_ECHOED)
        if ENCRYPTED_REASONING in self.include or not self.store:
            echoed[ENCRYPTED] = True
        return echoed

    def facts(self) -> ResponseFacts:
        """The data of the response that its job does not have."""
        return ResponseFacts(
            request_params=self.echoed(),
            input=without_data([item.model_dump(mode="json", exclude_none=True) for item in self.input]),
            previous_id=self.previous_response_id,
            background=self.background,
            stored=self.store,
        )

    def _sampling(self) -> Sampling:
        parameters = self.model_dump(include=set(Sampling.model_fields), exclude_unset=True)
        return Sampling(**parameters, max_tokens=self.max_output_tokens)

    def _chat(self) -> ChatOptions | None:
        if not self.tools and self.reasoning.effort is None:
            return None
        tools = [
            Tool(
                function=Function(
                    name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
                )
            )
            for tool in self.tools
        ]
        choice = self.tool_choice
        return ChatOptions(
            tools=tools or None,
            tool_choice=({"name": choice.name} if isinstance(choice, FunctionChoice) else choice) if tools else None,
            parallel_tool_calls=self.parallel_tool_calls,
            reasoning_effort=self.reasoning.effort,
        )

    def _structured_outputs(self) -> StructuredOutputs | None:
        match self.text.format.type:
            case "json_object":
                return StructuredOutputs(json_object=True)
            case "json_schema":
                return StructuredOutputs(json_schema=self.text.format.schema_)
            case _:
                return None


_ECHOED = {
    "instructions",
    "previous_response_id",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "text",
    "reasoning",
    "max_output_tokens",
    "temperature",
    "top_p",
    "top_logprobs",
    "truncation",
    "service_tier",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "background",
    "store",
}


class ResponseError(BaseModel):
    """Why the response failed. `code` is OpenAI's error code, `type` is the job's."""

    code: Literal["server_error", "invalid_prompt"]
    message: str
    type: str


class IncompleteDetails(BaseModel):
    """Why the response is incomplete."""

    reason: Literal["max_output_tokens", "content_filter"]


class InputTokensDetails(BaseModel):
    """Prompt tokens found in the prefix cache, and stored in it if the upstream reports them."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(BaseModel):
    """Reasoning tokens of the output."""

    reasoning_tokens: int


class ResponseUsage(BaseModel):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseView(BaseModel):
    """A response."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    model: str
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    output: list[dict[str, Any]] = Field(description="Items: `reasoning`, `message`, `function_call`.")
    usage: ResponseUsage | None
    metadata: dict[str, str]
    instructions: str | None
    previous_response_id: str | None
    tools: list[FunctionTool]
    tool_choice: ToolChoice
    parallel_tool_calls: bool
    text: TextConfig
    reasoning: dict[str, str | None]
    max_output_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_logprobs: int | None
    truncation: Literal["auto", "disabled"]
    service_tier: str
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    background: bool
    store: bool


class ResponseDeleted(BaseModel):
    """A response whose input and output have been deleted."""

    id: str
    object: Literal["response.deleted"] = "response.deleted"
    deleted: Literal[True] = True


class InputItemList(PageView[dict[str, Any]]):
    """A page of input items."""
