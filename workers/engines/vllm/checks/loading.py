"""Options that vLLM reads only when the engine's process starts: the loader, the tokenizer and the executor.

Each is looked up here as vLLM does it later, and only if the options name it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vllm.config import VllmConfig

from workers.engines.vllm.checks.problem import Problem, reason_of


def cannot_load(options: Mapping[str, Any], config: VllmConfig) -> Iterator[Problem]:
    """What vLLM would find out after the start of the engine's process, or after it has read the weights."""
    for names, look_up in _LOOKED_UP.items():
        named = [name for name in names if options.get(name) is not None]
        if not named:
            continue
        try:
            look_up(config)
        except Exception as error:
            reason = reason_of(error) or type(error).__name__
            # A mapping has names of its own, which the error mentions; otherwise the first option decides.
            name = next((name for name in named if name in reason), named[0])
            yield Problem(f"options.{name}", f"{options[name]!r:.100} cannot be used: {reason:.400}")


def _loader(config: VllmConfig) -> object:
    from vllm.model_executor.model_loader import get_model_loader

    return get_model_loader(config.load_config)


def _tokenizer(config: VllmConfig) -> object:
    from vllm.tokenizers import cached_tokenizer_from_config

    return cached_tokenizer_from_config(config.model_config)


def _executor(config: VllmConfig) -> object:
    from vllm.v1.executor import Executor

    return Executor.get_class(config)


_LOOKED_UP: Mapping[tuple[str, ...], Callable[[VllmConfig], object]] = {
    ("load_format", "model_loader_extra_config"): _loader,
    ("tokenizer", "tokenizer_mode", "tokenizer_revision"): _tokenizer,
    ("distributed_executor_backend",): _executor,
}
