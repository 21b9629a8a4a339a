"""Spec of a model behind Anthropic's Messages API."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from shared.config.models.base import Unsupported
from shared.config.models.capabilities import ALL_TOOL_CHOICES, Capabilities, ToolChoiceKind
from shared.config.models.claude import UNKNOWN_OUTPUT, ClaudeLimits, ThinkingControl, claude_limits, is_listed
from shared.config.models.claude_rules import unsupported
from shared.config.models.operational import Operational
from shared.config.models.upstream import HttpUrl, StreamedOptions, UpstreamModel
from shared.domain.field_types import without_effect
from shared.domain.request import GenerateRequest

# Models that always think cannot be forced to call a tool.
_UNFORCED: frozenset[ToolChoiceKind] = frozenset({"none", "auto"})
# https://platform.claude.com/docs/en/api/versioning
API_VERSION = "2023-06-01"
# https://platform.claude.com/docs/en/build-with-claude/pdf-support and .../docs/en/build-with-claude/files: PDFs, and
# texts, which are sent as such.
_FILE_TYPES = frozenset({"application/pdf", "application/json", "application/xml", "text/*"})


def _token(text: str) -> str:
    if not text.isascii() or not text.isprintable() or any(character in text for character in " ,"):
        raise ValueError("must be a name such as context-1m-2025-08-07")
    return text


def _listed(model: str) -> str:
    if not is_listed(model):
        raise ValueError("must be a Claude model whose limits are built in, such as claude-sonnet-4-5")
    return model


def _yaml_off(value: Any) -> Any:
    """YAML reads an unquoted `off` as False."""
    return "off" if value is False else value


class AnthropicOptions(StreamedOptions):
    """Options of the `anthropic` engine. Limits that are not set are the published ones of the (base) model."""

    base_url: HttpUrl = "https://api.anthropic.com/v1"
    anthropic_version: Annotated[str, AfterValidator(_token)] = API_VERSION
    anthropic_beta: list[Annotated[str, AfterValidator(_token)]] = Field(
        default_factory=list, description="Beta features, sent in the header anthropic-beta."
    )
    base_model: Annotated[str, AfterValidator(_listed)] | None = Field(
        None, description="The Claude model whose published limits apply, if `model` is an alias or not listed."
    )
    default_max_tokens: int | None = Field(
        None,
        ge=1,
        description="For requests without max_tokens, which the API requires. Default: max_output_tokens, or 4096 if it"
        " is not known.",
    )
    max_output_tokens: int | None = Field(None, ge=1, description="The model's limit of output tokens.")
    thinking: ThinkingControl | None = Field(None, description="How the model's thinking is controlled.")
    sampling: bool | None = Field(None, description="Whether the model accepts temperature, top_p and top_k.")
    prefill: bool | None = Field(
        None, description="Whether a last message of the assistant is continued, as by an interrupted answer."
    )
    structured_outputs: bool = Field(True, description="Whether the model accepts a JSON Schema for its output.")
    prompt_caching: Operational[Annotated[Literal["auto", "off"], BeforeValidator(_yaml_off)]] = Field(
        "auto", description="`auto` places cache breakpoints in requests that have none."
    )
    min_cache_tokens: Operational[int | None] = Field(
        None, ge=1, description="The model's shortest prompt that is cached; shorter ones get no breakpoint."
    )

    @model_validator(mode="after")
    def _caches(self) -> Self:
        if self.prompt_caching == "off" and self.min_cache_tokens is not None:
            raise without_effect("min_cache_tokens", "with prompt_caching: off")
        return self


class AnthropicModel(UpstreamModel):
    """A model that the worker relays to a server with Anthropic's Messages API."""

    reports_tiers: ClassVar[bool] = True

    engine: Literal["anthropic"]
    model: str = Field(min_length=1, description="The upstream's name for the model.")
    options: AnthropicOptions = Field(default_factory=AnthropicOptions)

    @cached_property
    def limits(self) -> ClaudeLimits:
        """The model's limits: those of its entry, else the published ones of `base_model` or of the model itself."""
        names = ("thinking", "min_cache_tokens", "max_output_tokens", "sampling", "prefill")
        configured = {name: getattr(self.options, name) for name in names} | {"context": self.options.max_model_len}
        set_here = {name: value for name, value in configured.items() if value is not None}
        return replace(claude_limits(self.options.base_model or self.model), **set_here)

    @property
    def own_parameters(self) -> frozenset[str]:
        return frozenset({"output_config", "output_format", "cache_control"})

    @property
    def engine_capabilities(self) -> Capabilities:
        limits = self.limits
        sampling = {"stop"} | ({"temperature", "top_p", "top_k"} if limits.sampling else set())
        options = {"parallel_tool_calls"}
        if limits.thinking == "budget":
            sampling.add("thinking_token_budget")
        if limits.thinking != "none":
            options.add("reasoning_effort")
        return Capabilities(
            system_only=False,
            # For the API, it is the start of the answer.
            trailing_assistant=False,
            prefill=limits.prefill,
            continues=limits.prefill,
            cancel=True,
            token_counting=True,
            signed_reasoning=True,
            tools=True,
            tool_choices=_UNFORCED if limits.thinking in ("always", "between_tools") else ALL_TOOL_CHOICES,
            structures=frozenset({"json_schema"} if self.options.structured_outputs else ()),
            modalities=frozenset({"text", "image", "file"}),
            file_types=_FILE_TYPES,
            fixed_temperature=not limits.sampling,
            never_reasons=limits.thinking == "none",
            sampling=frozenset(sampling),
            chat_options=frozenset(options),
        )

    def unsupported(self, request: GenerateRequest) -> Iterator[Unsupported]:
        return unsupported(request, self.limits, self.default_max_tokens)

    @property
    def provider(self) -> str:
        return "anthropic"

    @property
    def max_model_len(self) -> int | None:
        return self.limits.context

    @property
    def max_output_tokens(self) -> int | None:
        return self.limits.max_output_tokens

    @property
    def default_max_tokens(self) -> int:
        return self.options.default_max_tokens or self.limits.max_output_tokens or UNKNOWN_OUTPUT
