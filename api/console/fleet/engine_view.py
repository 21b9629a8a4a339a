"""What engines run with, as the pages of models show it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from api.console.filters import number, plural, size
from shared.domain.engine_info import EngineInfo, KVCacheInfo, ParallelInfo, SpeculationInfo

# Of a list, before the rest is left out.
SHOWN_NAMES = 8
_STARTS = {"fast": "fast: eager, not compiled"}


@dataclass(frozen=True, slots=True)
class EngineCard:
    """What some workers run with: names and values. Workers of one model differ on different machines."""

    workers: Sequence[str]
    facts: Sequence[tuple[str, str]]


def engine_cards(engines: Sequence[tuple[str, EngineInfo | None]]) -> list[EngineCard]:
    """One card for all workers that run with the same. `engines`: the ids of workers, with what they run with."""
    alike: dict[str, tuple[EngineInfo, list[str]]] = {}
    for worker, info in engines:
        if info is not None:
            alike.setdefault(info.model_dump_json(), (info, []))[1].append(worker)
    return [EngineCard(workers, list(_facts(info))) for info, workers in alike.values()]


def engine_line(info: EngineInfo | None) -> str:
    """The most telling of it, in one line; empty for engines that do not run the model themselves."""
    if info is None:
        return ""
    parts = [
        info.dtype,
        info.quantization and info.quantization.method,
        info.speculation and f"{info.speculation.method} speculation",
        info.attention_backend,
        "eager" if info.start == "fast" else info.start,
    ]
    return " · ".join(part for part in parts if part)


def _facts(info: EngineInfo) -> Iterator[tuple[str, str]]:
    runs_model = info.dtype is not None
    yield "Engine", info.engine
    if info.device is not None:
        yield "Device", info.device
    if info.dtype is not None:
        yield "Data type", info.dtype
    if info.quantization is not None:
        while_loading = info.quantization.origin == "online"
        yield "Quantization", info.quantization.method + (", while loading" if while_loading else ", of the checkpoint")
    elif runs_model:
        yield "Quantization", "none"
    if info.attention_backend is not None:
        yield "Attention", info.attention_backend
    if info.start is not None:
        yield "Start", _STARTS.get(info.start, info.start)
    if info.context is not None:
        yield "Context", plural(info.context, "token")
    if info.slots is not None:
        yield "Slots", number(info.slots)
    if info.tokens_per_step is not None:
        yield "Tokens a step", number(info.tokens_per_step)
    for name, used in (("Chunked prefill", info.chunked_prefill), ("Prefix caching", info.prefix_caching)):
        if used is not None:
            yield name, "yes" if used else "no"
    if info.kv_cache is not None:
        yield "KV cache", _kv_cache(info.kv_cache)
    if info.speculation is not None:
        yield "Speculation", _speculation(info.speculation)
    elif runs_model:
        yield "Speculation", "none"
    if info.adapters is not None:
        names = info.adapters.names
        more = ", …" if len(names) > SHOWN_NAMES else ""
        yield "Adapters", f"{', '.join(names[:SHOWN_NAMES])}{more}; rank up to {number(info.adapters.max_rank)}"
    if info.parallel is not None and (devices := _parallel(info.parallel)):
        yield "Parallel", devices
    if info.fingerprint is not None:
        yield "Fingerprint", info.fingerprint


def _kv_cache(cache: KVCacheInfo) -> str:
    parts = []
    if cache.blocks is not None:
        of = "" if cache.block_tokens is None else f" of {plural(cache.block_tokens, 'token')}"
        parts.append(plural(cache.blocks, "block") + of)
        if cache.block_bytes is not None:
            parts.append(size(cache.blocks * cache.block_bytes))
    if cache.dtype is not None:
        parts.append(cache.dtype)
    return ", ".join(parts) or "unknown"


def _speculation(chosen: SpeculationInfo) -> str:
    parts = [chosen.method]
    if chosen.draft is not None:
        parts.append(f"drafts of {chosen.draft}")
    if chosen.tokens_per_batch_size:
        by_load = [f"{tokens} at {first} to {last}" for first, last, tokens in chosen.tokens_per_batch_size]
        more = ["…"] if len(by_load) > SHOWN_NAMES else []
        parts.append(f"tokens by running requests: {', '.join(by_load[:SHOWN_NAMES] + more)}")
    elif chosen.tokens is not None:
        parts.append(plural(chosen.tokens, "token"))
    return ", ".join(parts)


def _parallel(devices: ParallelInfo) -> str:
    kinds = {"tensor": devices.tensor, "pipeline": devices.pipeline, "data": devices.data}
    return " · ".join(f"{name} {count}" for name, count in kinds.items() if count > 1)
