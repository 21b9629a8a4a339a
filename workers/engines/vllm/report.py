"""Describes what an engine runs with, for operators."""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig
from vllm.platforms import current_platform

from shared.domain.engine_info import (
    AdaptersInfo,
    EngineInfo,
    KVCacheInfo,
    ParallelInfo,
    QuantizationInfo,
    SpeculationInfo,
)
from workers.engines.vllm.checks.attention import backend_name
from workers.engines.vllm.checks.memory import kv_cache
from workers.engines.vllm.checks.problem import vllm_name
from workers.engines.vllm.checks.quantization import is_online
from workers.engines.vllm.plan import Plan
from workers.engines.vllm.stats import NO_SPECULATION

NOT_QUANTIZED = "none"
AFTER_PROFILING = "known once the engine has loaded and run the model"


def report(plan: Plan) -> dict[str, Any]:
    """`engine_info` as JSON values, with the names of the model and its source."""
    info = engine_info(plan).as_json()
    if info["kv_cache"]["blocks"] is None:
        info["kv_cache"]["note"] = AFTER_PROFILING
    return {"model": plan.model.name, "engine": info.pop("engine"), "source": plan.model.source, **info}


def engine_info(plan: Plan) -> EngineInfo:
    """What the engine runs with; or, before its start, will run with."""
    config = plan.config
    parallel, model, scheduler = config.parallel_config, config.model_config, config.scheduler_config
    cache = kv_cache(config)
    return EngineInfo(
        engine=vllm_name(),
        device=current_platform.get_device_name() or current_platform.device_type,
        dtype=plan.dtype,
        quantization=_quantization(config),
        attention_backend=backend_name(config),
        start=start_word(plan),
        context=model.max_model_len,
        slots=scheduler.max_num_seqs,
        tokens_per_step=scheduler.max_num_batched_tokens,
        chunked_prefill=bool(scheduler.enable_chunked_prefill),
        prefix_caching=bool(config.cache_config.enable_prefix_caching),
        kv_cache=KVCacheInfo(
            dtype=cache.dtype,
            block_tokens=cache.block_tokens,
            block_bytes=cache.block_bytes,
            blocks=cache.blocks,
            tokens=cache.tokens,
        ),
        speculation=_speculation(config),
        adapters=_adapters(plan),
        parallel=ParallelInfo(
            tensor=parallel.tensor_parallel_size,
            pipeline=parallel.pipeline_parallel_size,
            data=parallel.data_parallel_size,
        ),
        fingerprint=plan.fingerprint,
    )


def labels(plan: Plan) -> tuple[str, str, str, str, str]:
    """The labels of `headrace_engine_info`: dtype, quantization, attention backend, speculation, start."""
    config = plan.config
    speculation = config.speculative_config
    return (
        plan.dtype,
        config.model_config.quantization or NOT_QUANTIZED,
        backend_name(config) or "unknown",
        str(speculation.method) if speculation is not None else NO_SPECULATION,
        start_word(plan),
    )


def start_word(plan: Plan) -> str:
    """How the model starts, whichever option says so."""
    return "fast" if plan.config.model_config.enforce_eager else "compiled"


def _quantization(config: VllmConfig) -> QuantizationInfo | None:
    method = config.model_config.quantization
    if method is None:
        return None
    return QuantizationInfo(method=method, origin="online" if is_online(config) else "checkpoint")


def _adapters(plan: Plan) -> AdaptersInfo | None:
    chosen = plan.config.lora_config
    if chosen is None:
        return None
    names = tuple(adapter.name for adapter in plan.model.adapters)
    return AdaptersInfo(names=names, max_rank=int(chosen.max_lora_rank))


def _speculation(config: VllmConfig) -> SpeculationInfo | None:
    chosen = config.speculative_config
    if chosen is None:
        return None
    schedule = getattr(chosen, "num_speculative_tokens_per_batch_size", None)
    return SpeculationInfo(
        method=str(chosen.method),
        tokens=chosen.num_speculative_tokens,
        tokens_per_batch_size=tuple((first, last, tokens) for first, last, tokens in schedule) if schedule else None,
        draft=chosen.model if chosen.draft_model_config is not config.model_config else None,
    )
