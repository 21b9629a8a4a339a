"""Sampling parameters, with vLLM's names and bounds, and the engine-neutral request that a job carries.

Names, bounds and messages follow `vllm.SamplingParams`; a value that is left out is the engine's default
(the model's `generation_config`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

MAX_CHOICES = 16
MAX_STOPS = 16

NonEmpty = Annotated[str, StringConstraints(min_length=1)]


def _token_bias(bias: dict[str, float]) -> dict[str, float]:
    """Keys are token ids; values are clamped to [-100, 100], as vLLM does."""
    for key in bias:
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise ValueError(f"keys must be token ids, got {key!r}")
    return {key: min(100.0, max(-100.0, value)) for key, value in bias.items()}


def contradiction(param: str, message: str) -> PydanticCustomError:
    """The error of fields that are fine alone and not together; it is told of one of them."""
    return PydanticCustomError("contradiction", "{message}", {"param": param, "message": message})


def _unicode(text: str) -> str:
    """JSON can spell half a surrogate pair, which no tokenizer and no database takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be Unicode text; it has an unpaired surrogate") from None
    return text


UnicodeText = Annotated[str, AfterValidator(_unicode)]


class Sampling(BaseModel):
    """How tokens are drawn. Bounds are vLLM's. Types are strict: a number in quotes is not a number."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    n: int = Field(1, ge=1, le=MAX_CHOICES, description="Choices to generate for the prompt.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="0 or -1 considers all tokens.")
    min_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(
        None, ge=1, lt=2**31, description="Output tokens per choice; by default what the context leaves."
    )
    min_tokens: int = Field(0, ge=0, lt=2**31)
    stop: list[NonEmpty] = Field(
        default_factory=list, max_length=MAX_STOPS, description="Strings that end the text; never part of it."
    )
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=1e6)
    logit_bias: Annotated[dict[str, float], AfterValidator(_token_bias)] | None = Field(
        None, max_length=1024, description="Token id to bias in [-100, 100]."
    )
    ignore_eos: bool = False

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
        """These parameters, if they go together."""
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise contradiction(
                "min_tokens", f"min_tokens must be at most max_tokens={self.max_tokens}, got {self.min_tokens}"
            )
        if self.n > 1 and self.temperature == 0:
            raise contradiction("n", f"n must be 1 with greedy sampling (temperature 0), got {self.n}")
        return self


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: UnicodeText
    name: UnicodeText | None = None


class GenerateRequest(BaseModel):
    """What an engine is asked for: a conversation (chat template) or a raw prompt (no template)."""

    model_config = ConfigDict(extra="forbid")

    messages: list[Message] | None = None
    prompt: str | None = None
    sampling: Sampling = Field(default_factory=Sampling)
    priority: int = 0
