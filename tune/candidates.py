"""Which options are tried: one change of the model's entry at a time, and at the end the best ones together."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.config.models.vllm import VllmModel

BASELINE = "baseline"
COMBINED = "combined"
UNQUANTIZED = "not quantized"
# The groups are decided one after the other, in this order.
GROUPS = ("weights", "start", "attention", "speculation", "cache", "batching")

INT8 = "int8_per_channel_weight_only"
NGRAM = {"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 2}


@dataclass(frozen=True)
class Candidate:
    """A change of the entry in models.yaml. `changes`: options by name; None removes one.

    `model` is a special name in it: another checkpoint of the same model. `problem`: why it cannot be tried.
    """

    name: str
    group: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class Surroundings:
    """What decides which candidates make sense.

    Args:
        gpu: whether vLLM runs on a GPU here.
        dtype: in which the model runs without a change.
        copies: the folders of its quantized copies, by their bits; they are made when a candidate needs one. Without
            them, `problem` is the reason.
        quantized: the weights are quantized already.
    """

    gpu: bool
    dtype: str
    copies: Mapping[int, str] = field(default_factory=dict)
    problem: str | None = None
    quantized: bool = False


def entry_of(model: VllmModel, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The model's entry in models.yaml with these changes."""
    entry: dict[str, Any] = copy.deepcopy(model.model_dump(mode="json", exclude_unset=True))
    options = entry.setdefault("options", {})
    for name, value in changes.items():
        if name == "model":
            entry["model"] = value
        elif name == "enforce_eager" and entry.get("start") is not None:
            entry["start"] = "fast" if value else "compiled"
        elif value is None:
            options.pop(name, None)
        else:
            options[name] = value
    return entry


def plan(model: VllmModel, here: Surroundings, *, quick: bool) -> list[Candidate]:
    """The candidates, the baseline first. `quick` leaves out those that take long or rarely pay."""
    found = [Candidate(BASELINE, BASELINE, quick=True), *_weights(model, here)]
    found += _start(model) + (_attention() if here.gpu else [])
    found += _speculation(model.slots)
    found += _cache(model, here) + _batching(model, here)
    entries: dict[str, Candidate] = {}
    for candidate in found:
        if quick and not candidate.quick:
            continue
        entry = repr(entry_of(model, candidate.changes))
        entries.setdefault(entry if candidate.problem is None else candidate.name, candidate)
    return list(entries.values())


def _weights(model: VllmModel, here: Surroundings) -> list[Candidate]:
    if here.quantized:
        return []
    found = []
    if model.options.get("quantization") is not None:
        found.append(Candidate(UNQUANTIZED, "weights", {"quantization": None}, quick=True))
    # Half the bytes of float32; the quick check of a machine. On a GPU, float32 is never worth it.
    dtypes = ("bfloat16", "float16") if here.gpu else ("float32", "bfloat16", "float16")
    others = [dtype for dtype in dtypes if dtype != here.dtype]
    found += [
        Candidate(dtype, "weights", {"dtype": dtype}, quick=dtype == others[0] and not here.gpu) for dtype in others
    ]
    for bits, name in ((8, "INT8"), (4, "4 bits")):
        changes = {"model": here.copies[bits]} if bits in here.copies else {}
        found.append(Candidate(name, "weights", changes, quick=True, problem=here.problem))
    # vLLM quantizes online from 16-bit floats only.
    half = {} if here.dtype != "float32" else {"dtype": "bfloat16"}
    for method in ("fp8_per_tensor", "fp8_per_block", "fp8_per_channel", INT8):
        name = f"{method.partition('_')[0].upper()} {method.partition('_')[2].replace('_', ' ')} (online)"
        online = {**half, "quantization": method}
        found.append(Candidate(name, "weights", online, quick=here.gpu and method == "fp8_per_tensor"))
    return found


def _start(model: VllmModel) -> list[Candidate]:
    eager = entry_of(model, {}).get("start") == "fast" or model.options.get("enforce_eager")
    if eager:
        return [Candidate("compiled", "start", {"enforce_eager": False})]
    return [Candidate("eager", "start", {"enforce_eager": True})]


def _attention() -> list[Candidate]:
    backends = {"FLASH_ATTN": "FlashAttention", "FLASHINFER": "FlashInfer", "TRITON_ATTN": "Triton attention"}
    return [Candidate(name, "attention", {"attention_backend": backend}) for backend, name in backends.items()]


def _speculation(slots: int) -> list[Candidate]:
    found = [
        Candidate(
            f"n-gram speculation, {tokens} tokens",
            "speculation",
            {"speculative_config": {**NGRAM, "num_speculative_tokens": tokens}},
        )
        for tokens in (2, 4)
    ]
    return [
        *found,
        Candidate("n-gram speculation, by load", "speculation", {"speculative_config": by_load(slots)}, quick=True),
    ]


def by_load(slots: int) -> dict[str, Any]:
    """n-gram speculation that ends when many requests run: what is guessed wrong costs time of all of them."""
    bounds = [(1, 4, 4), (5, 8, 2), (9, max(9, slots), 0)]
    schedule = [[first, min(last, slots), tokens] for first, last, tokens in bounds if first <= slots]
    return {**NGRAM, "num_speculative_tokens": 4, "num_speculative_tokens_per_batch_size": schedule}


def _cache(model: VllmModel, here: Surroundings) -> list[Candidate]:
    caching = model.options.get("enable_prefix_caching") is not False
    found = [Candidate("FP8 KV cache", "cache", {"kv_cache_dtype": "fp8"})]
    if here.gpu:
        found.append(Candidate("KV offload to memory", "cache", {"kv_offloading_size": 1.0}))
    if not model.warm_prompts or not caching:
        name = "no prefix cache" if caching else "prefix cache"
        found.insert(0, Candidate(name, "cache", {"enable_prefix_caching": not caching}))
    return found


def _batching(model: VllmModel, here: Surroundings) -> list[Candidate]:
    budgets = (2048, 8192, 16384) if here.gpu else (512, 2048, 8192)
    found = [
        # vLLM requires a budget of at least the number of sequences.
        Candidate(f"{budget} tokens a step", "batching", {"max_num_batched_tokens": max(budget, model.slots)})
        for budget in budgets
    ]
    slots = (128, 256) if here.gpu else (16, 128)
    return found + [
        Candidate(f"{number} slots", "batching", {"max_num_seqs": number}) for number in slots if number != model.slots
    ]
