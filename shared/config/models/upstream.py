"""What the specs of engines that relay to another server have in common."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shared.config.models.base import Spec


def _http_url(text: str) -> str:
    """An http(s) URL without its trailing slash. Credentials are refused because the URL is written to logs."""
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("must be a URL such as https://api.openai.com/v1")
    return text.rstrip("/")


def _variable_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError("must be the name of the environment variable that holds the key, not the key")
    return text


HttpUrl = Annotated[str, AfterValidator(_http_url)]


class UpstreamOptions(BaseModel):
    """The upstream's URL, key and timeouts. Times are in seconds."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    base_url: HttpUrl
    api_key_env: Annotated[str, AfterValidator(_variable_name)] | None = Field(
        None, description="The environment variable with the upstream's key; without it no key is sent."
    )
    connect_timeout_s: float = Field(5, gt=0)
    read_timeout_s: float = Field(300, gt=0, description="Until the first byte, and between two reads.")
    max_retries: int = Field(
        3,
        ge=0,
        le=20,
        description="Repetitions of a request by the same worker, after failures before the first token.",
    )
    max_wait_s: float = Field(
        600,
        ge=0,
        description="How long a job may wait in the queue because the upstream was busy; 0: it fails at once.",
    )
    requests_per_minute: float | None = Field(None, gt=0, description="The limit of each worker.")
    tokens_per_minute: float | None = Field(None, gt=0, description="The limit of each worker, prompts included.")
    log_error_texts: bool = Field(
        False, description="Log the upstream's error messages, without keys. They may quote prompts."
    )
    max_model_len: int | None = Field(None, ge=2, description="Shown by the API; max_tokens is checked against it.")


class UpstreamModel(Spec):
    """A model that another server runs."""

    yields: ClassVar[bool] = False

    slots: int = Field(256, ge=1, le=4096)
    options: UpstreamOptions

    @property
    def max_model_len(self) -> int | None:
        return self.options.max_model_len

    @property
    def secret_env(self) -> str | None:
        return self.options.api_key_env
