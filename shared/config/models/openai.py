"""Spec of a model behind an OpenAI-compatible API."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from shared.config.models.capabilities import Capabilities, Modality
from shared.config.models.presets import PRESETS, UNKNOWN_SERVER, Preset
from shared.config.models.upstream import UpstreamModel, UpstreamOptions
from shared.domain.field_types import contradiction


class OpenAIOptions(UpstreamOptions):
    """Options of the `openai` engine."""

    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="The upstream's name for it; OpenAI's newer models accept only the second."
    )
    api_version: str | None = Field(None, min_length=1, description="Azure's dated API version.")


# The keys of PRESETS.
PresetName = Literal["openai", "azure", "gemini", "openrouter", "vllm", "sglang", "tgi", "triton", "modal", "runpod"]


class OpenAIModel(UpstreamModel):
    """A model that the worker relays to an OpenAI-compatible server."""

    engine: Literal["openai"]
    preset: PresetName | None = Field(None, description="The kind of server; without one, nothing is known about it.")
    model: str = Field(min_length=1, description="The upstream's name for the model.")
    modalities: list[Modality] | None = Field(
        None, description="What the model takes beside text; the default depends on the preset."
    )
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
        defaults: dict[str, Any] = {"max_tokens_field": preset.max_tokens_field}
        if preset.base_url is not None:
            defaults["base_url"] = preset.base_url
        return {**data, "options": {**defaults, **options}}

    @model_validator(mode="after")
    def _options_of_the_preset(self) -> Self:
        if self.options.api_version is not None and "api_version" not in self.server.query.values():
            raise contradiction("options.api_version", "only the preset azure has API versions")
        return self

    @property
    def server(self) -> Preset:
        """What is known about the server."""
        return UNKNOWN_SERVER if self.preset is None else PRESETS[self.preset]

    @cached_property
    def capabilities(self) -> Capabilities:
        found = self.server.capabilities
        return found if self.modalities is None else replace(found, modalities=frozenset({"text", *self.modalities}))

    @property
    def provider(self) -> str | None:
        return self.server.provider

    @property
    def follows_redirects(self) -> bool:
        return self.server.follows_redirects
