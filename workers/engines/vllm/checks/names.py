"""Names of options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from vllm.config.model import ModelImpl
from vllm.engine.arg_utils import AsyncEngineArgs

from workers.engines.vllm.checks.problem import Problem, did_you_mean, nearest, vllm_name

# Options that the worker sets itself, or that belong to another field of the entry.
_ELSEWHERE = {
    "model": "model",
    "served_model_name": "name",
    "tokenizer_path": "options.tokenizer",
    # Short forms of vLLM's command line.
    "spec_method": "options.speculative_config.method",
    "spec_model": "options.speculative_config.model",
    "spec_tokens": "options.speculative_config.num_speculative_tokens",
}
# Fields of mappings, likewise.
_FIELDS_ELSEWHERE = {("structured_outputs_config", "reasoning_parser"): "chat.reasoning_parser"}
# Options that vLLM declares as text, although it knows only some words.
_WORDS: Mapping[str, Any] = {"model_impl": ModelImpl}


def unknown_options(options: Mapping[str, Any]) -> Iterator[Problem]:
    """Options that `AsyncEngineArgs` does not have, or that another field sets."""
    known = AsyncEngineArgs.__dataclass_fields__.keys()
    for name in options:
        field = f"options.{name}"
        if (elsewhere := _ELSEWHERE.get(name)) is not None:
            yield Problem(field, f"is not an engine option here; set {elsewhere} instead")
        elif name not in known:
            hint = did_you_mean(name, known) if nearest(name, known) else "options are AsyncEngineArgs by name"
            yield Problem(field, f"{vllm_name()} has no {name}; {hint}")
    for (name, key), elsewhere in _FIELDS_ELSEWHERE.items():
        if isinstance(chosen := options.get(name), dict) and chosen.get(key):
            yield Problem(f"options.{name}.{key}", f"is not an engine option here; set {elsewhere} instead")


def unknown_words(options: Mapping[str, Any]) -> Iterator[Problem]:
    """Words that vLLM does not know, for options whose values it does not check itself: it ignores these words."""
    for name, value in options.items():
        field = AsyncEngineArgs.__dataclass_fields__.get(name)
        known = _words(_WORDS.get(name, None if field is None else field.type))
        if isinstance(value, str) and known and _plain(value) not in map(_plain, known):
            hint = did_you_mean(value, known)
            yield Problem(f"options.{name}", f"{vllm_name()} has no {name} {value!r}; {hint}")


def _plain(word: str) -> str:
    """As vLLM reads it."""
    return word.lower().replace("-", "_")


def _words(declared: Any) -> list[str]:
    """The words that a type consists of, besides None; none if it has other values."""
    kinds = [declared] if get_origin(declared) is Literal else get_args(declared)
    kinds = [kind for kind in kinds if kind is not NoneType]
    if any(get_origin(kind) is not Literal for kind in kinds):
        return []
    words = [word for kind in kinds for word in get_args(kind) if word is not None]
    return words if all(isinstance(word, str) for word in words) else []
