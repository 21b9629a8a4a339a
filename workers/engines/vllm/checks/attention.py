"""Attention backends: whether the named one exists and runs on this platform."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm.config import VllmConfig, set_current_vllm_config
from vllm.platforms import current_platform
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.attention.selector import get_attn_backend

from workers.engines.vllm.checks.problem import Problem, did_you_mean, reason_of, vllm_name

FIELD = "options.attention_backend"
AUTO = "auto"
KV_CACHE_DTYPE = "options.kv_cache_dtype"
# Kinds of KV caches that every backend has. The others are quantized.
_PLAIN_CACHES = ("auto", "float16", "bfloat16")


def unknown_backend(options: Mapping[str, Any]) -> Iterator[Problem]:
    """A backend that vLLM does not have."""
    name = options.get("attention_backend")
    known = AttentionBackendEnum.__members__
    if isinstance(name, str) and name.lower() != AUTO and name.upper() not in known:
        yield Problem(FIELD, f"{vllm_name()} has no attention backend {name!r}; {did_you_mean(name, known.keys())}")


def backend_problem(config: VllmConfig) -> Iterator[Problem]:
    """A backend that does not run on this platform or with this model: vLLM would fail, or use another one."""
    chosen = config.attention_config.backend
    if chosen is None:
        return
    try:
        used, path = _selected(config), chosen.get_path()
    except (ValueError, NotImplementedError, ImportError) as error:
        reason = reason_of(error).rstrip(".")
        yield Problem(FIELD, f"{chosen.name} cannot be used here: {reason}; omit it, and vLLM chooses one")
        return
    if used is not None and f"{used.__module__}.{used.__qualname__}" != path:
        yield Problem(
            FIELD,
            f"{chosen.name} does not run on {current_platform.device_name or current_platform.device_type}; use"
            f" {used.get_name()}, or omit it",
        )


def cache_problem(config: VllmConfig) -> Iterator[Problem]:
    """A KV cache that the backend cannot use. On a CPU vLLM notices some only when the engine's process starts, and
    with others it generates nonsense.
    """
    try:
        used = _selected(config)
    except (ValueError, NotImplementedError, ImportError):
        return  # another problem
    if used is None:
        return
    cache, name = config.cache_config, used.get_name()
    if getattr(cache, "user_specified_block_size", False) and not used.supports_block_size(cache.block_size):
        sizes = used.get_supported_kernel_block_sizes()
        multiples = " or ".join(str(size.base if isinstance(size, MultipleOf) else size) for size in sizes)
        yield Problem(
            "options.block_size",
            f"is {cache.block_size}, and {name} needs a multiple of {multiples}; set it to one, or omit it",
        )
    if cache.cache_dtype not in _PLAIN_CACHES:
        if not used.supports_kv_cache_dtype(cache.cache_dtype):
            usable = ", ".join(dict.fromkeys((*_PLAIN_CACHES, *used.supported_kv_cache_dtypes)))
            yield Problem(KV_CACHE_DTYPE, f"{name} has no KV cache of the kind {cache.cache_dtype}; it has {usable}")
        elif current_platform.is_cpu() and (reason := _cpu_problem(config)) is not None:
            yield Problem(KV_CACHE_DTYPE, f"{cache.cache_dtype} cannot be used here: {reason}; omit it")


def _cpu_problem(config: VllmConfig) -> str | None:
    """Why this CPU has no code for the KV cache. vLLM chooses that code when the engine's process starts."""
    try:
        from vllm.v1.attention.backends.cpu_attn import _get_attn_isa
    except ImportError:  # another version
        return None
    model, cache = config.model_config, config.cache_config
    try:
        _get_attn_isa(model.dtype, cache.block_size, model.get_head_size(), cache.cache_dtype)
    except NotImplementedError as error:
        return reason_of(error).rstrip(".")
    except TypeError:  # another version
        return None
    return None


def backend_name(config: VllmConfig) -> str | None:
    """The backend that the engine uses; None if only the engine knows it."""
    try:
        used = _selected(config)
    except (ValueError, NotImplementedError, ImportError):
        return None
    return str(used.get_name()) if used is not None else None


def _selected(config: VllmConfig) -> Any:
    """The class of vLLM's choice for a layer of the model. None for models without attention."""
    model = config.model_config
    if model.is_attention_free:
        return None
    with set_current_vllm_config(config):
        return get_attn_backend(
            model.get_head_size(),
            model.dtype,
            config.cache_config.cache_dtype,
            use_mla=model.use_mla,
            num_heads=model.get_num_attention_heads(config.parallel_config),
        )
