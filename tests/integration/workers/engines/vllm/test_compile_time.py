"""What the default bounds admit is compiled within a second of one core by vLLM's backends."""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace
from typing import Any

import pytest

from shared.domain.request import GenerateRequest
from shared.domain.request import StructuredOutputs as Request
from shared.domain.structure_size import StructureBounds, structure_steps
from tests.support.real_engine import SMOLLM2
from tests.support.structures import LARGEST, ORDINARY, Structure

pytestmark = [
    pytest.mark.vllm,
    # torch and vLLM warn about themselves at import.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

# A second, on a machine that other tests share.
COMPILES_S = 1.5


@pytest.fixture(scope="module")
def manager() -> Any:
    """The part of vLLM's manager that compiles, without an engine."""
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


def lazy(grammar: Any) -> bool:
    return type(grammar).__name__ == "GuidanceGrammar"


def test_lengths_are_compiled_lazily_and_small_schemas_are_not(manager: Any) -> None:
    assert lazy(compile_(manager, ORDINARY["lengths"]))
    assert lazy(compile_(manager, ORDINARY["60 tools"]))
    assert not lazy(compile_(manager, ORDINARY["a person"]))
    assert not lazy(compile_(manager, ORDINARY["choices"]))


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"type": "string", "maxLength": 99}, "b": {"type": "string", "format": "json-pointer"}}},
        {"properties": {f"p{number}": {"type": "string", "maxLength": 99} for number in range(300)}},
    ],
)
def test_lengths_that_no_backend_compiles_fast_are_refused(manager: Any, schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="lengths or patterns"):
        compile_(manager, {"json": {"type": "object", **schema}})


def test_another_backend_can_be_chosen() -> None:
    from workers.engines.vllm.structure_backend import StructuredOutputs, structured_output_options

    assert structured_output_options({"structured_outputs_config": {"backend": "xgrammar"}}) == {}
    options = structured_output_options({"structured_outputs_config": {"disable_any_whitespace": False}})
    assert isinstance(options["structured_outputs_config"], StructuredOutputs)


@pytest.mark.long
@pytest.mark.parametrize("name", [*ORDINARY, *LARGEST])
def test_an_admitted_structure_is_compiled_within_a_second(manager: Any, name: str) -> None:
    structure = {**ORDINARY, **LARGEST}[name]
    fields = {"json_schema" if kind == "json" else kind: spec for kind, spec in structure.items()}
    *_, states = structure_steps(GenerateRequest(prompt="x", structured_outputs=Request(**fields)), StructureBounds())
    began = time.process_time()
    with contextlib.suppress(ValueError):  # refused
        compile_(manager, structure)
    took = time.process_time() - began
    print(f"{name}: {states:,.0f} estimated states, {took:.3f} s")
    assert took <= COMPILES_S
