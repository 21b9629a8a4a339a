"""Compiles strings with lengths or patterns by llguidance instead of xgrammar.

xgrammar computes the tokens that each state of a grammar allows in advance: with a vocabulary of 131,072 tokens, one
`maxLength` of 255 takes four seconds. llguidance computes them when they are needed, in a few milliseconds each. vLLM
has one backend for all requests of an engine. Here a schema, a regex or the constraint of tool calls that is slow in
xgrammar is compiled by llguidance if it supports it. Otherwise it is rejected, or, for tool calls, compiled by
xgrammar: clients cannot change the form in which their model calls tools. Everything else is compiled by xgrammar.

The engine runs in another process. It imports this module when it unpickles its settings, which are a class of this
module; the import replaces the method of vLLM that compiles a grammar.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import llguidance
import orjson
from vllm.config import StructuredOutputsConfig
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_guidance import (
    GuidanceBackend,
    GuidanceGrammar,
    process_for_additional_properties,
)
from vllm.v1.structured_output.backend_types import StructuredOutputOptions
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

from workers.engines.vllm.slow_strings import SLOW_S, is_wide, schema_seconds, text_seconds
from workers.engines.vllm.tag_grammar import Untranslatable, special_tokens, to_llguidance

# What xgrammar may need for strings that llguidance does not support.
MAX_S = 1.0
# Kinds whose specification is JSON.
_SCHEMAS = (StructuredOutputOptions.JSON, StructuredOutputOptions.STRUCTURAL_TAG)

_building = threading.Lock()
_create_grammar = StructuredOutputManager._create_grammar


class StructuredOutputs(StructuredOutputsConfig):  # type: ignore[misc]
    """vLLM's settings of structured outputs. The process that unpickles them compiles as this module says."""


def structured_output_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Engine options that select these backends; empty if a model's options name another backend."""
    chosen = options.get("structured_outputs_config") or {}
    if not isinstance(chosen, dict) or chosen.get("backend", "auto") != "auto":
        return {}
    return {"structured_outputs_config": StructuredOutputs(**chosen)}


def _compile(manager: Any, request: Any) -> Any:
    """Replaces `StructuredOutputManager._create_grammar`. Runs on several threads.

    Raises:
        ValueError: the strings are slow in xgrammar, and llguidance does not support the structure.
    """
    settings = manager.vllm_config.structured_outputs_config
    if isinstance(settings, StructuredOutputs) and isinstance(manager.backend, XgrammarBackend):
        kind, spec = request.structured_output_request.structured_output_key
        schema = orjson.loads(spec) if kind in _SCHEMAS else None
        seconds = schema_seconds(schema) if kind in _SCHEMAS else _text_seconds(kind, spec)
        if seconds > SLOW_S:
            grammar = _compile_lazily(manager, kind, spec, schema)
            if grammar is not None:
                return grammar
            if seconds > MAX_S and kind != StructuredOutputOptions.STRUCTURAL_TAG:
                raise ValueError(
                    "lengths or patterns that xgrammar compiles too slowly and llguidance does not support"
                )
    return _create_grammar(manager, request)


def _text_seconds(kind: StructuredOutputOptions, spec: str) -> float:
    if kind in (StructuredOutputOptions.REGEX, StructuredOutputOptions.GRAMMAR):
        return text_seconds(spec, grammar=kind == StructuredOutputOptions.GRAMMAR)
    return 0.0


def _compile_lazily(manager: Any, kind: StructuredOutputOptions, spec: str, schema: Any) -> Any:
    """Compile by llguidance. Returns None if it does not support the structure or the tokenizer.

    `schema` is the parsed specification of the kinds in `_SCHEMAS`.
    """
    if is_wide(schema) if kind in _SCHEMAS else kind != StructuredOutputOptions.REGEX:
        return None
    with _building:
        backend = getattr(manager, "lazy_backend", None)
        if backend is None:
            if not GuidanceBackend.is_tokenizer_supported(manager.tokenizer):
                return None
            vocabulary = manager.vllm_config.model_config.get_vocab_size()
            backend = GuidanceBackend(manager.vllm_config, tokenizer=manager.tokenizer, vocab_size=vocabulary)
            # As in xgrammar, an object has only the properties that its schema names, unless it allows others.
            backend.disable_additional_properties = True
            manager.lazy_backend = backend
    try:
        if kind == StructuredOutputOptions.STRUCTURAL_TAG:
            grammar = _compile_tag(backend, manager.tokenizer, schema)
        else:
            grammar = backend.compile_grammar(kind, spec)
        # Some limits are checked only here.
        grammar.ll_matcher.compute_bitmask()
    except (ValueError, Untranslatable):
        return None
    return None if grammar.ll_matcher.get_error() else grammar


def _compile_tag(backend: Any, tokenizer: Any, tag: dict[str, Any]) -> GuidanceGrammar:
    text = to_llguidance(tag, special_tokens(tokenizer), process_for_additional_properties)
    matcher = llguidance.LLMatcher(backend.ll_tokenizer, text)
    grammar = GuidanceGrammar(ll_matcher=matcher, ll_tokenizer=backend.ll_tokenizer, vocab_size=backend.vocab_size)
    grammar.check_error()
    return grammar


StructuredOutputManager._create_grammar = _compile
