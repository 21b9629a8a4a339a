"""Compiles structured outputs as an engine does, without an engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.support.real_engine import SMOLLM2
from tests.support.structures import Structure


def compilation_manager() -> Any:
    """The part of vLLM's manager that compiles."""
    from transformers import AutoTokenizer
    from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

    from workers.engines.vllm.structure_backend import StructuredOutputs

    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2.source)
    model = SimpleNamespace(get_vocab_size=lambda: len(tokenizer), hf_config=SimpleNamespace(model_type="llama"))
    config: Any = SimpleNamespace(
        structured_outputs_config=StructuredOutputs(), model_config=model, speculative_config=None
    )
    backend = XgrammarBackend(config, tokenizer=tokenizer, vocab_size=len(tokenizer))
    manager = SimpleNamespace(vllm_config=config, tokenizer=tokenizer, backend=backend)
    compile_(manager, {"json": {"type": "string", "maxLength": 100}})  # builds llguidance's tables, once in an engine
    return manager


def compile_(manager: Any, structure: Structure) -> Any:
    """Compile as an engine does. Returns the grammar; raises `ValueError` if it is refused."""
    from vllm.sampling_params import StructuredOutputsParams
    from vllm.v1.structured_output import StructuredOutputManager
    from vllm.v1.structured_output.request import get_structured_output_key
    from vllm.v1.structured_output.utils import choice_as_grammar

    ((kind, spec),) = structure.items()
    if kind == "choice":
        kind, spec = "grammar", choice_as_grammar(spec)  # as vLLM's front end does
    key = get_structured_output_key(StructuredOutputsParams(**{kind: spec}))
    request: Any = SimpleNamespace(
        request_id="x",
        sampling_params=None,
        structured_output_request=SimpleNamespace(structured_output_key=key),
    )
    return StructuredOutputManager._create_grammar(manager, request)
