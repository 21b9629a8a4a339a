"""What the simulated engine answers beside text: always the same, and gone on with wherever it was cut."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any

import pytest

from shared.config.models.simulated import SimulatedModel, SimulatedOptions
from shared.domain.errors import InvalidRequest
from shared.domain.events import Delta, delta_event
from shared.domain.job import Choice
from shared.domain.request import ChatOptions, Function, GenerateRequest, Message, Sampling, StructuredOutputs, Tool
from shared.domain.transcript import Transcript
from workers.engines.base import PromptInfo
from workers.engines.simulated.engine import SimulatedEngine

CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
TOOLS = [
    Tool(function=Function(name="weather", description="The weather", parameters=CITY)),
    Tool(function=Function(name="tide")),
]
ASKED = [Message(role="user", content="What is the weather by the mill?")]


def engine() -> SimulatedEngine:
    """An engine that makes one token a step, as fast as it can."""
    return SimulatedEngine(SimulatedModel(name="m", engine="simulated", options=SimulatedOptions(ttft_ms=0, itl_ms=0)))


def request(chat: dict[str, Any] | None = None, messages: list[Message] = ASKED, **fields: Any) -> GenerateRequest:
    sampling = fields.pop("sampling", Sampling(max_tokens=64))
    options = None if chat is None else ChatOptions(**chat)
    return GenerateRequest(messages=messages, chat=options, sampling=sampling, **fields)


async def deltas(of: GenerateRequest, prior: list[Delta] | None = None) -> list[Delta]:
    async with aclosing(engine().generate("r", of, prior or [])) as items:
        first, *rest = [item async for item in items]
    assert isinstance(first, PromptInfo)
    return [item for item in rest if isinstance(item, Delta)]


def whole(made: list[Delta], choices: int = 1) -> tuple[Choice, ...]:
    """As a log keeps it and a reader adds it up."""
    return Transcript.of([delta_event(seq, delta) for seq, delta in enumerate(made, 1)], choices).choices()


async def answer(of: GenerateRequest) -> Choice:
    (choice,) = whole(await deltas(of))
    return choice


@pytest.mark.parametrize("tool_choice", [None, "auto", "required", {"name": "weather"}])
async def test_a_tool_is_called(tool_choice: Any) -> None:
    choice = await answer(request({"tools": TOOLS[:1], "tool_choice": tool_choice}))
    assert choice.finish_reason == "tool_calls"
    assert choice.text == ""
    (call,) = choice.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "water"})
    assert call.id.startswith("call_")


async def test_the_named_tool_is_called() -> None:
    choice = await answer(request({"tools": TOOLS, "tool_choice": {"name": "tide"}}))
    assert [(call.name, call.arguments) for call in choice.tool_calls] == [("tide", "{}")]


@pytest.mark.parametrize(("parallel", "calls"), [(True, ["weather", "tide"]), (False, ["weather"])])
async def test_required_tools_are_called_side_by_side(parallel: bool, calls: list[str]) -> None:
    choice = await answer(request({"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": parallel}))
    assert [call.name for call in choice.tool_calls] == calls
    assert len({call.id for call in choice.tool_calls}) == len(calls)


async def test_arguments_come_in_fragments() -> None:
    made = await deltas(request({"tools": TOOLS, "tool_choice": "required"}))
    first = [delta.tool_calls[0] for delta in made if delta.tool_calls[0].index == 0]
    assert first[0].name == "weather"
    assert len(first) > 2
    assert all(fragment.id is None and fragment.name is None for fragment in first[1:])
    assert [delta.finish_reason for delta in made[:-1]] == [None] * (len(made) - 1)


@pytest.mark.parametrize("tool_choice", ["none", "auto", None])
async def test_text_where_no_call_is_due(tool_choice: str | None) -> None:
    messages = ASKED if tool_choice == "none" else [*ASKED, Message(role="tool", content="rain", tool_call_id="c")]
    choice = await answer(request({"tools": TOOLS, "tool_choice": tool_choice}, messages))
    assert choice.finish_reason == "length"
    assert choice.text
    assert not choice.tool_calls


async def test_reasoning_comes_before_the_text() -> None:
    choice = await answer(request({"reasoning_effort": "low"}))
    assert (choice.reasoning, choice.finish_reason) == ("The wheel asks for water.", "length")
    assert choice.text
    assert (await answer(request({"reasoning_effort": "none"}))).reasoning is None
    assert (await answer(request({"reasoning_effort": "low", "include_reasoning": False}))).reasoning is None


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"json_schema": CITY}, '{"city":"water"}'),
        ({"json_object": True}, "{}"),
        ({"choice": ["left", "right"]}, "left"),
        ({"choice": ["", "right"]}, ""),
    ],
)
async def test_structured_outputs(wanted: dict[str, Any], text: str) -> None:
    choice = await answer(request(structured_outputs=StructuredOutputs(**wanted)))
    assert (choice.text, choice.finish_reason) == (text, "stop")


async def test_max_tokens_cuts_a_call() -> None:
    made = await deltas(request({"tools": TOOLS, "tool_choice": "required"}, sampling=Sampling(max_tokens=3)))
    assert len(made) == 3
    assert made[-1].finish_reason == "length"


async def test_logprobs_are_one_a_token_and_always_the_same() -> None:
    asked = request({"reasoning_effort": "low"}, logprobs=2)
    made = await deltas(asked)
    assert all(len(delta.logprobs) == delta.tokens for delta in made)
    entries = [entry for delta in made for entry in delta.logprobs]
    assert len(entries) == 64
    assert all(entry["logprob"] < 0 and len(entry["top"]) == 2 for entry in entries)
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode().startswith("The wheel asks for water.")
    assert made == await deltas(asked)


async def test_echo_is_the_prompt_before_the_output() -> None:
    asked = GenerateRequest(prompt="Once upon a time", echo=True, logprobs=0, sampling=Sampling(max_tokens=4))
    made = await deltas(asked)
    assert (made[0].text, made[0].tokens) == ("Once upon a time", 0)
    assert [entry["token"] for entry in made[0].logprobs] == ["Once", " upon", " a", " time"]
    assert made[0].logprobs[0]["logprob"] is None
    assert sum(delta.tokens for delta in made) == 4


CUT = {
    "calls": request({"tools": TOOLS, "tool_choice": "required", "reasoning_effort": "high"}, logprobs=1),
    "reasoning and text": request({"reasoning_effort": "high"}, logprobs=0),
    "schema": request(structured_outputs=StructuredOutputs(json_schema=CITY)),
    "echo": GenerateRequest(prompt="Once upon a time", echo=True, logprobs=1, sampling=Sampling(max_tokens=24)),
}


@pytest.mark.parametrize("name", CUT)
async def test_what_was_cut_goes_on_as_if_uncut(name: str) -> None:
    asked = CUT[name]
    made = await deltas(asked)
    for cut in range(1, len(made)):
        assert whole([*made[:cut], *await deltas(asked, made[:cut])]) == whole(made), f"cut after {cut}"


async def test_what_cannot_be_made_is_refused() -> None:
    lost = Tool(function=Function(name="f", parameters={"$ref": "#/$defs/lost"}))
    for asked, param in (
        (request({"tools": TOOLS, "tool_choice": {"name": "lost"}}), "tool_choice"),
        (request({"tools": [lost], "tool_choice": "required"}), "tools"),
        (request(structured_outputs=StructuredOutputs(regex="a+")), "structured_outputs"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            await deltas(asked)
        assert caught.value.param == param
