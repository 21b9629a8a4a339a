"""What an engine runs with: its options after the engine has resolved them. Reported by workers, shown to operators.

The size is bounded: it is a part of each heartbeat. Every member but the engine's name may be unknown, so that each
version can read what workers of others report.
"""

from __future__ import annotations

from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

MAX_TEXT = 200
MAX_ITEMS = 64

_Item = TypeVar("_Item")


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


def _few(items: tuple[_Item, ...]) -> tuple[_Item, ...]:
    return items[:MAX_ITEMS]


_Text = Annotated[str, AfterValidator(_short)]


class _Info(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


class QuantizationInfo(_Info):
    """How the weights are quantized."""

    method: _Text
    origin: _Text | None = Field(
        None, alias="from", description="`checkpoint`, or `online`: quantized while they are loaded."
    )


class KVCacheInfo(_Info):
    """The KV cache. Its size is unknown until the engine has loaded and run the model."""

    dtype: _Text | None = None
    block_tokens: int | None = None
    block_bytes: int | None = Field(None, description="Null for models whose layers differ.")
    blocks: int | None = None
    tokens: int | None = None


class SpeculationInfo(_Info):
    """Speculative decoding."""

    method: _Text
    tokens: int | None = Field(None, description="The most tokens that are drafted at a time.")
    tokens_per_batch_size: Annotated[tuple[tuple[int, int, int], ...], AfterValidator(_few)] | None = Field(
        None, description="The tokens by load: the first and the last number of requests, and the tokens."
    )
    draft: _Text | None = Field(None, description="The model that drafts.")


class AdaptersInfo(_Info):
    """LoRA adapters: the first names, and the highest rank that the engine can load."""

    names: Annotated[tuple[_Text, ...], AfterValidator(_few)] = ()
    max_rank: int | None = None


class ParallelInfo(_Info):
    """The number of devices by kind of parallelism."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1


class EngineInfo(_Info):
    """What an engine runs with; null is unknown, or not used by this engine."""

    engine: _Text = Field(description="The engine, and its version if it runs the model itself.")
    device: _Text | None = None
    dtype: _Text | None = None
    quantization: QuantizationInfo | None = None
    attention_backend: _Text | None = None
    start: _Text | None = Field(
        None, description="`fast`: the model runs as it is (eager). `compiled`: compiled first."
    )
    context: int | None = Field(None, description="Tokens of prompt and output together.")
    slots: int | None = None
    tokens_per_step: int | None = None
    chunked_prefill: bool | None = None
    prefix_caching: bool | None = None
    kv_cache: KVCacheInfo | None = None
    speculation: SpeculationInfo | None = None
    adapters: AdaptersInfo | None = None
    parallel: ParallelInfo | None = None
    fingerprint: _Text | None = None

    @classmethod
    def read(cls, value: Any) -> Self | None:
        """What a worker has reported; None if it has not, or if its version reports it in another form."""
        if value is None:
            return None
        try:
            return cls.model_validate(value)
        except ValidationError:
            return None

    def as_json(self) -> dict[str, Any]:
        """JSON values of what was set."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)
