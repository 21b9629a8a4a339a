"""OpenAI's shapes. A parameter that is not supported is refused, never ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from api.jobs.parameters import (
    MAX_METADATA,
    ChatMessage,
    ChatParameters,
    CommonParameters,
    Logprobs,
    MetadataKey,
    MetadataValue,
    check_prompts,
    is_token_ids,
    sampling_of,
)
from shared.domain.request import MAX_MESSAGES, GenerateRequest, Message, TokenId, UnicodeText, contradiction

# vLLM's own limit, unless a server raises it.
MAX_PROMPTS = 1024

Prompt = str | list[int]
Texts = Annotated[list[str], Field(fail_fast=True)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]


class StreamOptions(BaseModel):
    """What a streamed answer carries beside its text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = Field(False, description="The usage, in a chunk of its own before the end.")
    continuous_usage_stats: bool | None = Field(
        False, description="With include_usage: each chunk tells the usage so far."
    )


class _OpenAIRequest(CommonParameters):
    """What chat and plain completions have in common."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    user: UnicodeText | None = Field(None, description="Your name for the end user; stored with the job.")
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=MAX_METADATA)

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, data: Any) -> Any:
        """OpenAI's clients send null for what is not given."""
        if isinstance(data, dict):
            return {name: value for name, value in data.items() if value is not None}
        return data

    @model_validator(mode="after")
    def _streams_what_can_be_streamed(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise contradiction("stream_options", "stream_options is only allowed with stream=true")
        if self.prompt_logprobs and self.stream:
            raise contradiction("prompt_logprobs", "prompt_logprobs are not available with stream=true")
        return self

    @property
    def usage_in_the_end(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def usage_always(self) -> bool:
        return self.usage_in_the_end and bool(self.stream_options and self.stream_options.continuous_usage_stats)


class ChatCompletionRequest(_OpenAIRequest, ChatParameters):
    """`POST /v1/chat/completions`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "smollm2",
                    "messages": [{"role": "user", "content": "Name three rivers."}],
                    "max_tokens": 64,
                    "stream": True,
                }
            ]
        }
    )

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31, description="The newer name of max_tokens.")
    logprobs: bool = Field(False, description="Whether the answer tells its tokens' log probabilities.")
    top_logprobs: Logprobs = Field(0, description="With logprobs: those of so many likeliest in each place too.")
    echo: bool = Field(False, description="Whether the answer begins with the assistant's message it goes on with.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_completion_tokens is not None:
            self.max_tokens = self.max_completion_tokens
        if self.top_logprobs and not self.logprobs:
            raise contradiction("top_logprobs", "top_logprobs needs logprobs to be true")
        return self.checked()

    def generate_requests(self) -> list[GenerateRequest]:
        """What the engine is asked for: one request."""
        return [
            GenerateRequest(
                messages=[Message.model_validate(message.model_dump()) for message in self.messages],
                sampling=sampling_of(self),
                priority=self.priority,
                chat=self.chat_options(),
                structured_outputs=self.structure(),
                logprobs=self.top_logprobs if self.logprobs else None,
                prompt_logprobs=self.prompt_logprobs,
                echo=self.echo,
                token_counts=self.usage_always,
            )
        ]


class CompletionRequest(_OpenAIRequest):
    """`POST /v1/completions`: raw prompts, no chat template. `max_tokens` is 16 unless given, as OpenAI's.

    Several prompts are answered in one, `n` choices for each, in their order.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "smollm2", "prompt": "Once upon a time", "max_tokens": 32, "temperature": 0}]
        }
    )

    prompt: str | Texts | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)] = Field(
        description="A text or token ids, or a list of either."
    )
    max_tokens: int | None = Field(16, ge=0, lt=2**31, description="0 with `echo`: the prompt alone.")
    logprobs: Logprobs | None = Field(
        None, description="Log probabilities of the tokens, and of so many likeliest in their places."
    )
    echo: bool = Field(False, description="Whether the answer begins with the prompt.")
    add_special_tokens: Literal[True] = Field(True, description="The prompt's text gets the model's special tokens.")

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompts(cls, prompt: Any) -> Any:
        several = isinstance(prompt, list) and not is_token_ids(prompt)
        prompts = prompt if several else [prompt]
        check_prompts(prompts)
        if len(prompts) > MAX_PROMPTS:
            raise ValueError(f"has {len(prompts)} prompts; {MAX_PROMPTS} at most")
        return prompt

    @model_validator(mode="after")
    def _draws_something(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise contradiction("max_tokens", "max_tokens must be at least 1; 0 is for `echo` alone")
        return self

    @property
    def prompts(self) -> list[Prompt]:
        """One or more."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    def generate_requests(self) -> list[GenerateRequest]:
        """What the engine is asked for: a request for each prompt."""
        sampling = sampling_of(self.model_copy(update={"max_tokens": self.max_tokens or 1}))
        prompt_logprobs = self.prompt_logprobs
        if prompt_logprobs is None and self.echo and not self.stream:
            prompt_logprobs = self.logprobs  # as vLLM answers
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
                token_counts=self.usage_always,
            )
            for prompt in self.prompts
        ]


class PromptTokensDetails(BaseModel):
    """Prompt tokens that the prefix cache held."""

    cached_tokens: int


class CompletionUsage(BaseModel):
    """Tokens, under OpenAI's names."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


FinishReason = Literal["stop", "length", "tool_calls"]


class CalledFunction(BaseModel):
    """What is called, with arguments in JSON as the model wrote it."""

    name: str
    arguments: str


class ToolCallView(BaseModel):
    """A call that the model asks for."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(BaseModel):
    """The model's turn. `tool_calls` is there where something is called; `content` is null where nothing is said."""

    role: str
    content: str | None
    refusal: None
    reasoning: str | None
    tool_calls: list[ToolCallView] = Field(default_factory=list)


class TokenLogprob(BaseModel):
    """A token that could have been drawn."""

    token: str
    logprob: float
    bytes: list[int] | None


class DrawnLogprob(TokenLogprob):
    """A token that was drawn."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """Log probabilities, token by token."""

    content: list[DrawnLogprob]


class PromptLogprob(BaseModel):
    """What is likely in the place of a token of the prompt."""

    logprob: float
    rank: int | None
    decoded_token: str | None


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class ChatChoice(BaseModel):
    """One answer. `stop_reason` is the stop string or stop token that ended it."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None


class ChatCompletion(BaseModel):
    """The answer to a chat request."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    system_fingerprint: str | None
    usage: CompletionUsage
    prompt_logprobs: PromptLogprobs | None


class CompletionLogprobs(BaseModel):
    """Log probabilities in four lists of the tokens' length; offsets are characters of the choice's text."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(BaseModel):
    """One continuation. `stop_reason` is the stop string or stop token that ended it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None
    prompt_logprobs: PromptLogprobs | None


class Completion(BaseModel):
    """The answer to a completion request."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str | None
    usage: CompletionUsage


class ModelView(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: Literal["headrace"] = "headrace"
    max_model_len: int | None


class ModelList(BaseModel):
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[ModelView]
