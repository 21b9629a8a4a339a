"""Schemas of Anthropic's Messages API, with its bounds.

https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

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

from api.http.members import MemberRules
from api.http.submit_headers import AnswerParameters
from api.jobs import dialects
from api.jobs.parameters import DEFAULT_PRIORITY
from shared.domain.answer_options import ContextOptions, ToolClearing
from shared.domain.request import MAX_MESSAGES, MAX_STOPS, MAX_TOOLS, ExtraBody, JsonObject, UnicodeText, contradiction

MAX_BLOCKS = 10_000

# The edits of long conversations that have an effect, and Anthropic's defaults.
COMPACT, CLEAR_TOOL_USES = dialects.APPLIED_EDITS
DEFAULT_COMPACT_TOKENS = 150_000
DEFAULT_CLEAR_TOKENS = 100_000
DEFAULT_KEPT_USES = 3

Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
Effort = Literal["low", "medium", "high", "xhigh", "max"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class CacheControl(_Strict):
    """For models of the `anthropic` engine; ignored by others, which cache every prefix."""

    type: str
    ttl: str | None = None


class _Cacheable(_Strict):
    cache_control: CacheControl | None = None


class TextBlock(_Cacheable):
    """A text."""

    type: Literal["text"]
    text: UnicodeText


class Base64Source(_Strict):
    """Base64 data."""

    type: Literal["base64"]
    media_type: str
    data: str


class TextSource(_Strict):
    """The text of a document."""

    type: Literal["text"]
    media_type: Literal["text/plain"] = "text/plain"
    data: UnicodeText


class UrlSource(_Strict):
    """A URL that the model's provider fetches."""

    type: Literal["url"]
    url: UnicodeText


class FileSource(_Strict):
    """A file that the model's provider has."""

    type: Literal["file"]
    file_id: UnicodeText


def _type_of(block: Any) -> Any:
    return block.get("type") if isinstance(block, dict) else getattr(block, "type", None)


def _source_type(source: Any) -> str:
    return f"<{_type_of(source)}>"


# Tags in <> are omitted from the field names in errors.
ImageSource = Annotated[
    Annotated[Base64Source, Tag("<base64>")]
    | Annotated[UrlSource, Tag("<url>")]
    | Annotated[FileSource, Tag("<file>")],
    Discriminator(
        _source_type,
        custom_error_type="source_type",
        custom_error_message="must be a source whose type is one of base64, url, file",
    ),
]
DocumentSource = Annotated[
    Annotated[Base64Source, Tag("<base64>")]
    | Annotated[TextSource, Tag("<text>")]
    | Annotated[UrlSource, Tag("<url>")]
    | Annotated[FileSource, Tag("<file>")],
    Discriminator(
        _source_type,
        custom_error_type="source_type",
        custom_error_message="must be a source whose type is one of base64, text, url, file",
    ),
]


class ImageBlock(_Cacheable):
    """An image."""

    type: Literal["image"]
    source: ImageSource


class DocumentBlock(_Cacheable):
    """A document: a PDF, or a text."""

    type: Literal["document"]
    source: DocumentSource
    title: UnicodeText | None = None
    context: UnicodeText | None = None


class ThinkingBlock(_Strict):
    """The model's thinking in an earlier turn. Of signatures, only those of this API's responses are used."""

    type: Literal["thinking"]
    thinking: UnicodeText
    signature: str | None = None


class RedactedThinkingBlock(_Strict):
    """Encrypted thinking; ignored unless it is from this API's responses."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(_Cacheable):
    """A tool call in an earlier turn of the model."""

    type: Literal["tool_use"]
    id: UnicodeText
    name: UnicodeText
    input: JsonObject = Field(default_factory=dict)
    caller: dict[str, Any] | None = Field(None, description="Accepted and ignored: who made the call.")


def _text_as_block(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


TextBlocks = Annotated[
    list[TextBlock],
    Field(max_length=MAX_BLOCKS, fail_fast=True),
    BeforeValidator(_text_as_block, json_schema_input_type=UnicodeText | list[TextBlock]),
]


def _references_as_texts(content: Any) -> Any:
    """Read references to found tools as texts: all tools are in the prompt, also those that are loaded later."""
    if not isinstance(content, list):
        return content
    return [_reference_as_text(block) for block in content]


def _reference_as_text(block: Any) -> Any:
    if isinstance(block, dict) and block.get("type") == "tool_reference" and isinstance(block.get("tool_name"), str):
        return {"type": "text", "text": f"Tool {block['tool_name']} is available."}
    return block


_RESULT_BLOCKS = ("text", "image", "document")


def _result_block_type(block: Any) -> str | None:
    kind = _type_of(block)
    return f"<{kind}>" if kind in _RESULT_BLOCKS else None


ResultBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ImageBlock, Tag("<image>")]
    | Annotated[DocumentBlock, Tag("<document>")],
    Discriminator(
        _result_block_type,
        custom_error_type="block_type",
        custom_error_message=f"must be a block whose type is one of {', '.join(_RESULT_BLOCKS)}",
    ),
]
ResultBlocks = Annotated[
    list[ResultBlock],
    Field(max_length=MAX_BLOCKS, fail_fast=True),
    BeforeValidator(_text_as_block, json_schema_input_type=UnicodeText | list[ResultBlock]),
]


class ToolResultBlock(_Cacheable):
    """The result of a tool call. `is_error` is for models of the `anthropic` engine; others read the content only."""

    type: Literal["tool_result"]
    tool_use_id: UnicodeText
    content: Annotated[ResultBlocks, BeforeValidator(_references_as_texts)] = Field(default_factory=list)
    is_error: bool | None = None


_BLOCKS = ("text", "thinking", "redacted_thinking", "tool_use", "tool_result", "image", "document")
_BLOCKS_OF = {
    "user": ("text", "tool_result", "image", "document"),
    "system": ("text",),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
}


def _block_type(block: Any) -> str | None:
    kind = _type_of(block)
    return f"<{kind}>" if kind in _BLOCKS else None


# Tags in <> are omitted from the field names in errors.
Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")]
    | Annotated[RedactedThinkingBlock, Tag("<redacted_thinking>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")]
    | Annotated[ImageBlock, Tag("<image>")]
    | Annotated[DocumentBlock, Tag("<document>")],
    Discriminator(
        _block_type,
        custom_error_type="block_type",
        custom_error_message=f"must be a block whose type is one of {', '.join(_BLOCKS)}",
    ),
]

Blocks = Annotated[
    list[Block],
    Field(max_length=MAX_BLOCKS, fail_fast=True),
    BeforeValidator(_text_as_block, json_schema_input_type=UnicodeText | list[Block]),
]


class InputMessage(_Strict):
    """A message. User messages may have tool results, assistant messages tool calls. `system` may occur anywhere."""

    role: Literal["user", "assistant", "system"]
    content: Blocks = Field(default_factory=list)

    @model_validator(mode="after")
    def _blocks_of_the_role(self) -> Self:
        for position, block in enumerate(self.content):
            if block.type not in _BLOCKS_OF[self.role]:
                raise contradiction(
                    f"content[{position}]", f"a {block.type} block is not allowed in a message of role {self.role}"
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
    def _name_requires_type_tool(self) -> Self:
        if (self.type == "tool") != (self.name is not None):
            raise contradiction("name", "name is required with type `tool`, and not allowed with other types")
        return self


class Thinking(_Strict):
    """Whether the model thinks before its output, and the limit of thinking tokens."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=1024, lt=2**31)
    display: Literal["summarized", "omitted"] | None = Field(
        None, description="`omitted`: thinking blocks are empty; otherwise they have the complete thinking."
    )

    @model_validator(mode="after")
    def _budget_requires_type_enabled(self) -> Self:
        if (self.type == "enabled") != (self.budget_tokens is not None):
            raise contradiction(
                "budget_tokens", "budget_tokens is required with type `enabled`, and not allowed with other types"
            )
        return self


class OutputFormat(_Strict):
    """The JSON Schema that the output must match."""

    type: Literal["json_schema"]
    json_schema: JsonObject = Field(alias="schema")


class OutputConfig(_Strict):
    """Thinking effort and output format."""

    effort: Effort | None = None
    format: OutputFormat | None = None


ToolNames = Annotated[list[UnicodeText], Field(max_length=MAX_TOOLS, fail_fast=True)]


class EditSize(_Strict):
    """A number of tokens (`input_tokens`) or of uses of tools (`tool_uses`)."""

    type: str
    value: int | None = Field(None, ge=0, lt=2**31)


class ContextEdit(_Strict):
    """How a long conversation is shortened: `compact_20260112` or `clear_tool_uses_20250919`; others have no effect."""

    type: str
    trigger: EditSize | None = None
    keep: EditSize | str | None = None
    clear_at_least: EditSize | None = None
    exclude_tools: ToolNames | None = None
    clear_tool_inputs: bool | ToolNames | None = None


class ContextManagement(_Strict):
    """Anthropic's `context_management`."""

    edits: list[ContextEdit] = Field(default_factory=list, max_length=16, fail_fast=True)

    def edit(self, kind: str) -> ContextEdit | None:
        """The edit of a type."""
        return next((edit for edit in self.edits if edit.type == kind), None)


class RequestMetadata(_Strict):
    """Stored as the job's metadata."""

    user_id: Annotated[UnicodeText, StringConstraints(max_length=512)] | None = None


class CountTokensRequest(_Cacheable):
    """`POST /v1/messages/count_tokens`: a conversation."""

    member_rules: ClassVar[MemberRules] = dialects.COUNT_TOKENS
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
    output_format: OutputFormat | None = Field(None, description="Earlier name of `output_config.format`.")

    @model_validator(mode="after")
    def _consistent_tools(self) -> Self:
        names = [tool.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise contradiction("tools", "the names of tools must be unique")
        choice = self.tool_choice
        if choice is not None and choice.type in ("any", "tool") and not names:
            raise contradiction("tool_choice", f"tool_choice `{choice.type}` requires tools")
        if choice is not None and choice.name is not None and choice.name not in names:
            raise contradiction("tool_choice", f"tool_choice names {choice.name!r}, which is not in tools")
        return self

    @model_validator(mode="after")
    def _last_message_can_be_continued(self) -> Self:
        last = self.messages[-1]
        if last.role == "assistant" and any(block.type != "text" for block in last.content):
            raise contradiction(
                "messages",
                "the last message is an assistant message, which can be continued only if all its blocks are text;"
                " send the results of tool_use blocks as tool_result blocks in a user message",
            )
        return self


class MessagesRequest(AnswerParameters, CountTokensRequest):
    """`POST /v1/messages`."""

    member_rules: ClassVar[MemberRules] = dialects.MESSAGES
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
                    "cache": {"ttl": 3600},
                    "context": {"strategy": "sliding_window"},
                },
            ]
        }
    )

    max_tokens: int = Field(ge=1, lt=2**31, description="Limit of output tokens, including thinking.")
    stop_sequences: list[Annotated[UnicodeText, StringConstraints(min_length=1)]] | None = Field(
        None, max_length=MAX_STOPS, fail_fast=True, description="Strings that end the output and are not part of it."
    )
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, lt=2**31)
    top_p: float | None = Field(None, ge=0, le=1)
    metadata: RequestMetadata | None = None
    context_management: ContextManagement | None = None
    extra_body: ExtraBody | None = Field(
        None,
        description="Parameters of the model's provider, by its names, that the model's entry allows. They may also be"
        " sent as members of the request.",
    )
    priority: int = Field(DEFAULT_PRIORITY, ge=0, le=9, description="Lower values are served first, as in vLLM.")

    @model_validator(mode="after")
    def _thinking_leaves_room(self) -> Self:
        budget = self.thinking.budget_tokens if self.thinking is not None else None
        if budget is not None and budget >= self.max_tokens:
            raise contradiction(
                "thinking", f"thinking.budget_tokens must be less than max_tokens={self.max_tokens}, got {budget}"
            )
        return self

    @property
    def context_options(self) -> ContextOptions | None:
        """How a long conversation is shortened, by this API's parameters or Anthropic's."""
        if self.context is not None or self.context_management is None:
            return self.context
        edit = self.context_management.edit(COMPACT)
        if edit is None:
            return None
        return ContextOptions(strategy="summarize", trigger_tokens=_tokens(edit.trigger, DEFAULT_COMPACT_TOKENS))

    @property
    def tool_clearing(self) -> ToolClearing | None:
        """When old results of tools are cleared, by Anthropic's parameters."""
        edit = self.context_management.edit(CLEAR_TOOL_USES) if self.context_management is not None else None
        if edit is None:
            return None
        by_uses = edit.trigger is not None and edit.trigger.type == "tool_uses"
        keep = edit.keep.value if isinstance(edit.keep, EditSize) else None
        inputs = edit.clear_tool_inputs
        return ToolClearing(
            trigger_tokens=None if by_uses else _tokens(edit.trigger, DEFAULT_CLEAR_TOKENS),
            trigger_uses=edit.trigger.value if by_uses and edit.trigger is not None else None,
            keep=DEFAULT_KEPT_USES if keep is None else keep,
            at_least=(edit.clear_at_least.value if edit.clear_at_least is not None else None) or 0,
            exclude=frozenset(edit.exclude_tools or ()),
            inputs=frozenset(inputs) if isinstance(inputs, list) else bool(inputs),
        )

    @property
    def hides_thinking(self) -> bool:
        return self.thinking is not None and self.thinking.display == "omitted"


def _tokens(size: EditSize | None, default: int) -> int:
    return max(1, size.value) if size is not None and size.value is not None else default


class TokensCount(BaseModel):
    """Number of tokens of the prompt rendered by the model's chat template."""

    input_tokens: int


class TextContent(BaseModel):
    """A text of the output."""

    type: Literal["text"] = "text"
    text: str


class ThinkingContent(BaseModel):
    """The model's thinking. Clients send the signature back; it is a placeholder if the provider gave none."""

    type: Literal["thinking"] = "thinking"
    thinking: str
    signature: str


class RedactedThinkingContent(BaseModel):
    """Data of the model's provider without text, which clients send back."""

    type: Literal["redacted_thinking"] = "redacted_thinking"
    data: str


class ToolUseContent(BaseModel):
    """A tool call. If the arguments are not a JSON object, `input` is `{"INVALID_JSON": arguments}`."""

    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any]


InterruptReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"]


class CacheCreation(BaseModel):
    """The tokens that the upstream has stored in its cache, by the time for which it keeps them."""

    ephemeral_5m_input_tokens: int
    ephemeral_1h_input_tokens: int


class MessageUsage(BaseModel):
    """Token counts. `input_tokens` excludes tokens found in the prefix cache, and those stored in it."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int | None = None
    cache_creation: CacheCreation | None = None


class AppliedEdit(BaseModel):
    """What an edit has changed."""

    type: Literal["clear_tool_uses_20250919"]
    cleared_tool_uses: int
    cleared_input_tokens: int


class AppliedEdits(BaseModel):
    """The edits that were applied to the conversation."""

    applied_edits: list[AppliedEdit]


class AssistantMessage(BaseModel):
    """The response message."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[TextContent | ThinkingContent | RedactedThinkingContent | ToolUseContent]
    stop_reason: InterruptReason | None
    stop_sequence: str | None
    usage: MessageUsage
    context_management: AppliedEdits | None = Field(None, description="Only if results of tools were cleared.")
