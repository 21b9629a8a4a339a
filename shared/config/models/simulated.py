"""Spec of a model that is simulated."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.config.models.base import Spec


class SimulatedOptions(BaseModel):
    """How the simulated engine behaves. Times in milliseconds."""

    model_config = ConfigDict(extra="forbid")

    ttft_ms: float = Field(20, ge=0)
    itl_ms: float = Field(5, ge=0)
    default_tokens: int = Field(64, ge=1, description="Length of an answer without max_tokens.")
    max_model_len: int = Field(8192, ge=2)
    fail_on: str | None = Field(None, description="A prompt that contains this fails, as an engine would.")
    die_on: str | None = Field(None, description="A prompt that contains this ends the engine, with all its jobs.")


class SimulatedModel(Spec):
    """No model: deterministic text at a fixed rate, for load tests and for trying things out."""

    engine: Literal["simulated"]
    slots: int = Field(256, ge=1, le=4096)
    options: SimulatedOptions = Field(default_factory=SimulatedOptions)

    @property
    def max_model_len(self) -> int | None:
        return self.options.max_model_len
