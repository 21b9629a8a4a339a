"""Options that vLLM accepts and then changes, because the platform or the model does not support them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vllm.config import CompilationMode, VllmConfig
from vllm.platforms import current_platform

from workers.engines.vllm.checks.problem import Problem

# The value that vLLM uses, by option. Only options that change what an operator sees.
_USED: Mapping[str, Callable[[VllmConfig], Any]] = {
    "enable_prefix_caching": lambda config: config.cache_config.enable_prefix_caching,
    "enable_chunked_prefill": lambda config: config.scheduler_config.enable_chunked_prefill,
    "async_scheduling": lambda config: config.scheduler_config.async_scheduling,
    "block_size": lambda config: config.cache_config.block_size,
    "enforce_eager": lambda config: config.model_config.enforce_eager,
    "max_num_seqs": lambda config: config.scheduler_config.max_num_seqs,
    "enable_dbo": lambda config: getattr(config.parallel_config, "enable_dbo", None),
}


def ignored_options(named: Mapping[str, Any], config: VllmConfig) -> Iterator[Problem]:
    """Options of the entry that the engine would run without."""
    for name, used in _USED.items():
        wanted = named.get(name)
        if wanted is not None and (actual := used(config)) is not None and actual != wanted:
            yield Problem(f"options.{name}", f"vLLM uses {actual!r} here instead of {wanted!r}; omit it")


def not_compiled(start: str | None, config: VllmConfig) -> Iterator[Problem]:
    """`start: compiled` of a model that vLLM does not compile."""
    if start == "compiled" and config.compilation_config.mode == CompilationMode.NONE:
        cause = " with LoRA adapters" if config.lora_config is not None and current_platform.is_cpu() else ""
        yield Problem("start", f"vLLM does not compile this model here{cause}; use start: fast")
