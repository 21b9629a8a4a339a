"""Sampling parameters, and the engine-neutral request that a job carries.

Names, bounds and messages follow `vllm.SamplingParams`; for an omitted value, the engine's default applies (the model's
`generation_config`).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

MAX_CHOICES = 16
# Alternatives for each token: vLLM's default limit.
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_TOKEN_IDS = 1024
MAX_MESSAGES = 10_000
MAX_TOOLS = 1000

NonEmpty = Annotated[str, StringConstraints(min_length=1)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


def _token_bias(bias: dict[str, float]) -> dict[str, float]:
    """Require token ids as keys, and clamp values to [-100, 100], as vLLM does."""
    for key in bias:
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise ValueError(f"keys must be token ids, got {key!r}")
    return {key: min(100.0, max(-100.0, value)) for key, value in bias.items()}


def contradiction(param: str, message: str) -> PydanticCustomError:
    """An error about fields that are valid alone but not together; it is reported for one of them, `param`."""
    return PydanticCustomError("contradiction", "{message}", {"param": param, "message": message})


def unicode_text(text: str) -> str:
    """Reject unpaired surrogates, which JSON can express but neither tokenizers nor databases accept."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be Unicode text; it has an unpaired surrogate") from None
    return text


UnicodeText = Annotated[str, AfterValidator(unicode_text)]


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


class Message(BaseModel):
    """A message in a conversation. The assistant's may have tool calls without content; a tool's answers one call."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: UnicodeText | None = None
    name: UnicodeText | None = None
    tool_calls: list[MessageToolCall] | None = Field(None, max_length=MAX_TOOLS, fail_fast=True)
    tool_call_id: UnicodeText | None = None
    reasoning: UnicodeText | None = None

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise contradiction(
                "content",
                "content is required and must be a valid string; only an assistant message with tool_calls may omit it",
            )
        return self


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


class GenerateRequest(BaseModel):
    """A request to an engine: a conversation (with the chat template) or a raw prompt (without it).

    `prompt` is a text or token ids. `logprobs` requests the log probabilities of the sampled tokens, and of this
    number of most likely tokens at each position (0: of the sampled tokens only).

    `echo` returns the prompt before the output: as each choice's first delta, without token ids, and with logprobs if
    they are requested (the first token's are None). `prompt_only` returns nothing else: if the engine has to sample a
    token, it is dropped, and the answer ends with "length".

    `token_counts`: each delta of the log has its number of tokens.
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

    @property
    def size(self) -> int:
        """About the bytes of the prompt as JSON, which indicate the time that it takes to process the request."""
        if self.messages is not None:
            return sum(_message_size(message) for message in self.messages)
        prompt = self.prompt or ""
        return _utf8_size(prompt) if isinstance(prompt, str) else 6 * len(prompt)

    @property
    def options_size(self) -> int:
        """About the bytes as JSON of what may be large beside the prompt: tools, documents and structured outputs."""
        size = 0
        if self.chat is not None:
            for tool in self.chat.tools or ():
                size += len(tool.function.description or "") + len(orjson.dumps(tool.function.parameters))
            size += len(orjson.dumps(self.chat.chat_template_kwargs)) + len(orjson.dumps(self.chat.documents))
        if self.structured_outputs is not None:
            size += len(orjson.dumps(dict(self.structured_outputs)))
        return size


# The members' names, quotes and the objects of a message or of a call.
_MESSAGE_BYTES = 64


def _message_size(message: Message) -> int:
    size = _MESSAGE_BYTES + _utf8_size(message.content or "")
    if message.reasoning:
        size += _utf8_size(message.reasoning)
    for call in message.tool_calls or ():
        size += _MESSAGE_BYTES + _utf8_size(call.function.name) + _utf8_size(call.function.arguments)
    return size


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
