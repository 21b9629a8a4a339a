"""Spec of a model behind an OpenAI-compatible API."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared.config.models.upstream import UpstreamModel, UpstreamOptions


class OpenAIOptions(UpstreamOptions):
    """Options of the `openai` engine."""

    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="The upstream's name for it; OpenAI's newer models accept only the second."
    )


class OpenAIModel(UpstreamModel):
    """A model that the worker relays to an OpenAI-compatible server."""

    engine: Literal["openai"]
    model: str = Field(min_length=1, description="The upstream's name for the model.")
    options: OpenAIOptions
