"""Attention backends: whether the named one exists and runs on this platform."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm.config import VllmConfig, set_current_vllm_config
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.attention.selector import get_attn_backend

from workers.engines.vllm.checks.problem import Problem, did_you_mean, reason_of, vllm_name

FIELD = "options.attention_backend"
AUTO = "auto"


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
        used = _selected(config)
    except (ValueError, NotImplementedError, ImportError) as error:
        yield Problem(FIELD, f"{chosen.name} cannot be used here: {reason_of(error)}; omit it, and vLLM chooses one")
        return
    if used is not None and f"{used.__module__}.{used.__qualname__}" != chosen.get_path():
        yield Problem(
            FIELD,
            f"{chosen.name} does not run on {current_platform.device_name or current_platform.device_type}; use"
            f" {used.get_name()}, or omit it",
        )


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
