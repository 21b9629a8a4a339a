"""What the specs of engines that relay to another server have in common."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from functools import cached_property
from typing import Annotated, ClassVar, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from shared.config.models.base import Spec
from shared.config.models.capabilities import Capabilities, Modality
from shared.config.models.operational import Operational
from shared.domain.field_types import contradiction, without_effect
from shared.domain.request import ChatOptions, Sampling

# Parameters that no request may set as one of the provider's: they have a meaning of their own here.
RESERVED = frozenset(
    {
        "background", "contents", "conversation", "echo", "include", "input", "instructions", "logprobs",
        "max_completion_tokens", "max_output_tokens", "messages", "metadata", "model", "previous_response_id",
        "priority", "prompt", "prompt_logprobs", "response_format", "stop_sequences", "store", "stream",
        "stream_options", "structured_outputs", "system", "thinking", "tools", "tool_choice", "top_logprobs", "user",
        *Sampling.model_fields, *ChatOptions.model_fields,
    }
)  # fmt: skip


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


def _vendor_parameter(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", name):
        raise ValueError("must be the name of a parameter")
    if name in RESERVED:
        raise ValueError(f"must not contain {name}, which Headrace sets")
    return name


HttpUrl = Annotated[str, AfterValidator(_http_url)]


VariableName = Annotated[str, AfterValidator(_variable_name)]
# A label of metrics.
_ENDPOINT_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,49}$"
_SINGLE = ("base_url", "api_key_env")


class EndpointOptions(BaseModel):
    """One of several addresses of an upstream, with its key."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    base_url: HttpUrl
    api_key_env: VariableName | None = Field(
        None, description="The environment variable with the key; without it no key is sent."
    )
    weight: float = Field(1, gt=0, le=1000, description="Its share of the requests, relative to the others.")
    name: str | None = Field(None, pattern=_ENDPOINT_NAME, description="Its label in metrics; default: its position.")


class Target(NamedTuple):
    """An endpoint, its label, and its place in the model's entry."""

    path: str
    name: str
    endpoint: EndpointOptions


class UpstreamOptions(BaseModel):
    """The upstream's URL, key and timeouts. Times are in seconds."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    # Required, unless there are `endpoints`; a subclass may have a default.
    base_url: Operational[HttpUrl] = ""
    api_key_env: Operational[VariableName | None] = Field(
        None, description="The environment variable with the upstream's key; without it no key is sent."
    )
    endpoints: Operational[list[EndpointOptions] | None] = Field(
        None, min_length=1, description="Several addresses or keys, in place of `base_url` and `api_key_env`."
    )
    health_path: Operational[str | None] = Field(
        None, min_length=1, description="A path below base_url; an endpoint whose answer is not 2xx is set aside."
    )
    health_interval_s: Operational[float] = Field(10, gt=0, description="Between two requests of `health_path`.")
    connect_timeout_s: Operational[float] = Field(5, gt=0)
    read_timeout_s: Operational[float] = Field(300, gt=0, description="Until the first byte, and between two reads.")
    max_retries: Operational[int] = Field(
        3,
        ge=0,
        le=20,
        description="Repetitions of a request by the same worker, after failures before the first token.",
    )
    max_wait_s: Operational[float] = Field(
        600,
        ge=0,
        le=86_400,
        description="How long a job may wait in the queue because the upstream was busy; 0: it fails at once.",
    )
    max_concurrency: Operational[int | None] = Field(
        None, ge=1, description="Requests that each worker has under way at most, if that is less than its slots."
    )
    requests_per_minute: Operational[float | None] = Field(None, gt=0, description="The limit of each worker.")
    tokens_per_minute: Operational[float | None] = Field(
        None, gt=0, description="The limit of each worker, prompts included."
    )
    log_error_texts: Operational[bool] = Field(
        False, description="Log the upstream's error messages, without keys. They may quote prompts."
    )
    max_model_len: int | None = Field(None, ge=2, description="Shown by the API; max_tokens is checked against it.")
    extra_body: Operational[list[Annotated[str, AfterValidator(_vendor_parameter)]]] = Field(
        default_factory=list,
        description="Parameters of the provider that requests may have, by the provider's names; sent unchanged.",
    )

    @model_validator(mode="after")
    def _checks_health(self) -> Self:
        if self.health_path is None and "health_interval_s" in self.model_fields_set:
            raise without_effect("health_interval_s", "without health_path")
        return self

    @model_validator(mode="after")
    def _has_endpoints(self) -> Self:
        if self.endpoints is None:
            if not self.base_url:
                raise contradiction("base_url", "this field is required")
            return self
        for name in _SINGLE:
            if name in self.model_fields_set:
                raise contradiction(name, "cannot be combined with endpoints; name it in each of them")
        names = [target.name for target in self.targets]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise contradiction("endpoints", f"two endpoints have the name {name!r}")
        return self

    @property
    def targets(self) -> tuple[Target, ...]:
        """The endpoints; `base_url` and `api_key_env` are the short form of one."""
        if self.endpoints is None:
            single = EndpointOptions(base_url=self.base_url, api_key_env=self.api_key_env, weight=1, name=None)
            return (Target("options", "0", single),)
        return tuple(
            Target(f"options.endpoints[{index}]", endpoint.name or str(index), endpoint)
            for index, endpoint in enumerate(self.endpoints)
        )


class StreamedOptions(UpstreamOptions):
    """Options of servers that send an answer while a connection lasts. Times are in seconds."""

    stall_timeout_s: Operational[float] = Field(
        900, gt=0, description="Without any output, if the upstream sends only pings, comments or other data meanwhile."
    )


class UpstreamModel(Spec):
    """A model that another server runs."""

    yields: ClassVar[bool] = False
    # The parts of messages that the engine can pass on.
    passes_on: ClassVar[frozenset[Modality]] = frozenset({"text", "image", "file"})

    engine: str
    slots: Operational[int] = Field(256, ge=1, le=4096)
    modalities: Operational[list[Modality] | None] = Field(
        None,
        description="What messages may have beside text: `image`, `file`. They are passed on. Default: the engine's.",
    )
    options: UpstreamOptions

    @property
    def max_model_len(self) -> int | None:
        return self.options.max_model_len

    @model_validator(mode="after")
    def _limit_the_slots(self) -> Self:
        if self.options.max_concurrency is not None:
            self.slots = min(self.slots, self.options.max_concurrency)
        return self

    @model_validator(mode="after")
    def _engine_passes_the_modalities_on(self) -> Self:
        refused = sorted(set(self.modalities or ()) - self.passes_on)
        if refused:
            raise contradiction("modalities", f"the engine {self.engine} passes on {', '.join(sorted(self.passes_on))}")
        return self

    @model_validator(mode="after")
    def _common_options_have_an_effect(self) -> Self:
        if "max_logprob_values" in self.model_fields_set and self.engine_capabilities.logprobs is None:
            raise without_effect("max_logprob_values", "on a model without log probabilities")
        if taken := self.own_parameters.intersection(self.options.extra_body):
            raise contradiction("options.extra_body", f"must not contain {min(taken)}, which Headrace sets")
        return self

    @property
    def own_parameters(self) -> frozenset[str]:
        """The provider's parameters that the engine sets for this model, beside those of all engines (`RESERVED`)."""
        return frozenset()

    @property
    def engine_capabilities(self) -> Capabilities:
        """What the engine can do for this model, without what the entry's common options say."""
        raise NotImplementedError

    @cached_property
    def capabilities(self) -> Capabilities:
        found = self.engine_capabilities
        modalities = found.modalities if self.modalities is None else frozenset({"text", *self.modalities})
        return replace(
            found,
            modalities=modalities,
            tool_choices=found.tool_choices if found.tools else frozenset(),
            extra_body=frozenset(self.options.extra_body),
        )

    @property
    def revision(self) -> str:
        addresses = sorted({target.endpoint.base_url for target in self.options.targets})
        return hashlib.sha256(json.dumps([self.fingerprint, addresses]).encode()).hexdigest()[:16]

    @property
    def requests_per_minute(self) -> float | None:
        return self.options.requests_per_minute

    @property
    def follows_redirects(self) -> bool:
        """Whether redirects within the upstream's own origin are followed."""
        return False

    @property
    def secret_envs(self) -> tuple[str, ...]:
        names = (target.endpoint.api_key_env for target in self.options.targets)
        return tuple(dict.fromkeys(name for name in names if name is not None))
