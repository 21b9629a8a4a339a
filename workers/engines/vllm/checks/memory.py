"""The KV cache: its size as far as it is known before the engine runs, and whether it holds one request."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.utils.torch_utils import get_dtype_size, kv_cache_dtype_str_to_dtype

from workers.engines.vllm.checks.problem import Problem


class KVCache(NamedTuple):
    """The KV cache of one device. `blocks` and `block_bytes` are None if only the engine knows them."""

    block_tokens: int
    block_bytes: int | None
    blocks: int | None
    dtype: str

    @property
    def tokens(self) -> int | None:
        """The number of tokens that it holds."""
        return None if self.blocks is None else self.blocks * self.block_tokens


def kv_cache(config: VllmConfig) -> KVCache:
    """The KV cache that the engine has, or will have.

    The number of blocks is known if the options name it (`num_gpu_blocks_override`) or the size in bytes
    (`kv_cache_memory_bytes`). Otherwise it is what the engine finds free after it has loaded and run the model, and
    then writes to its configuration.
    """
    cache = config.cache_config
    dtype = kv_cache_dtype_str_to_dtype(cache.cache_dtype, config.model_config)
    block_bytes = _block_bytes(config, dtype)
    blocks = cache.num_gpu_blocks or cache.num_gpu_blocks_override
    if blocks is None and cache.kv_cache_memory_bytes is not None and block_bytes is not None:
        blocks = cache.kv_cache_memory_bytes // block_bytes
    return KVCache(cache.block_size, block_bytes, blocks, str(dtype).removeprefix("torch."))


def _block_bytes(config: VllmConfig, dtype: torch.dtype) -> int | None:
    """Bytes of a block in all layers; None for models whose layers differ, or share or compress their cache."""
    model, parallel = config.model_config, config.parallel_config
    if not has_uniform_layers(config) or (
        config.speculative_config is not None and config.speculative_config.draft_model_config is not model
    ):
        return None
    heads = model.get_num_kv_heads(parallel)
    per_token = 2 * heads * model.get_head_size() * get_dtype_size(dtype)
    return int(config.cache_config.block_size * per_token * model.get_num_layers(parallel))


def has_uniform_layers(config: VllmConfig) -> bool:
    """Whether all layers of the model keep the keys and values of all tokens, in a cache of their own."""
    model = config.model_config
    return not (
        model.is_attention_free
        or model.is_hybrid
        or model.use_mla
        or model.get_sliding_window() is not None
        or getattr(model.hf_text_config, "layer_types", None) not in (None, ["full_attention"] * _layers(config))
        or getattr(model.hf_text_config, "num_kv_shared_layers", 0)
    )


def _layers(config: VllmConfig) -> int:
    return int(config.model_config.get_total_num_hidden_layers())


def cache_too_large(config: VllmConfig) -> Iterator[Problem]:
    """A cache that exceeds the memory of the whole device: vLLM would find out after it has loaded the model."""
    cache = kv_cache(config)
    by_bytes = config.cache_config.num_gpu_blocks_override is None
    wanted = config.cache_config.kv_cache_memory_bytes if by_bytes else (cache.blocks or 0) * (cache.block_bytes or 0)
    try:
        total = int(current_platform.get_device_total_memory())
    except (NotImplementedError, RuntimeError, OSError):
        return
    if wanted is None or wanted <= total:
        return
    field = "kv_cache_memory_bytes" if by_bytes else "num_gpu_blocks_override"
    most = total if by_bytes else total // (cache.block_bytes or 1)
    yield Problem(
        f"options.{field}",
        f"needs {wanted / 1e9:.0f} GB, and the device has {total / 1e9:.0f} GB; set it to less than {most}",
    )


def cache_too_small(config: VllmConfig) -> Iterator[Problem]:
    """A cache that does not hold one request of the whole context: vLLM refuses it after it has loaded the model."""
    cache, context = kv_cache(config), config.model_config.max_model_len
    if cache.tokens is None or cache.tokens >= context:
        return
    by_bytes = config.cache_config.num_gpu_blocks_override is None
    field = "kv_cache_memory_bytes" if by_bytes else "num_gpu_blocks_override"
    blocks = -(-context // cache.block_tokens)
    enough = blocks * (cache.block_bytes or 0) if by_bytes else blocks
    yield Problem(
        f"options.{field}",
        f"the KV cache holds {cache.tokens} tokens, fewer than one request of max_model_len ({context}); set it to at"
        f" least {enough}, or max_model_len to at most {cache.tokens}",
    )


def too_little_memory(config: VllmConfig) -> Iterator[Problem]:
    """A share of a CPU's memory that is in use already.

    vLLM reserves `gpu_memory_utilization` of the memory, also on a CPU, unless the options name the size of the cache.
    It finds this out when the engine's process starts.
    """
    cache = config.cache_config
    if not current_platform.is_cpu() or cache.kv_cache_memory_bytes is not None:
        return
    try:
        from vllm.utils.cpu_resource_utils import get_memory_node_info, get_visible_memory_node
    except ImportError:  # vLLM before 0.30 reserves a fixed size
        return
    if not (nodes := get_visible_memory_node()):
        return
    memory = get_memory_node_info(nodes[0])
    share, total = cache.gpu_memory_utilization, memory.total_memory
    reserved = share * total
    field, instead = "options.gpu_memory_utilization", "set options.kv_cache_memory_bytes to the size of the KV cache"
    begin = f"is {share}, which reserves {reserved / 1e9:.1f} GB for the weights and the KV cache, and"
    if reserved > memory.available_memory:
        most = math.floor(memory.available_memory / total * 100) / 100
        yield Problem(
            field,
            f"{begin} {memory.available_memory / 1e9:.1f} GB are available; {instead}, or this to at most {most}",
        )


def of_other_layers(config: VllmConfig) -> Iterator[Problem]:
    """Options about layers that the model does not have. vLLM refuses them after it has loaded the model."""
    cache = config.cache_config
    if not has_uniform_layers(config):
        return
    if getattr(cache, "prefix_match_unit", None) not in (None, cache.block_size):
        yield Problem(
            "options.prefix_match_unit",
            f"is for models with several kinds of layers; the unit of this one is its block size ({cache.block_size});"
            " omit it",
        )
    if getattr(cache, "prefix_cache_retention_interval", None):
        yield Problem(
            "options.prefix_cache_retention_interval",
            "is for models with a sliding window or with Mamba layers, which this one does not have; omit it",
        )
