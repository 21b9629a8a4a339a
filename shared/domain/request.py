"""Sampling parameters, and the engine-neutral request that a job carries.

Names, bounds and messages follow `vllm.SamplingParams`; for an omitted value, the engine's default applies (the model's
`generation_config`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    model_validator,
)

from shared.domain.content import Content, FilePart, ImagePart, TextPart
from shared.domain.field_types import UnicodeText as UnicodeText
from shared.domain.field_types import contradiction as contradiction
from shared.domain.field_types import unicode_text as unicode_text
from shared.domain.opaque import MAX_OPAQUE_PARTS, OpaquePart, Reasoning, decode_all, in_order

MAX_CHOICES = 16
# Alternatives for each token: vLLM's default limit.
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_TOKEN_IDS = 1024
MAX_MESSAGES = 10_000
MAX_TOOLS = 1000
MAX_EXTRA_PARAMETERS = 100
# The least thinking budget that a provider accepts.
MIN_BUDGET = 1024

NonEmpty = Annotated[str, StringConstraints(min_length=1)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


def _token_bias(bias: dict[str, float]) -> dict[str, float]:
    """Require token ids as keys, and clamp values to [-100, 100], as vLLM does."""
    for key in bias:
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise ValueError(f"keys must be token ids, got {key!r}")
    return {key: min(100.0, max(-100.0, value)) for key, value in bias.items()}


def json_text(value: dict[str, Any]) -> str:
    """Encode a client's object.

    Raises:
        ValueError: it cannot be stored and relayed as JSON, for example because of NaN, which Python's parser reads.
    """
    if not _is_finite(value):
        raise ValueError("must be serializable as JSON: Out of range float values are not JSON compliant")
    try:
        return orjson.dumps(value).decode()
    except TypeError as error:
        raise ValueError(f"must be serializable as JSON: {error}") from None


def _is_finite(value: Any) -> bool:
    """Whether no number in a value is NaN or infinite.

    `json.dumps` would check this as well, but for megabytes it holds the interpreter's lock for too long.
    """
    pending = [value]
    while pending:
        item = pending.pop()
        kind = type(item)
        if kind is dict:
            pending.extend(item.values())
        elif kind is list:
            pending.extend(item)
        elif kind is float and not math.isfinite(item):
            return False
    return True


def _encodable(value: dict[str, Any]) -> dict[str, Any]:
    json_text(value)
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_encodable)]
# Each of the provider's parameters is checked against each model.
ExtraBody = Annotated[JsonObject, Field(max_length=MAX_EXTRA_PARAMETERS)]


class Sampling(BaseModel):
    """Sampling parameters, with vLLM's bounds. Types are strict: a number in quotes is not a number."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    n: int = Field(1, ge=1, le=MAX_CHOICES, description="Choices to generate for the prompt.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="0 or -1 considers all tokens.")
    min_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(
        None, ge=1, lt=2**31, description="Maximum output tokens per choice; default: the rest of the context."
    )
    min_tokens: int = Field(0, ge=0, lt=2**31)
    stop: list[NonEmpty] = Field(
        default_factory=list,
        max_length=MAX_STOPS,
        fail_fast=True,
        description="Strings that stop generation; not part of the text.",
    )
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=1e6)
    logit_bias: Annotated[dict[str, float], AfterValidator(_token_bias)] | None = Field(
        None, max_length=1024, description="Token id to bias in [-100, 100]."
    )
    thinking_token_budget: int | None = Field(
        None,
        ge=0,
        lt=2**31,
        description="Maximum reasoning tokens; the model's options must name a reasoning parser.",
    )
    ignore_eos: bool = False
    stop_token_ids: list[TokenId] = Field(
        default_factory=list, max_length=MAX_TOKEN_IDS, fail_fast=True, description="Tokens that stop generation."
    )
    allowed_token_ids: list[TokenId] | None = Field(
        None, min_length=1, max_length=MAX_TOKEN_IDS, fail_fast=True, description="The only tokens that may be sampled."
    )
    bad_words: list[NonEmpty] = Field(
        default_factory=list, max_length=MAX_STOPS, fail_fast=True, description="Words that are never generated."
    )
    include_stop_str_in_output: bool = Field(False, description="Keep the stop string at the end of the text.")
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True

    @model_validator(mode="before")
    @classmethod
    def _one_stop_or_many(cls, data: Any) -> Any:
        if isinstance(data, dict) and "stop" in data:
            stop = data["stop"]
            data = {**data, "stop": [] if stop is None else [stop] if isinstance(stop, str) else stop}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        return self.checked()

    @property
    def requested_max_tokens(self) -> int | None:
        """The max_tokens that the client has sent; None if it is the default of an API, or absent."""
        return self.max_tokens if "max_tokens" in self.model_fields_set else None

    def limited(self, max_tokens: int) -> Sampling:
        """These parameters with this max_tokens. A thinking budget that would use it up is lowered in proportion."""
        update: dict[str, int] = {"max_tokens": max_tokens}
        budget, old = self.thinking_token_budget, self.max_tokens
        if budget is not None and budget >= max_tokens:
            scaled = budget * max_tokens // old if old is not None and old > budget else max_tokens // 2
            update["thinking_token_budget"] = max(scaled, min(MIN_BUDGET, max_tokens - 1))
        return self.model_copy(update=update)

    def checked(self) -> Self:
        """Return these parameters, or raise an error if they contradict each other."""
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise contradiction(
                "min_tokens", f"min_tokens must be at most max_tokens={self.max_tokens}, got {self.min_tokens}"
            )
        if self.n > 1 and self.temperature == 0:
            raise contradiction("n", f"n must be 1 with greedy sampling (temperature 0), got {self.n}")
        return self


class FunctionCall(BaseModel):
    """A function call by the model: the function's name, and its arguments as the JSON text that was generated."""

    model_config = ConfigDict(extra="forbid")

    name: UnicodeText
    arguments: UnicodeText


class MessageToolCall(BaseModel):
    """A tool call in an assistant's message."""

    model_config = ConfigDict(extra="forbid")

    id: UnicodeText
    type: Literal["function"] = "function"
    function: FunctionCall


def _decoded(parts: Any) -> Any:
    """Read stored parts, which are texts; those that this version cannot read are left out."""
    if not isinstance(parts, list):
        return parts
    return [part for item in parts for part in ([item] if isinstance(item, OpaquePart) else decode_all([item]))]


OpaqueParts = Annotated[
    list[OpaquePart],
    Field(fail_fast=True),
    BeforeValidator(_decoded, json_schema_input_type=list[str]),
    PlainSerializer(lambda parts: [part.encoded() for part in parts], return_type=list),
]


class Message(BaseModel):
    """A message in a conversation. The assistant's may have tool calls without content; a tool's answers one call.

    A content that is only one text is a string. A content with several texts, with images or files is a list; only
    user messages and results of tools have images and files. `opaque` has the parts of the provider that generated the
    message (`shared.domain.opaque`); a stored message has them as texts.
    """

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: UnicodeText | None = None
    tool_calls: list[MessageToolCall] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True)
    tool_call_id: UnicodeText | None = None
    reasoning: UnicodeText | None = None
    opaque: OpaqueParts | None = Field(None, max_length=MAX_OPAQUE_PARTS)

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.content is None and not (self.role == "assistant" and (self.tool_calls or self.opaque)):
            raise contradiction(
                "content",
                "content is required and must be a valid string; only an assistant message with tool_calls may omit it",
            )
        if self.role not in ("user", "tool") and self.media:
            raise contradiction("content", f"content: a message of role {self.role} has texts only")
        return self

    @property
    def texts(self) -> list[str]:
        """The texts of the content, in order."""
        if isinstance(self.content, list):
            return [part.text for part in self.content if isinstance(part, TextPart)]
        return [] if self.content is None else [self.content]

    @property
    def text(self) -> str:
        """The texts of the content, joined by line breaks as vLLM does for chat templates that expect a string."""
        return self.content if isinstance(self.content, str) else "\n".join(self.texts)

    @property
    def media(self) -> list[ImagePart | FilePart]:
        """The images and files of the content, in order."""
        if not isinstance(self.content, list):
            return []
        return [part for part in self.content if not isinstance(part, TextPart)]

    @property
    def size(self) -> int:
        """About the bytes of the message as JSON."""
        size = _MESSAGE_BYTES
        if isinstance(self.content, list):
            size += sum(_MESSAGE_BYTES + part.size for part in self.content)
        elif self.content is not None:
            size += _utf8_size(self.content)
        if self.reasoning:
            size += _utf8_size(self.reasoning)
        for call in self.tool_calls or ():
            size += _MESSAGE_BYTES + _utf8_size(call.function.name) + _utf8_size(call.function.arguments)
        return size + sum(part.size for part in self.opaque or ())

    def in_order(self) -> Iterator[Reasoning | str | MessageToolCall | OpaquePart]:
        """What an assistant's message consists of, in the order in which it was generated. Parts of calls are left
        out: see `call_part`."""
        return in_order(self.reasoning or "", self.texts, self.tool_calls or (), self.opaque or ())

    def call_part(self, call_id: str) -> OpaquePart | None:
        """The part that belongs to a tool call."""
        return next((part for part in self.opaque or () if part.call_id == call_id), None)


class Function(BaseModel):
    """A function that the model may call; `parameters` is a JSON Schema."""

    model_config = ConfigDict(extra="forbid")

    # The APIs' own bounds: OpenAI's chat completions 64, OpenAI's responses and Anthropic's messages 128.
    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
    description: UnicodeText | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A tool in a request. Only functions are supported."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"] = "function"
    function: Function


class StructuredOutputs(BaseModel):
    """A constraint on the output, under vLLM's names: exactly one field is set. `json_schema` is a JSON Schema."""

    model_config = ConfigDict(extra="forbid")

    json_schema: JsonObject | None = None
    json_object: bool | None = None
    regex: UnicodeText | None = None
    choice: list[UnicodeText] | None = Field(None, min_length=1, fail_fast=True)
    grammar: UnicodeText | None = None
    structural_tag: UnicodeText | None = None


class ChatOptions(BaseModel):
    """How a conversation is rendered and how the answer is parsed. Names and defaults are vLLM's."""

    model_config = ConfigDict(extra="forbid")

    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True)
    # "none", "auto", "required", or the name of a tool as {"name": ...}; None is vLLM's default for the tools.
    tool_choice: Literal["none", "auto", "required"] | dict[Literal["name"], str] | None = None
    parallel_tool_calls: bool = True
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    include_reasoning: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    chat_template_kwargs: JsonObject | None = None
    documents: list[dict[UnicodeText, UnicodeText]] | None = Field(None, fail_fast=True)


class CacheBreakpoint(BaseModel):
    """The end of a part of the prompt that an upstream is to keep in its cache.

    It is the definition of a tool, or a message up to `end`: characters of a text, or parts of a list; by default all
    of it. `ttl` is how long the part is kept; without it, the upstream's default applies.
    """

    model_config = ConfigDict(extra="forbid")

    tool: int | None = Field(None, ge=0)
    message: int | None = Field(None, ge=0)
    end: int | None = Field(None, ge=1)
    ttl: Literal["5m", "1h"] | None = None


class GenerateRequest(BaseModel):
    """A request to an engine: a conversation (with the chat template) or a raw prompt (without it).

    `prompt` is a text or token ids. `logprobs` requests the log probabilities of the sampled tokens, and of this
    number of most likely tokens at each position (0: of the sampled tokens only).

    `echo` returns the prompt before the output: as each choice's first delta, without token ids, and with logprobs if
    they are requested (the first token's are None). `prompt_only` returns nothing else: if the engine has to sample a
    token, it is dropped, and the answer ends with "length".

    `token_counts`: each delta of the log has its number of tokens.

    `cache_breakpoints`, `tool_errors` (positions of messages with the results of tools that failed) and
    `adaptive_thinking`, which lets the model decide how much it thinks, are for engines that relay to an upstream with
    these parameters. Others ignore them.

    `extra_body`: parameters of the provider, by its names; only those that the model's entry lists.

    `prompt_cache_key`: the client's name for requests with a common prefix, for upstreams that route by it. It does not
    change the answer. `cache_salt` keeps the engine's prefix caches of projects apart, and `adapter` is the name of the
    adapter that generates the answer, if it is one. Neither is stored: a worker sets them when it claims the job
    (`shared.postgres.claim_store`).
    """

    model_config = ConfigDict(extra="forbid")

    messages: list[Message] | None = None
    prompt: str | list[int] | None = None
    sampling: Sampling = Field(default_factory=Sampling)
    priority: int = 0
    chat: ChatOptions | None = None
    structured_outputs: StructuredOutputs | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool = False
    prompt_only: bool = False
    token_counts: bool = False
    cache_breakpoints: list[CacheBreakpoint] = Field(default_factory=list)
    tool_errors: list[int] = Field(default_factory=list)
    adaptive_thinking: bool = False
    extra_body: ExtraBody | None = None
    prompt_cache_key: str | None = None
    cache_salt: str | None = Field(None, exclude=True)
    adapter: str | None = Field(None, exclude=True)

    def stored(self) -> str:
        """The form that is stored, as JSON."""
        return self.model_dump_json(exclude_none=True, exclude_defaults=True)

    def for_provider(self, provider: str | None) -> GenerateRequest:
        """The request for a model of this provider: without the opaque parts of others, which it could not read."""
        messages = self.messages
        if messages is None or all(_is_readable(message, provider) for message in messages):
            return self
        return self.model_copy(
            update={
                "messages": [
                    message if _is_readable(message, provider) else _without_foreign_parts(message, provider)
                    for message in messages
                ]
            }
        )

    def with_output_of(self, max_tokens: int) -> GenerateRequest:
        """The request with at most this many output tokens."""
        if self.prompt_only or (self.sampling.max_tokens or math.inf) <= max_tokens:
            return self
        return self.model_copy(update={"sampling": self.sampling.limited(max_tokens)})

    @property
    def names_tokens(self) -> bool:
        """Whether it has ids of tokens, which mean something else to a model with another tokenizer."""
        sampling = self.sampling
        ids = sampling.logit_bias or sampling.stop_token_ids or sampling.allowed_token_ids
        return isinstance(self.prompt, list) or bool(ids)

    @property
    def opaque_parts(self) -> int:
        """The number of opaque parts in the conversation."""
        return sum(len(message.opaque) for message in self.messages or () if message.opaque)

    @property
    def size(self) -> int:
        """About the bytes of the prompt as JSON, which indicate the time that it takes to process the request."""
        if self.messages is not None:
            return sum(message.size for message in self.messages)
        prompt = self.prompt or ""
        return _utf8_size(prompt) if isinstance(prompt, str) else 6 * len(prompt)

    @property
    def prompt_bytes(self) -> int | None:
        """About the bytes of what the model reads, from which its tokens are estimated; None for token ids, and with
        images or files, whose tokens do not depend on their bytes."""
        if isinstance(self.prompt, list) or any(message.media for message in self.messages or ()):
            return None
        return self.size + self.options_size

    @property
    def options_size(self) -> int:
        """About the bytes as JSON of what may be large beside the prompt: tools, documents, structured outputs and
        parameters of the provider."""
        size = 0 if self.extra_body is None else len(orjson.dumps(self.extra_body))
        if self.chat is not None:
            for tool in self.chat.tools or ():
                function = tool.function
                size += _MESSAGE_BYTES + _utf8_size(function.name) + _utf8_size(function.description or "")
                size += len(orjson.dumps(function.parameters))
            size += len(orjson.dumps(self.chat.chat_template_kwargs)) + len(orjson.dumps(self.chat.documents))
        if self.structured_outputs is not None:
            size += len(orjson.dumps(dict(self.structured_outputs)))
        return size


# The members' names, quotes and the objects of a message, of a part, of a call or of a tool.
_MESSAGE_BYTES = 64


def _is_readable(message: Message, provider: str | None) -> bool:
    return not message.opaque or all(part.origin == provider for part in message.opaque)


def _without_foreign_parts(message: Message, provider: str | None) -> Message:
    kept = [part for part in message.opaque or () if part.origin == provider]
    content = message.content
    if content is None and not message.tool_calls:
        content = ""  # a message needs some content
    return message.model_copy(update={"opaque": kept or None, "content": content})


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
