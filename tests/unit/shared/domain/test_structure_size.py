"""Ordinary schemas, grammars and choices are accepted, hostile ones are rejected, and neither takes long to judge."""

from __future__ import annotations

import gc
import json
import time
from typing import Any

import pytest

from shared.domain.errors import InvalidRequest
from shared.domain.regex_states import RegexSize, measure
from shared.domain.request import ChatOptions, Function, GenerateRequest, StructuredOutputs, Tool
from shared.domain.structure_size import StructureBounds, structure_steps
from tests.support.step_limit import MAX_STEP_MS
from tests.support.structures import HOSTILE, LARGEST, ORDINARY, api, nested, record

BOUNDS = StructureBounds()


def request(structure: dict[str, Any]) -> GenerateRequest:
    fields = {"json_schema" if name == "json" else name: value for name, value in structure.items()}
    return GenerateRequest(prompt="x", structured_outputs=StructuredOutputs(**fields))


def states(structure: dict[str, Any], bounds: StructureBounds = BOUNDS) -> float:
    *_, last = structure_steps(request(structure), bounds)
    return last


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_structure_is_accepted(name: str) -> None:
    assert states(ORDINARY[name]) <= BOUNDS.max_states


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_of_each_kind_are_accepted(name: str) -> None:
    """`test_compile_time.py` measures how long they take."""
    assert states(LARGEST[name]) <= BOUNDS.max_states


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_structure_is_rejected(name: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        states(HOSTILE[name])
    assert raised.value.param == "structured_outputs"
    assert raised.value.message.startswith("structured_outputs")
    assert len(raised.value.message) < 1000


@pytest.mark.parametrize(
    ("structure", "parts"),
    [
        (
            {"json": {"properties": {"x": {"items": [{"minItems": 2147483648}]}}}},
            ["structured_outputs.properties.x.items[0]: ", "minItems 2147483648", "1000000", "Lower or omit it"],
        ),
        ({"choice": [str(number) for number in range(6000)]}, ["6000 choices", "bound of 5000", "Use fewer"]),
        ({"regex": "x" * 300_000}, ["bound of 262144 bytes"]),
        ({"json": nested(70)}, ["64 levels", "Flatten it"]),
        ({"json": {"pattern": "(a{1000}){1000}"}}, ["pattern (a{1000}){1000}", "1,000,000 states"]),
    ],
)
def test_an_error_names_the_place_the_value_the_bound_and_a_fix(structure: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(InvalidRequest) as raised:
        states(structure)
    assert [part for part in parts if part not in raised.value.message] == []


@pytest.mark.parametrize(
    ("bounds", "structure"),
    [
        (StructureBounds(max_bytes=100), {"json": record(20)}),
        (StructureBounds(max_depth=3), {"json": nested(3)}),
        (StructureBounds(max_choices=9), {"choice": list("abcdefghij")}),
        (StructureBounds(max_states=100), {"json": {"type": "array", "minItems": 101}}),
    ],
)
def test_each_bound_can_be_set(bounds: StructureBounds, structure: dict[str, Any]) -> None:
    states(structure)
    with pytest.raises(InvalidRequest):
        states(structure, bounds)


def test_bounds_apply_to_all_parts_together() -> None:
    part = {"type": "array", "items": {"type": "integer"}, "maxItems": 100_000}
    states({"json": part})
    with pytest.raises(InvalidRequest):
        states({"json": {"type": "object", "properties": {"a": part, "b": part}}})


class TestTools:
    HOSTILE = Function(name="bad", parameters={"properties": {"x": {"minItems": 2**31}}})
    FINE = Function(name="fine", parameters={"type": "object"})

    def steps(self, choice: Any, *functions: Function, all_tools: bool = False) -> None:
        chat = ChatOptions(tools=[Tool(function=function) for function in functions], tool_choice=choice)
        list(structure_steps(GenerateRequest(messages=[], chat=chat), BOUNDS, all_tools=all_tools))

    @pytest.mark.parametrize("choice", ["required", {"name": "bad"}])
    def test_parameters_that_are_compiled_are_checked(self, choice: Any) -> None:
        with pytest.raises(InvalidRequest, match=r"^tools\[1\]\.properties\.x: minItems") as raised:
            self.steps(choice, self.FINE, self.HOSTILE)
        assert raised.value.param == "tools"

    @pytest.mark.parametrize("choice", ["none", "auto", None, {"name": "fine"}])
    def test_parameters_that_are_not_compiled_are_not(self, choice: Any) -> None:
        self.steps(choice, self.FINE, self.HOSTILE)

    def test_strict_tools_are_compiled(self) -> None:
        strict = self.HOSTILE.model_copy(update={"strict": True})
        with pytest.raises(InvalidRequest):
            self.steps("auto", strict)
        with pytest.raises(InvalidRequest):
            self.steps("auto", self.HOSTILE, all_tools=True)


@pytest.mark.parametrize(
    ("text", "states"),
    [
        ("abc", 3),
        ("a{3}", 3),
        ("(ab){2,4}", 8),
        ("((a{10}){10}){10}", 1000),
        ("(a|bc)*", 3),
        ("[a-z]{5}", 5),
        ("[]a]{2}", 2),
        (r"\{3\}", 3),
        ("a{,5}", 5),
        ("a{2,}", 3),
        ("a{x}", 4),
        (".{10}", 40),
        (r"\p{Greek}{10}", 40),
        ("[^a]{10}", 40),
        (")", 1),
        ("(", 0),
        ("[", 1),
        ("\\", 1),
    ],
)
def test_the_states_of_an_expression(text: str, states: int) -> None:
    size = RegexSize()
    list(measure(text, size))
    assert size.states == states


@pytest.fixture
def frozen() -> None:
    """Take what exists out of the garbage collection, as processes do. It stays so, like the modules of the run."""
    gc.collect()
    gc.freeze()


@pytest.mark.parametrize(
    "structure",
    [
        {"json": {"anyOf": [[]] * 60_000}},
        {"json": {"enum": ["x"] * 4999 + ["y" * 60_000]}},
        {"json": {f"k{number}": {} for number in range(20_000)}},
        {"json": {"required": [str(number) for number in range(30_000)], "properties": {}}},
        {"json": api(300)},
        {"choice": ["a" * 50 + str(number) for number in range(5000)]},
        {"regex": "(((a|b)*c)?[a-z]){0,1}" * 8000},
        {"regex": "[" * 200_000},
        {"regex": "{" * 200_000},
        {"regex": "a{" * 100_000},
        {"regex": "\\p{" * 80_000},
        {"grammar": "root ::= a\n" * 20_000},
        {"grammar": "/a/" * 60_000},
        {"grammar": '"' * 200_000},
        {"structural_tag": json.dumps({"a": [{}] * 60_000})},
    ],
    ids=lambda structure: json.dumps(structure)[:40],
)
def test_no_step_blocks_the_event_loop(structure: dict[str, Any], frozen: None) -> None:
    """The largest inputs of each kind: the time of a step does not grow with them."""
    steps = structure_steps(request(structure), StructureBounds(max_states=10**15))
    longest = 0.0
    while True:
        began = time.thread_time()
        try:
            next(steps)
        except (StopIteration, InvalidRequest):
            break
        finally:
            longest = max(longest, time.thread_time() - began)
    assert longest <= MAX_STEP_MS / 1000
