"""Spec of a model behind an OpenAI-compatible API."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from shared.config.models.base import Unsupported
from shared.config.models.capabilities import Capabilities
from shared.config.models.operational import Operational
from shared.config.models.presets import (
    OPENAI_CACHE_KEY,
    PRESETS,
    UNKNOWN_SERVER,
    CacheKey,
    Preset,
    as_responses,
)
from shared.config.models.upstream import StreamedOptions, UpstreamModel
from shared.domain.field_types import contradiction, without_effect
from shared.domain.request import GenerateRequest


class OpenAIOptions(StreamedOptions):
    """Options of the `openai` engine."""

    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="The upstream's name for it; OpenAI's newer models accept only the second."
    )
    prefill: bool | None = Field(
        None,
        description="Whether interrupted answers continue from their text, by `continue_final_message`; by default, if"
        " the preset has that.",
    )
    detect_max_model_len: Operational[bool] = Field(
        True,
        description="Whether the worker reads the context length from the server, if the preset has a page for that and"
        " max_model_len is not set.",
    )
    reasoning_summary: Literal["auto", "concise", "detailed"] | None = Field(
        None, description="The summary of its reasoning that the model is to stream; only with `api: responses`."
    )
    api_version: str | None = Field(None, min_length=1, description="Azure's dated API version.")
    cache_salt: Operational[bool | None] = Field(
        None,
        description="Whether requests have a `cache_salt` of their project, so that a vLLM server keeps the prefixes of"
        " projects apart; by default, if the preset has that.",
    )


# The keys of PRESETS.
PresetName = Literal["openai", "azure", "gemini", "openrouter", "vllm", "sglang", "tgi", "triton", "modal", "runpod"]


_RESPONSES_PRESETS = (None, "openai", "azure", "vllm")


class OpenAIModel(UpstreamModel):
    """A model that the worker relays to an OpenAI-compatible server."""

    reports_tiers: ClassVar[bool] = True

    engine: Literal["openai"]
    preset: PresetName | None = Field(None, description="The kind of server; without one, nothing is known about it.")
    api: Literal["chat", "responses"] = Field(
        "chat",
        description="The API that is used: Chat Completions (Completions for raw prompts), or Responses, whose answers"
        " run in the background and can be resumed.",
    )
    model: str = Field(min_length=1, description="The upstream's name for the model.")
    options: OpenAIOptions

    @model_validator(mode="before")
    @classmethod
    def _with_defaults_of_the_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("preset") is None:
            return data
        if (preset := PRESETS.get(str(data["preset"]))) is None:
            raise contradiction("preset", f"must be one of {', '.join(PRESETS)}, got {data['preset']!r}")
        options = data.get("options", {})
        if not isinstance(options, dict):
            return data
        # Responses has one name for the limit.
        is_chat = data.get("api") != "responses"
        defaults: dict[str, Any] = {"max_tokens_field": preset.max_tokens_field} if is_chat else {}
        if preset.base_url is not None and options.get("endpoints") is None:
            defaults["base_url"] = preset.base_url
        return {**data, "options": {**defaults, **options}}

    @model_validator(mode="after")
    def _options_of_the_preset(self) -> Self:
        if self.options.api_version is not None and "api_version" not in self.server.query.values():
            raise contradiction("options.api_version", "only the preset azure has API versions")
        if self.api == "responses" and self.preset not in _RESPONSES_PRESETS:
            raise contradiction("api", f"the preset {self.preset} has no Responses API with background responses")
        for name in ("prefill", "max_tokens_field"):
            if self.api == "responses" and name in self.options.model_fields_set:
                raise without_effect(f"options.{name}", "with api: responses")
        if "detect_max_model_len" in self.options.model_fields_set:
            if self.server.length_page is None:
                raise without_effect("options.detect_max_model_len", "on a server that does not report its context")
            if self.options.max_model_len is not None:
                raise without_effect("options.detect_max_model_len", "with max_model_len")
        if self.options.reasoning_summary is not None and self.api != "responses":
            raise contradiction("options.reasoning_summary", "only models with api: responses have summaries")
        return self

    @property
    def starts_early(self) -> bool:
        return self.api != "responses"

    @property
    def context_source(self) -> str | None:
        options, page = self.options, self.server.length_page
        if page is None or options.max_model_len is not None or not options.detect_max_model_len:
            return None
        addresses = sorted(target.endpoint.base_url for target in options.targets)
        return hashlib.sha256(json.dumps([page, self.model, addresses]).encode()).hexdigest()[:32]

    @property
    def server(self) -> Preset:
        """What is known about the server."""
        return UNKNOWN_SERVER if self.preset is None else PRESETS[self.preset]

    @property
    def own_parameters(self) -> frozenset[str]:
        structures = {"regex", "ebnf"} if self.server.structures == "sglang" else set()
        salt = {"cache_salt"} if self.sends_cache_salt else set()
        return frozenset(structures | salt | {*self.server.renamed.values()})

    @property
    def sends_cache_salt(self) -> bool:
        """Whether the server keeps the prefixes of requests with different salts apart."""
        return self.server.cache_salt if self.options.cache_salt is None else self.options.cache_salt

    @property
    def cache_key(self) -> CacheKey | None:
        """The server's parameter for a client's `prompt_cache_key`; an entry that allows that one has it too."""
        allowed = OPENAI_CACHE_KEY if OPENAI_CACHE_KEY.name in self.options.extra_body else None
        return self.server.cache_key or allowed

    def unsupported(self, request: GenerateRequest) -> Iterator[Unsupported]:
        """Objects of which the engine sets members too."""
        shared = ("reasoning", "text") if self.api == "responses" else tuple(self.server.body)
        for name in shared:
            if not isinstance((request.extra_body or {}).get(name, {}), dict):
                yield Unsupported(f"extra_body.{name}", "a value that is not an object")

    @property
    def engine_capabilities(self) -> Capabilities:
        found = self.server.capabilities
        if self.api == "responses":
            return as_responses(found)
        return found if self.options.prefill is None else replace(found, continues=self.options.prefill)

    @property
    def provider(self) -> str | None:
        return self.server.provider

    @property
    def follows_redirects(self) -> bool:
        return self.server.follows_redirects
