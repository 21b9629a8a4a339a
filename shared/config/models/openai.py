"""Spec of a model that is relayed to a server which speaks the OpenAI API."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shared.config.models.base import Spec


def _address(text: str) -> str:
    """An http(s) address without its last slash; a password in it would end up in logs."""
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("must be an address such as https://api.openai.com/v1")
    return text.rstrip("/")


def _variable(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError("must be the name of an environment variable that holds the key, not the key")
    return text


class OpenAIOptions(BaseModel):
    """Where the upstream is, and how long it is waited for. Times in seconds."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    base_url: Annotated[str, AfterValidator(_address)]
    api_key_env: Annotated[str, AfterValidator(_variable)] | None = Field(
        None, description="The environment variable that holds the upstream's key; none is sent without it."
    )
    connect_timeout_s: float = Field(5, gt=0)
    read_timeout_s: float = Field(300, gt=0, description="To the first byte, and between any two.")
    max_retries: int = Field(3, ge=0, le=20, description="After failures before the first token.")
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="How the upstream calls it; OpenAI's own newer models take the second alone."
    )
    max_model_len: int | None = Field(None, ge=2, description="Only shown, and max_tokens checked against it.")


class OpenAIModel(Spec):
    """A model that an OpenAI-compatible server has; our worker relays."""

    yields: ClassVar[bool] = False

    engine: Literal["openai"]
    model: str = Field(min_length=1, description="What the upstream calls it.")
    slots: int = Field(256, ge=1, le=4096)
    options: OpenAIOptions

    @property
    def max_model_len(self) -> int | None:
        return self.options.max_model_len
