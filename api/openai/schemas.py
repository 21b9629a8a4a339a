"""Schemas of OpenAI's chat completions, completions and models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from api.http.end_user import EndUserParameters
from api.http.members import MemberRules
from api.jobs import dialects
from api.jobs.parameters import (
    MAX_METADATA,
    ChatMessage,
    ChatParameters,
    CommonParameters,
    ExtraContent,
    Logprobs,
    MetadataKey,
    MetadataValue,
    check_prompts,
    is_token_ids,
    sampling_of,
)
from shared.config.models.capabilities import Capabilities, union
from shared.config.models.loader import ModelSpec
from shared.config.models.routes import Mode, Route
from shared.domain.errors import InvalidRequest
from shared.domain.request import MAX_MESSAGES, GenerateRequest, TokenId, contradiction

# vLLM's default limit.
MAX_PROMPTS = 1024

Prompt = str | list[int]
Texts = Annotated[list[str], Field(fail_fast=True)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = Field(False, description="Send the usage in an additional chunk before the end.")
    continuous_usage_stats: bool | None = Field(
        False, description="With include_usage: send the usage so far in each chunk."
    )


class UsageOptions(BaseModel):
    """What the usage contains, in the form of OpenRouter's API."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include: bool | None = Field(
        False, description="Add `cost` to the usage. A stream then ends with the usage, as with include_usage."
    )


class _OpenAIRequest(EndUserParameters, CommonParameters):
    """Parameters that chat completions and plain completions share."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=MAX_METADATA)
    usage: UsageOptions | None = None

    @model_validator(mode="after")
    def _consistent_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise contradiction("stream_options", "stream_options is only allowed with stream=true")
        if self.prompt_logprobs and self.stream:
            raise contradiction("prompt_logprobs", "prompt_logprobs are not available with stream=true")
        return self

    @property
    def include_cost(self) -> bool:
        return bool(self.usage and self.usage.include)

    @property
    def include_usage(self) -> bool:
        return self.include_cost or bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)


class ChatCompletionRequest(_OpenAIRequest, ChatParameters):
    """`POST /v1/chat/completions`."""

    member_rules: ClassVar[MemberRules] = dialects.CHAT
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "smollm2",
                    "messages": [{"role": "user", "content": "Name three rivers."}],
                    "max_tokens": 64,
                    "stream": True,
                },
                {
                    "model": "smollm2",
                    "messages": [{"role": "user", "content": "What is the capital of France?"}],
                    "max_tokens": 32,
                    "temperature": 0,
                    "cache": {"ttl": 3600},
                    "context": {"strategy": "sliding_window"},
                },
            ]
        }
    )

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31, description="The newer name of max_tokens.")
    logprobs: bool = Field(False, description="Return log probabilities of the output tokens.")
    top_logprobs: Logprobs = Field(
        0, description="With logprobs: also return this many most likely alternatives for each."
    )
    echo: bool = Field(False, description="Prepend the last message if it is continued.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_completion_tokens is not None:
            self.max_tokens = self.max_completion_tokens
        if self.top_logprobs and not self.logprobs:
            raise contradiction("top_logprobs", "top_logprobs requires logprobs to be true")
        return self.checked()

    def rename_param(self, error: InvalidRequest) -> InvalidRequest:
        """Both limits of tokens have the same effect."""
        names = {} if self.max_completion_tokens is None else {"max_tokens": "max_completion_tokens"}
        return super().rename_param(error).renamed(names)

    def generate_requests(self) -> list[GenerateRequest]:
        """Build the engine request, as a list of one."""
        return [
            GenerateRequest(
                messages=[item.message(f"messages[{index}]") for index, item in enumerate(self.messages)],
                sampling=sampling_of(self),
                priority=self.priority,
                chat=self.chat_options(),
                structured_outputs=self.structure(),
                logprobs=self.top_logprobs if self.logprobs else None,
                prompt_logprobs=self.prompt_logprobs,
                echo=self.echo,
                token_counts=self.continuous_usage,
                extra_body=self.extra_body,
                prompt_cache_key=self.prompt_cache_key,
            )
        ]


class CompletionRequest(_OpenAIRequest):
    """`POST /v1/completions`: raw prompts, without a chat template. As at OpenAI, `max_tokens` defaults to 16.

    Several prompts result in one response, with `n` choices for each prompt, in order.
    """

    member_rules: ClassVar[MemberRules] = dialects.TEXT
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "smollm2", "prompt": "Once upon a time", "max_tokens": 32, "temperature": 0}]
        }
    )

    prompt: str | Texts | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)] = Field(
        description="A string, a list of token ids, or a list of either."
    )
    max_tokens: int | None = Field(
        16, ge=0, lt=2**31, description="0 is allowed with `echo`, to return only the prompt."
    )
    logprobs: Logprobs | None = Field(
        None, description="Return log probabilities of the tokens and of this many most likely alternatives for each."
    )
    echo: bool = Field(False, description="Prepend the prompt to the output.")
    add_special_tokens: Literal[True] = Field(True, description="Add the model's special tokens to a text prompt.")

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompts(cls, prompt: Any) -> Any:
        several = isinstance(prompt, list) and not is_token_ids(prompt)
        prompts = prompt if several else [prompt]
        check_prompts(prompts)
        if len(prompts) > MAX_PROMPTS:
            raise ValueError(f"has {len(prompts)} prompts; the maximum is {MAX_PROMPTS}")
        return prompt

    @model_validator(mode="after")
    def _max_tokens_or_echo(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise contradiction("max_tokens", "max_tokens must be at least 1; 0 requires `echo`")
        return self

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts as a list."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    def rename_param(self, error: InvalidRequest) -> InvalidRequest:
        """With `echo`, the client requests the log probabilities of the prompt by `logprobs`."""
        names = {"prompt_logprobs": "logprobs"} if self.prompt_logprobs is None else {}
        return super().rename_param(error).renamed(names)

    def generate_requests(self) -> list[GenerateRequest]:
        """Build one engine request per prompt."""
        sampling = sampling_of(self.model_copy(update={"max_tokens": self.max_tokens or 1}))
        if "max_tokens" not in self.model_fields_set:
            sampling.model_fields_set.discard("max_tokens")  # it is this API's default
        prompt_logprobs = self.prompt_logprobs
        if prompt_logprobs is None and self.echo and not self.stream:
            prompt_logprobs = self.logprobs  # as in vLLM
        return [
            GenerateRequest(
                prompt=prompt,
                sampling=sampling,
                priority=self.priority,
                structured_outputs=self.structure(),
                logprobs=self.logprobs,
                prompt_logprobs=prompt_logprobs,
                echo=self.echo,
                prompt_only=self.max_tokens == 0,
                token_counts=self.continuous_usage,
                extra_body=self.extra_body,
                prompt_cache_key=self.prompt_cache_key,
            )
            for prompt in self.prompts
        ]


class PromptTokensDetails(BaseModel):
    """Prompt tokens found in the prefix cache, and stored in it if the upstream reports them."""

    cached_tokens: int
    cache_write_tokens: int = Field(0, exclude_if=lambda tokens: not tokens)


class CompletionTokensDetails(BaseModel):
    """Completion tokens that are reasoning."""

    reasoning_tokens: int


class CompletionUsage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | None = Field(
        None, description="Absent if no reasoning tokens are reported.", exclude_if=lambda details: details is None
    )
    cost: float | None = Field(
        None,
        description="What the request is charged, in US dollars, if it asks for that; null if a part has no price.",
        exclude_if=lambda cost: cost is None,
    )


FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class CalledFunction(BaseModel):
    """A called function; `arguments` is JSON, as generated."""

    name: str
    arguments: str


class ToolCallView(BaseModel):
    """A tool call by the model. Its `extra_content` is present if the provider has data that belongs to it."""

    id: str
    type: Literal["function"]
    function: CalledFunction
    extra_content: ExtraContent | None = None


class ReasoningDetail(BaseModel):
    """Data of the model's provider, such as a signature of its reasoning, in the form of OpenRouter's API."""

    type: Literal["reasoning.encrypted"]
    data: str
    format: Literal["unknown"]
    index: int


class AssistantMessage(BaseModel):
    """The model's message. `tool_calls` is present only if there are calls; `content` is null if there is no text."""

    role: str
    content: str | None
    refusal: None
    reasoning: str | None
    reasoning_details: list[ReasoningDetail] = Field(
        default_factory=list, description="Present if the provider has such data; send it back in the next turn."
    )
    tool_calls: list[ToolCallView] = Field(default_factory=list)


class TokenLogprob(BaseModel):
    """The log probability of a candidate token."""

    token: str
    logprob: float
    bytes: list[int] | None


class SampledLogprob(TokenLogprob):
    """The log probability of a sampled token."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """Log probabilities by token."""

    content: list[SampledLogprob]


class PromptLogprob(BaseModel):
    """The log probability of a candidate for a prompt token."""

    logprob: float
    rank: int | None
    decoded_token: str | None


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class ChatChoice(BaseModel):
    """A choice. `stop_reason` is the stop string or stop token that ended it."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None


class ChatCompletion(BaseModel):
    """A chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    system_fingerprint: str | None
    usage: CompletionUsage
    prompt_logprobs: PromptLogprobs | None


class CompletionLogprobs(BaseModel):
    """Log probabilities as four lists with an item per token; offsets are characters of the choice's text."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(BaseModel):
    """A choice. `stop_reason` is the stop string or stop token that ended it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None
    prompt_logprobs: PromptLogprobs | None


class Completion(BaseModel):
    """A completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str | None
    usage: CompletionUsage


class RouteView(BaseModel):
    """The models that a route may choose, and the modes that may follow its name after a colon."""

    models: tuple[str, ...]
    modes: tuple[Mode, ...]


class ModelView(BaseModel):
    """A model, or a route."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: Literal["headrace"] = "headrace"
    max_model_len: int | None
    capabilities: Capabilities
    parent: str | None = Field(
        None, description="The base model, if it is an adapter. Absent otherwise.", exclude_if=lambda part: not part
    )
    route: RouteView | None = Field(
        None,
        description="The models behind the name, if it is a route. Absent otherwise.",
        exclude_if=lambda part: not part,
    )

    @classmethod
    def of(cls, model: ModelSpec, max_model_len: int | None) -> Self:
        found = model.capabilities
        if not found.tools:
            found = replace(found, tool_choices=frozenset())
        parent = None if model.adapter is None else model.adapter.base
        return cls(id=model.name, max_model_len=max_model_len, capabilities=found, parent=parent)

    @classmethod
    def of_route(cls, name: str, route: Route, models: Mapping[str, Self]) -> Self:
        """A route, under one of its names: it can do what one of its models can. `models` are all models."""
        found = [models[candidate] for candidate in route.candidates if candidate in models]
        lengths = [model.max_model_len for model in found]
        return cls(
            id=name,
            max_model_len=None if None in lengths else max(filter(None, lengths), default=None),
            capabilities=union([model.capabilities for model in found]),
            route=RouteView(models=route.candidates, modes=tuple(Mode) if route.uses_complexity else ()),
        )


class ModelList(BaseModel):
    """The list of models."""

    object: Literal["list"] = "list"
    data: list[ModelView]
