"""Options that vLLM accepts, and with which a worker cannot serve."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vllm.platforms import current_platform

from workers.engines.vllm.checks.problem import Problem, value_at

_QUEUE = "vLLM would fail jobs beyond it; jobs wait in Headrace's queue, which has limits of its own"
# The values that work, by option, and what they are needed for.
_NEEDED: Mapping[str, tuple[Collection[Any], str]] = {
    "scheduling_policy": (("priority",), "jobs have priorities"),
    "runner": (("auto", "generate"), "a worker generates text"),
    "convert": (("auto", "none"), "a worker generates text"),
    "skip_tokenizer_init": ((False,), "prompts are rendered and answers decoded with the tokenizer"),
    "tokens_only": ((False,), "prompts are rendered and answers decoded with the tokenizer"),
    "max_num_queued_reqs": ((None,), _QUEUE),
    "max_num_queued_tokens": ((None,), _QUEUE),
}
# Options that are for a GPU: the values that change nothing, and what the others do.
_NEEDS_GPU: Mapping[str, tuple[Collection[Any], str]] = {
    "cpu_offload_gb": ((0,), "moves weights from the memory of a GPU to that of the machine"),
    "cudagraph_capture_sizes": ((None, []), "is about CUDA graphs"),
    "device_ids": ((None,), "chooses GPUs"),
    "kv_offloading_size": ((None,), "moves the KV cache from the memory of a GPU to that of the machine"),
    "max_cudagraph_capture_size": ((None, 0), "is about CUDA graphs"),
    "offload_backend": (("auto",), "moves weights from the memory of a GPU to that of the machine"),
    "offload_group_size": ((0,), "moves weights from the memory of a GPU to that of the machine"),
    "numa_bind": ((False,), "binds processes to the NUMA nodes of GPUs"),
}
# Fields and their values that are for a GPU.
_VALUES_FOR_A_GPU: Mapping[str, Collection[str]] = {
    "profiler_config.profiler": ("cuda",),
    "kv_transfer_config.kv_connector": ("OffloadingConnector", "SimpleCPUOffloadConnector"),
}
# The seeds that vLLM takes.
_SEEDS = range(2**32)


def unusable_values(options: Mapping[str, Any]) -> Iterator[Problem]:
    """Values with which jobs would fail, or be served in another order than that of their priorities."""
    for name, (usable, reason) in _NEEDED.items():
        if name in options and options[name] not in usable:
            yield Problem(f"options.{name}", f"must not be {options[name]!r}, because {reason}; omit it")
    seed = options.get("seed")
    if isinstance(seed, int) and seed not in _SEEDS:
        yield Problem("options.seed", f"is {seed}, and vLLM takes seeds from 0 to {_SEEDS[-1]}; use one of these")


def for_a_gpu(options: Mapping[str, Any]) -> Iterator[Problem]:
    """Options that do nothing on a CPU, or with which vLLM fails there."""
    if not current_platform.is_cpu():
        return
    for name, (harmless, purpose) in _NEEDS_GPU.items():
        if name in options and options[name] not in harmless:
            yield Problem(f"options.{name}", f"needs a GPU: it {purpose}; omit it")
    for place, values in _VALUES_FOR_A_GPU.items():
        value = value_at(options, place)
        if isinstance(value, str) and value in values:
            yield Problem(f"options.{place}", f"{value} needs a GPU; omit it")
