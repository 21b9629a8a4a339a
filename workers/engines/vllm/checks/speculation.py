"""Speculative decoding: the method, its draft model, and its schedule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from vllm.config import VllmConfig
from vllm.config.speculative import SpeculativeConfig, SpeculativeMethod
from vllm.model_executor.model_loader.weight_utils import get_quant_config
from vllm.platforms import current_platform

from workers.engines.vllm.checks.imports import not_a_class
from workers.engines.vllm.checks.loading import model_problem
from workers.engines.vllm.checks.problem import Problem, did_you_mean, nearest, reason_of, vllm_name

FIELD = "options.speculative_config"
# Fields that vLLM fills in itself.
_INTERNAL = {"target_model_config", "target_parallel_config", "draft_model_config", "draft_parallel_config"}
# Methods that draft on a GPU only.
_NEEDS_GPU = {"ngram_gpu"}
# Methods that write down what the model computes, and draft nothing.
_DRAFTS_NOTHING = {"extract_hidden_states"}
# Methods whose `model` is the import path of a class, as in `module.Class`.
_CUSTOM = {"custom_class"}
# Methods whose `model` is a checkpoint.
_DRAFTS = {"draft_model", "eagle", "eagle3", "medusa", "mlp_speculator"}


def speculation_problems(options: Mapping[str, Any]) -> Iterator[Problem]:
    """Everything about `speculative_config` that can be checked without the model."""
    chosen = options.get("speculative_config")
    if chosen is None:
        return
    known = SpeculativeConfig.__dataclass_fields__.keys() - _INTERNAL
    unknown = [name for name in chosen if name not in known]
    for name in unknown:
        hint = did_you_mean(name, known) if nearest(name, known) else "its fields are those of SpeculativeConfig"
        yield Problem(f"{FIELD}.{name}", f"{vllm_name()} has no {name}; {hint}")
    transfers = options.get("kv_transfer_config") is not None
    yield from _method(chosen.get("method"), chosen.get("model"), transfers=transfers)
    yield from _draft(chosen)
    if options.get("logits_processors"):
        yield Problem(
            "options.logits_processors", "vLLM does not run them together with speculative_config; omit one of the two"
        )
    if "num_speculative_tokens_per_batch_size" not in unknown:
        yield from _schedule(chosen)


def methods() -> set[str]:
    """The methods of the installed vLLM."""
    return set(_names(SpeculativeMethod))


def _names(literal: Any) -> Iterator[str]:
    for argument in get_args(literal):
        if isinstance(argument, str):
            yield argument
        else:
            yield from _names(argument)


def _method(method: Any, model: Any, *, transfers: bool) -> Iterator[Problem]:
    """`transfers`: a connector takes what the model computes."""
    if method is None:
        if model is None:
            yield Problem(FIELD, "needs a method, or the model that drafts")
    elif not isinstance(method, str):
        yield Problem(f"{FIELD}.method", f"must be a name, not {method!r:.100}; it has {', '.join(sorted(methods()))}")
    elif method not in methods():
        yield Problem(f"{FIELD}.method", f"{vllm_name()} has no method {method!r}; {did_you_mean(method, methods())}")
    elif method in _NEEDS_GPU and current_platform.is_cpu():
        yield Problem(f"{FIELD}.method", f"{method} needs a GPU; use ngram")
    elif method in _DRAFTS_NOTHING and not transfers:
        yield Problem(f"{FIELD}.method", f"{method} drafts nothing without a kv_transfer_config; use another method")


def _draft(chosen: Mapping[str, Any]) -> Iterator[Problem]:
    """The files of a draft model, as far as `model` is a path: names of the hub are looked up by vLLM."""
    method, model = chosen.get("method"), chosen.get("model")
    if model is not None and not isinstance(model, str):
        yield Problem(f"{FIELD}.model", f"must be a folder or a hub id, not {model!r:.100}")
    if not isinstance(method, str | None):
        return
    if method in _DRAFTS and model is None:
        yield Problem(f"{FIELD}.model", f"is required: the {method} that drafts, a folder or a hub id")
    if method in _CUSTOM and isinstance(model, str):
        module, _, name = model.rpartition(".")
        if (problem := not_a_class(module, name, "builtins.object")) is not None:
            yield Problem(f"{FIELD}.model", f"{model!r} is not the import path of a class: {problem}")
    if not isinstance(model, str) or method not in {None, *_DRAFTS}:
        return
    problem = model_problem(model, ("config.json",), instead="name the folder of the model that drafts")
    if problem is not None:
        yield Problem(f"{FIELD}.model", problem)


def _schedule(chosen: Mapping[str, Any]) -> Iterator[Problem]:
    """`num_speculative_tokens_per_batch_size`, which vLLM checks only after it has loaded the model."""
    field = f"{FIELD}.num_speculative_tokens_per_batch_size"
    schedule = chosen.get("num_speculative_tokens_per_batch_size")
    if schedule is None:
        return
    if chosen.get("num_speculative_tokens") is None:
        yield Problem(f"{FIELD}.num_speculative_tokens", "is required: the most tokens of the schedule")
        return
    if (malformed := _malformed(schedule)) is not None:
        yield Problem(field, f"{malformed}; it is a list of [first, last, tokens]: [[1, 4, 4], [5, 64, 0]]")
        return
    from vllm.v1.spec_decode.dynamic.utils import validate_and_normalize_dynamic_sd_schedule

    try:
        ranges = validate_and_normalize_dynamic_sd_schedule(schedule)
    except (TypeError, ValueError) as error:
        yield Problem(field, reason_of(error))
        return
    most, allowed = max(tokens for _, _, tokens in ranges), chosen["num_speculative_tokens"]
    if isinstance(allowed, int) and most > allowed:
        yield Problem(field, f"has {most} tokens, more than num_speculative_tokens ({allowed}); raise the latter")


def too_many_drafts(config: VllmConfig) -> Iterator[Problem]:
    """More drafted tokens than a request can have: vLLM reserves memory for all of them."""
    chosen, context = config.speculative_config, config.model_config.max_model_len
    if chosen is not None and (chosen.num_speculative_tokens or 0) >= context:
        yield Problem(
            f"{FIELD}.num_speculative_tokens",
            f"is {chosen.num_speculative_tokens}, and a request has at most {context} tokens (max_model_len); 2 to 8"
            " are usual",
        )


def unfit_draft(config: VllmConfig) -> Iterator[Problem]:
    """A model that drafts and does not fit: vLLM would find out while it loads it, after the model itself."""
    chosen = config.speculative_config
    draft = None if chosen is None else chosen.draft_model_config
    if chosen is None or draft is None or draft is config.model_config:
        return
    if draft.quantization is not None:
        try:
            get_quant_config(draft, config.load_config)
        except Exception as error:
            yield Problem(f"{FIELD}.quantization", f"{draft.quantization} cannot be used: {reason_of(error)}; omit it")
    ours, theirs = config.model_config.get_hidden_size(), draft.get_hidden_size()
    if chosen.method == "eagle" and ours != theirs:
        yield Problem(
            f"{FIELD}.model", f"was made for a hidden size of {theirs}, and the model's is {ours}; use one made for it"
        )


def _malformed(schedule: Any) -> str | None:
    """What is wrong with the form of a schedule. vLLM would convert numbers, and mention no entry."""
    if not isinstance(schedule, list):
        return f"is no list, but {schedule!r:.100}"
    for entry in schedule:
        if not isinstance(entry, list | tuple) or len(entry) != 3 or any(type(number) is not int for number in entry):
            return f"has the entry {entry!r:.100}, which is not three integers"
    return None
