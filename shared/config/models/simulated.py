"""Spec of a simulated model."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from functools import cache
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.config.models.base import PromptTokenizer, Spec, WordTokenizer
from shared.config.models.capabilities import EVERYTHING, Capabilities, Modality
from shared.config.models.operational import Operational
from shared.domain.structure_size import StructureBounds


class SimulatedOptions(BaseModel):
    """The rate, length and failures of the simulated engine. Times are in milliseconds."""

    model_config = ConfigDict(extra="forbid")

    ttft_ms: float = Field(20, ge=0)
    itl_ms: float = Field(5, ge=0)
    default_tokens: int = Field(64, ge=1, description="Length of an answer without max_tokens.")
    stop_after: int | None = Field(
        None, ge=1, description="An answer ends by itself, with `stop`, after this many tokens of free text."
    )
    max_model_len: int = Field(8192, ge=2)
    fail_on: str | None = Field(None, description="A request fails if its prompt contains this text.")
    die_on: str | None = Field(None, description="The engine dies, with all its jobs, if a prompt contains this text.")
    kill_on: str | None = Field(
        None, description="The worker process is killed by SIGKILL if a prompt contains this text."
    )


@cache
def _capabilities(modalities: Set[Modality]) -> Capabilities:
    return replace(EVERYTHING, modalities=frozenset({"text", *modalities}))


class SimulatedModel(Spec):
    """Deterministic text at a fixed rate, for load tests and trials."""

    takes_adapters: ClassVar[bool] = True

    engine: Literal["simulated"]
    slots: Operational[int] = Field(256, ge=1, le=4096)
    modalities: Operational[list[Modality]] = Field(
        default_factory=list, description="What messages may have beside text. Images and files are not read."
    )
    options: SimulatedOptions = Field(default_factory=SimulatedOptions)
    structured_outputs: Operational[StructureBounds] = Field(default_factory=StructureBounds)

    @property
    def capabilities(self) -> Capabilities:
        return _capabilities(frozenset(self.modalities))

    @property
    def structure_bounds(self) -> StructureBounds:
        return self.structured_outputs

    @property
    def max_model_len(self) -> int | None:
        return self.options.max_model_len

    @property
    def prompt_tokenizer(self) -> PromptTokenizer:
        return WordTokenizer()
