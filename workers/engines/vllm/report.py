"""Describes what an engine runs with, for operators."""

from __future__ import annotations

from typing import Any

from vllm.platforms import current_platform

from workers.engines.vllm.checks.attention import backend_name
from workers.engines.vllm.checks.memory import kv_cache
from workers.engines.vllm.checks.problem import vllm_name
from workers.engines.vllm.checks.quantization import is_online
from workers.engines.vllm.plan import Plan
from workers.engines.vllm.stats import NO_SPECULATION

NOT_QUANTIZED = "none"
AFTER_PROFILING = "known once the engine has loaded and run the model"


def report(plan: Plan) -> dict[str, Any]:
    """All of it, as JSON values. What only the running engine knows is None."""
    config = plan.config
    cache, parallel, model = kv_cache(config), config.parallel_config, config.model_config
    quantized: dict[str, Any] | None = None
    if model.quantization is not None:
        quantized = {"method": model.quantization, "from": "online" if is_online(config) else "checkpoint"}
    return {
        "model": plan.model.name,
        "engine": vllm_name(),
        "source": plan.model.source,
        "device": current_platform.get_device_name() or current_platform.device_type,
        "dtype": plan.dtype,
        "quantization": quantized,
        "attention_backend": backend_name(config),
        "start": start_word(plan),
        "context": model.max_model_len,
        "slots": config.scheduler_config.max_num_seqs,
        "tokens_per_step": config.scheduler_config.max_num_batched_tokens,
        "chunked_prefill": bool(config.scheduler_config.enable_chunked_prefill),
        "prefix_caching": bool(config.cache_config.enable_prefix_caching),
        "kv_cache": {
            "dtype": cache.dtype,
            "block_tokens": cache.block_tokens,
            "block_bytes": cache.block_bytes,
            "blocks": cache.blocks,
            "tokens": cache.tokens,
            **({} if cache.blocks is not None else {"note": AFTER_PROFILING}),
        },
        "speculation": _speculation(plan),
        "parallel": {
            "tensor": parallel.tensor_parallel_size,
            "pipeline": parallel.pipeline_parallel_size,
            "data": parallel.data_parallel_size,
        },
        "fingerprint": plan.fingerprint,
    }


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


def _speculation(plan: Plan) -> dict[str, Any] | None:
    chosen = plan.config.speculative_config
    if chosen is None:
        return None
    schedule = getattr(chosen, "num_speculative_tokens_per_batch_size", None)
    draft = chosen.model if chosen.draft_model_config is not plan.config.model_config else None
    return {
        "method": str(chosen.method),
        "tokens": chosen.num_speculative_tokens,
        "tokens_per_batch_size": [list(entry) for entry in schedule] if schedule else None,
        "draft": draft,
    }
