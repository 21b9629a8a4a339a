"""Spec of a model behind an OpenAI-compatible API."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from shared.config.models.capabilities import EVERYTHING, Capabilities
from shared.config.models.upstream import UpstreamModel, UpstreamOptions

# Parameters that OpenAI's API does not have are sent under vLLM's names: the server refuses what it cannot do. A stream
# carries no log probabilities of the prompt, and only the server could resume it.
_UNKNOWN_SERVER = replace(EVERYTHING, prompt_logprobs=None, resume=False, token_counting=False)


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

    @property
    def capabilities(self) -> Capabilities:
        return self.with_options(_UNKNOWN_SERVER)
