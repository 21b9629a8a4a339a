"""Spec of a model behind a queue-based serverless endpoint of RunPod."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Self

from pydantic import Field, model_validator

from shared.config.models.capabilities import ALL_SAMPLING, EVERYTHING, Capabilities
from shared.config.models.operational import Operational
from shared.config.models.polled import PolledOptions
from shared.config.models.presets import PRESETS
from shared.config.models.upstream import HttpUrl, UpstreamModel
from shared.domain.field_types import contradiction, without_effect

RUNPOD_URL = "https://api.runpod.ai/v2"
# The vLLM server's, but a job can be read again.
_OPENAI_INPUT = replace(PRESETS["vllm"].capabilities, resume=True)
_VLLM_INPUT = Capabilities(
    raw_prompts=True,
    resume=True,
    cancel=True,
    names=True,
    image_sources=_OPENAI_INPUT.image_sources,
    file_sources=_OPENAI_INPUT.file_sources,
    max_choices=EVERYTHING.max_choices,
    sampling=ALL_SAMPLING,
)


class RunpodOptions(PolledOptions):
    """Options of the `runpod` engine."""

    base_url: HttpUrl = RUNPOD_URL
    input: Literal["openai", "vllm"] = Field(
        "openai",
        description="What the endpoint's worker takes: a request of OpenAI's API, as worker-vllm does, or a prompt or"
        " messages with sampling_params.",
    )
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    execution_timeout_s: Operational[float | None] = Field(
        None, gt=5, le=604_800, description="RunPod stops a job that runs longer; its default is 600."
    )
    ttl_s: Operational[float | None] = Field(
        None, ge=10, le=604_800, description="RunPod drops a job that is older, waiting or not; its default is a day."
    )
    low_priority: Operational[bool] = Field(False, description="The endpoint starts no workers for these jobs.")
    max_polls_per_s: Operational[float] = Field(
        100,
        gt=0,
        description="Of all jobs of a worker; with many jobs, intervals grow. RunPod allows 200 per endpoint.",
    )


class RunpodModel(UpstreamModel):
    """A model that the worker relays to an endpoint's queue."""

    engine: Literal["runpod"]
    endpoint: str = Field(pattern=r"^[A-Za-z0-9_-]{1,100}$", description="The endpoint's id.")
    model: str | None = Field(
        None, min_length=1, description="The name under which the endpoint's worker serves the model, if it needs one."
    )
    slots: int = Field(64, ge=1, le=4096)
    options: RunpodOptions = Field(default_factory=RunpodOptions)

    @model_validator(mode="after")
    def _fits_the_input(self) -> Self:
        if self.options.input == "openai":
            return self
        if self.model is not None:
            raise without_effect("model", "with input: vllm, which names no model")
        if "max_tokens_field" in self.options.model_fields_set:
            raise without_effect("options.max_tokens_field", "with input: vllm")
        if set(self.modalities or ()) - {"text"}:
            raise contradiction("modalities", "with input: vllm, messages have text only")
        return self

    @property
    def starts_early(self) -> bool:
        return False

    @property
    def engine_capabilities(self) -> Capabilities:
        return _OPENAI_INPUT if self.options.input == "openai" else _VLLM_INPUT
