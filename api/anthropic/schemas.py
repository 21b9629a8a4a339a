"""Anthropic's shapes, as far as they are supported. A parameter that is not is refused, never ignored.

The exceptions are hints that have nothing to do here: `cache_control` (prefixes are cached anyway), `service_tier`.
https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

from api.jobs.parameters import DEFAULT_PRIORITY
from shared.domain.request import MAX_MESSAGES, MAX_STOPS, MAX_TOOLS, JsonObject, UnicodeText, contradiction

MAX_BLOCKS = 10_000

Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Effort = Literal["low", "medium", "high", "xhigh", "max"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class CacheControl(_Strict):
    """Accepted and not used: the engine caches every prefix."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class _Cacheable(_Strict):
    cache_control: CacheControl | None = None


class TextBlock(_Cacheable):
    """A piece of text."""

    type: Literal["text"]
    text: UnicodeText
    citations: None = None


class ThinkingBlock(_Strict):
    """What the model thought in an earlier turn. The signature is not looked at."""

    type: Literal["thinking"]
    thinking: UnicodeText
    signature: str | None = None


class RedactedThinkingBlock(_Strict):
    """Thinking that only its maker can read; left out."""

    type: Literal["redacted_thinking"]
    data: str


class DirectCaller(_Strict):
    """A call that the model made itself."""

    type: Literal["direct"]


class ToolUseBlock(_Cacheable):
    """A call of an earlier turn of the model's."""

    type: Literal["tool_use"]
    id: UnicodeText
    name: UnicodeText
    input: JsonObject
    caller: DirectCaller | None = None


def _text_as_block(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


TextBlocks = Annotated[
    list[TextBlock],
    Field(max_length=MAX_BLOCKS, fail_fast=True),
    BeforeValidator(_text_as_block, json_schema_input_type=UnicodeText | list[TextBlock]),
]


class ToolResultBlock(_Cacheable):
    """What a tool answered. `is_error` is left to the content to say."""

    type: Literal["tool_result"]
    tool_use_id: UnicodeText
    content: TextBlocks = Field(default_factory=list)
    is_error: bool | None = None


_BLOCKS = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result")


def _block_type(block: Any) -> str | None:
    kind = block.get("type") if isinstance(block, dict) else getattr(block, "type", None)
    return f"<{kind}>" if kind in _BLOCKS else None


# Tags in <> are left out where an error names its field.
Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")]
    | Annotated[RedactedThinkingBlock, Tag("<redacted_thinking>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")],
    Discriminator(
        _block_type,
        custom_error_type="block_type",
        custom_error_message=f"must be a block whose type is one of {', '.join(_BLOCKS)}; this model takes text only",
    ),
]

Blocks = Annotated[
    list[Block],
    Field(max_length=MAX_BLOCKS, fail_fast=True),
    BeforeValidator(_text_as_block, json_schema_input_type=UnicodeText | list[Block]),
]


class InputMessage(_Strict):
    """One turn. A user's may hold results of tools, an assistant's calls of them; `system` stands where it stands."""

    role: Literal["user", "assistant", "system"]
    content: Blocks

    @model_validator(mode="after")
    def _blocks_of_the_role(self) -> Self:
        allowed = {"user": ("text", "tool_result"), "system": ("text",), "assistant": _BLOCKS[:4]}[self.role]
        for position, block in enumerate(self.content):
            if block.type not in allowed:
                raise contradiction(
                    f"content[{position}]", f"a {block.type} block cannot stand in a message of role {self.role}"
                )
        return self


class ToolDefinition(_Cacheable):
    """A tool that the client runs; `input_schema` is a JSON Schema."""

    type: Literal["custom"] | None = None
    name: Name
    description: UnicodeText | None = None
    input_schema: JsonObject
    strict: bool | None = None


class ToolChoice(_Strict):
    """Whether a tool is called: `auto` (the model decides), `any`, one `tool` by its name, or `none`."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _name_goes_with_tool(self) -> Self:
        if (self.type == "tool") != (self.name is not None):
            raise contradiction("name", "name is the tool's, and goes with type `tool` alone")
        return self


class Thinking(_Strict):
    """Whether the model thinks before it answers, and for how many tokens at most."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=1024, lt=2**31)
    display: Literal["summarized", "omitted"] | None = Field(
        None, description="`omitted`: thinking blocks are empty. Else they hold all that was thought."
    )

    @model_validator(mode="after")
    def _budget_goes_with_enabled(self) -> Self:
        if (self.type == "enabled") != (self.budget_tokens is not None):
            raise contradiction(
                "budget_tokens", "budget_tokens is required with type `enabled`, and goes with no other"
            )
        return self


class OutputFormat(_Strict):
    """The JSON Schema that the answer's text is an instance of."""

    type: Literal["json_schema"]
    json_schema: JsonObject = Field(alias="schema")


class OutputConfig(_Strict):
    """How much the model thinks, and the form of its answer."""

    effort: Effort | None = None
    format: OutputFormat | None = None


class RequestMetadata(_Strict):
    """Kept with the job as its metadata."""

    user_id: Annotated[UnicodeText, StringConstraints(max_length=512)] | None = None


class CountTokensRequest(_Cacheable):
    """`POST /v1/messages/count_tokens`: a conversation."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "smollm2",
                    "system": "Answer in one word.",
                    "messages": [{"role": "user", "content": "What is the capital of France?"}],
                }
            ]
        }
    )

    model: str = Field(min_length=1, description="A name from `GET /v1/models`.")
    messages: list[InputMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    system: TextBlocks = Field(default_factory=list)
    tools: list[ToolDefinition] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {name: value for name, value in data.items() if value is not None}
        return data

    @model_validator(mode="after")
    def _tools_go_together(self) -> Self:
        names = [tool.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise contradiction("tools", "the names of tools must differ")
        choice = self.tool_choice
        if choice is not None and choice.type in ("any", "tool") and not names:
            raise contradiction("tool_choice", f"tool_choice `{choice.type}` needs tools")
        if choice is not None and choice.name is not None and choice.name not in names:
            raise contradiction("tool_choice", f"tool_choice names {choice.name!r}, which is not in tools")
        return self

    @model_validator(mode="after")
    def _last_turn_can_be_answered(self) -> Self:
        last = self.messages[-1]
        if last.role == "assistant" and any(block.type != "text" for block in last.content):
            raise contradiction(
                "messages",
                "the last message is the assistant's: only one of text alone can be gone on with;"
                " answer its tool_use blocks with tool_result blocks in a message of the user's",
            )
        return self


class MessagesRequest(CountTokensRequest):
    """`POST /v1/messages`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "smollm2",
                    "max_tokens": 64,
                    "messages": [{"role": "user", "content": "Name three rivers."}],
                },
                {
                    "model": "smollm2",
                    "max_tokens": 32,
                    "system": [{"type": "text", "text": "You are a miller.", "cache_control": {"type": "ephemeral"}}],
                    "messages": [{"role": "user", "content": [{"type": "text", "text": "Who are you?"}]}],
                    "stop_sequences": ["\n\n"],
                    "temperature": 0,
                    "stream": True,
                },
            ]
        }
    )

    max_tokens: int = Field(ge=1, lt=2**31, description="Output tokens at most, thinking included.")
    stop_sequences: list[Annotated[UnicodeText, StringConstraints(min_length=1)]] | None = Field(
        None, max_length=MAX_STOPS, fail_fast=True, description="Texts that end the answer; never part of it."
    )
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=2)
    top_k: int | None = Field(None, ge=0, lt=2**31)
    top_p: float | None = Field(None, gt=0, le=1)
    metadata: RequestMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = Field(None, description="Accepted and not used.")
    priority: int = Field(DEFAULT_PRIORITY, ge=0, le=9, description="Lower is served first, as in vLLM.")

    @model_validator(mode="after")
    def _thinking_leaves_room(self) -> Self:
        budget = self.thinking.budget_tokens if self.thinking is not None else None
        if budget is not None and budget >= self.max_tokens:
            raise contradiction(
                "thinking", f"thinking.budget_tokens must be less than max_tokens={self.max_tokens}, got {budget}"
            )
        return self

    @property
    def hides_thinking(self) -> bool:
        return self.thinking is not None and self.thinking.display == "omitted"


class TokensCount(BaseModel):
    """Tokens of the prompt, as the model's chat template renders it."""

    input_tokens: int


class TextContent(BaseModel):
    """Text of the answer."""

    type: Literal["text"] = "text"
    text: str


class ThinkingContent(BaseModel):
    """What the model thought. The signature says nothing; clients send it back."""

    type: Literal["thinking"] = "thinking"
    thinking: str
    signature: str


class ToolUseContent(BaseModel):
    """A call. Where the model wrote no JSON object, `input` is `{"INVALID_JSON": what it wrote}`."""

    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any]


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class MessageUsage(BaseModel):
    """Tokens, under Anthropic's names: input_tokens are those that the prefix cache did not hold."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int | None = None


class AssistantMessage(BaseModel):
    """The answer."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[TextContent | ThinkingContent | ToolUseContent]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage
