"""OpenAI's shapes, as far as they are supported. A parameter that is not is refused, never ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from api.jobs.schemas import DEFAULT_PRIORITY, MAX_METADATA, MetadataKey, MetadataValue, sampling_of
from shared.sampling import GenerateRequest, Message, Sampling, UnicodeText, contradiction

Text = Annotated[str, StringConstraints(min_length=1)]


class StreamOptions(BaseModel):
    """What a streamed answer carries beside its text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class ChatMessage(Message):
    """A message as OpenAI's clients send it: content is a text, or a list of text parts."""

    @field_validator("content", mode="before")
    @classmethod
    def _text_parts(cls, content: Any) -> Any:
        if not isinstance(content, list):
            return content
        texts: list[str] = []
        for position, part in enumerate(content):
            if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                raise ValueError(f"content part {position} is not a text part; this model takes text only")
            texts.append(part["text"])
        return "".join(texts)


class _OpenAIRequest(Sampling):
    """What chat and plain completions have in common."""

    model: str = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: UnicodeText | None = Field(None, description="Accepted and not used.")
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=MAX_METADATA)
    priority: int = Field(DEFAULT_PRIORITY, ge=0, le=9, description="Lower is served first, as in vLLM.")

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, data: Any) -> Any:
        """OpenAI's clients send null for what is not given."""
        if isinstance(data, dict):
            return {name: value for name, value in data.items() if value is not None}
        return data

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise contradiction("stream_options", "stream_options is only allowed with stream=true")
        return self


class ChatCompletionRequest(_OpenAIRequest):
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

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31, description="The newer name of max_tokens.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_completion_tokens is not None:
            self.max_tokens = self.max_completion_tokens
        return self.checked()

    def generate_request(self) -> GenerateRequest:
        messages = [Message.model_validate(message.model_dump()) for message in self.messages]
        return GenerateRequest(messages=messages, sampling=sampling_of(self), priority=self.priority)


class CompletionRequest(_OpenAIRequest):
    """`POST /v1/completions`: a raw prompt, no chat template. `max_tokens` is 16 unless given, as OpenAI's."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "smollm2", "prompt": "Once upon a time", "max_tokens": 32, "temperature": 0}]
        }
    )

    prompt: Text
    max_tokens: int | None = Field(16, ge=1, lt=2**31)

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, prompt: Any) -> Any:
        if isinstance(prompt, list):
            if len(prompt) == 1 and isinstance(prompt[0], str):
                return prompt[0]
            raise ValueError("one text prompt a request is supported")
        return prompt

    def generate_request(self) -> GenerateRequest:
        sampling = sampling_of(self).model_copy(update={"max_tokens": self.max_tokens})
        return GenerateRequest(prompt=self.prompt, sampling=sampling, priority=self.priority)


class PromptTokensDetails(BaseModel):
    """Prompt tokens that the prefix cache held."""

    cached_tokens: int


class CompletionUsage(BaseModel):
    """Tokens, under OpenAI's names."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


FinishReason = Literal["stop", "length"]


class AssistantMessage(BaseModel):
    """The model's turn."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """The answer to a chat request."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: None = None
    finish_reason: FinishReason


class Completion(BaseModel):
    """The answer to a completion request."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
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
