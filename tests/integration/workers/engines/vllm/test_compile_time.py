"""What the default bounds admit is compiled within a second of one core by vLLM's backends."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest

from shared.domain.request import GenerateRequest
from shared.domain.request import StructuredOutputs as Request
from shared.domain.structure_size import StructureBounds, structure_steps
from tests.support.compilation import compile_
from tests.support.structures import LARGEST, ORDINARY

pytestmark = [
    pytest.mark.vllm,
    # torch and vLLM warn about themselves at import.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

# A second, on a machine that other tests share.
COMPILES_S = 1.5


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
