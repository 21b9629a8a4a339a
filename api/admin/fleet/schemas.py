"""Workers and queues as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api.admin.fleet.store import WorkerInfo
from shared.domain.engine_info import EngineInfo


class BreakerView(BaseModel):
    """An open circuit breaker: it lets no jobs through to the upstream."""

    since: datetime
    reason: str | None


class WorkerView(BaseModel):
    """A worker process, which runs one engine."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "smollm2-4711-a1b2c3@gpu-1",
                    "object": "worker",
                    "model": "smollm2",
                    "state": "ready",
                    "state_since": "2026-11-29T09:00:31Z",
                    "alive": True,
                    "slots": 64,
                    "running": 12,
                    "waiting": 0,
                    "kv_cache_usage": 0.31,
                    "tokens_per_s": 1840.5,
                    "started_at": "2026-11-29T09:00:02Z",
                    "lease_expires_at": "2026-11-29T12:30:05Z",
                    "version": "0.1.0",
                    "options": {"engine": "vllm", "model": "bundled:smollm2", "options": {"max_num_seqs": 64}},
                    "engine_info": {
                        "engine": "vLLM 0.32.0",
                        "device": "cpu",
                        "dtype": "bfloat16",
                        "quantization": {"method": "fp8_per_channel", "from": "online"},
                        "attention_backend": "CPU_ATTN",
                        "start": "compiled",
                        "context": 2048,
                        "slots": 64,
                        "tokens_per_step": 2048,
                        "chunked_prefill": True,
                        "prefix_caching": True,
                        "kv_cache": {
                            "dtype": "bfloat16",
                            "block_tokens": 128,
                            "block_bytes": 2949120,
                            "blocks": 364,
                            "tokens": 46592,
                        },
                        "speculation": {
                            "method": "ngram",
                            "tokens": 4,
                            "tokens_per_batch_size": [[1, 4, 4], [5, 64, 0]],
                            "draft": None,
                        },
                        "adapters": None,
                        "parallel": {"tensor": 1, "pipeline": 1, "data": 1},
                        "fingerprint": "fp_0a1b2c3d4e5f",
                    },
                    "breaker": None,
                    "last_error": None,
                    "drain_requested_at": None,
                }
            ]
        }
    )

    id: str
    object: Literal["worker"] = "worker"
    model: str
    state: str = Field(
        description="`loading`, `warming`, `ready`, `restarting`, `draining` or `drained`; newer workers may have"
        " others."
    )
    state_since: datetime | None
    alive: bool = Field(description="Whether it renews its lease. Those that do not are listed for an hour.")
    slots: int
    running: int = Field(description="Requests in its engine.")
    waiting: int = Field(description="Those of them that the engine has not started.")
    kv_cache_usage: float | None = Field(description="The used fraction of the KV cache, from 0 to 1.")
    tokens_per_s: float | None = Field(description="Output tokens since the heartbeat before.")
    started_at: datetime
    lease_expires_at: datetime
    version: str | None
    options: dict[str, Any] = Field(description="Its model's entry in models.yaml, without defaults and secrets.")
    engine_info: EngineInfo | None = Field(
        description="What its engine runs with, which the options above and the machine decide; null until the engine"
        " has started."
    )
    breaker: BreakerView | None
    last_error: str | None = Field(description="Why its engine failed last.")
    drain_requested_at: datetime | None

    @classmethod
    def of(cls, worker: WorkerInfo) -> Self:
        """The JSON form of a worker."""
        names = cls.model_fields.keys() - {"object", "breaker"}
        breaker = None
        if worker.breaker_since is not None:
            breaker = BreakerView(since=worker.breaker_since, reason=worker.breaker_reason)
        return cls(breaker=breaker, **{name: getattr(worker, name) for name in names})


class PauseView(BaseModel):
    """A model whose queue is paused."""

    model: str
    paused_at: datetime


class WorkerList(BaseModel):
    """All workers, by model, and the paused queues."""

    object: Literal["list"] = "list"
    data: list[WorkerView]
    paused: list[PauseView] = Field(description="Models whose queues are paused: no worker takes their jobs.")


class QueueView(BaseModel):
    """The queue of a model."""

    object: Literal["queue"] = "queue"
    model: str
    paused_at: datetime | None = Field(description="Since when it is paused; null if it is not.")
