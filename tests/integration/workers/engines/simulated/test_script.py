"""Tool calls, reasoning, structured outputs and logprobs of the simulated engine; resuming at any token."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any

import pytest

from shared.config.models.simulated import SimulatedModel, SimulatedOptions
from shared.domain.errors import InvalidRequest
from shared.domain.events import Delta
from shared.domain.job import Choice
from shared.domain.request import ChatOptions, Function, GenerateRequest, Message, Sampling, StructuredOutputs, Tool
from tests.support.transcripts import choices_of, entries_of
from workers.engines.base import Prior, PromptInfo
from workers.engines.simulated.engine import SimulatedEngine

CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
TOOLS = [
    Tool(function=Function(name="weather", description="The weather", parameters=CITY)),
    Tool(function=Function(name="tide")),
]
PROMPT = [Message(role="user", content="What is the weather by the mill?")]


def engine() -> SimulatedEngine:
    """An engine without delays, which returns one token per step."""
    return SimulatedEngine(SimulatedModel(name="m", engine="simulated", options=SimulatedOptions(ttft_ms=0, itl_ms=0)))


def request(chat: dict[str, Any] | None = None, messages: list[Message] = PROMPT, **fields: Any) -> GenerateRequest:
    sampling = fields.pop("sampling", Sampling(max_tokens=64))
    options = None if chat is None else ChatOptions(**chat)
    return GenerateRequest(messages=messages, chat=options, sampling=sampling, **fields)


async def generate(request: GenerateRequest, prior: list[Delta] | None = None) -> list[Delta]:
    async with aclosing(engine().generate("r", request, Prior(prior or []))) as items:
        first, *rest = [item async for item in items]
    assert isinstance(first, PromptInfo)
    return [item for item in rest if isinstance(item, Delta)]


async def answer(request: GenerateRequest) -> Choice:
    (choice,) = choices_of(await generate(request))
    return choice


@pytest.mark.parametrize("tool_choice", [None, "auto", "required", {"name": "weather"}])
async def test_tool_call(tool_choice: Any) -> None:
    choice = await answer(request({"tools": TOOLS[:1], "tool_choice": tool_choice}))
    assert choice.finish_reason == "tool_calls"
    assert choice.text == ""
    (call,) = choice.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "water"})
    assert call.id.startswith("call_")


async def test_named_tool_is_called() -> None:
    choice = await answer(request({"tools": TOOLS, "tool_choice": {"name": "tide"}}))
    assert [(call.name, call.arguments) for call in choice.tool_calls] == [("tide", "{}")]


@pytest.mark.parametrize(("parallel", "calls"), [(True, ["weather", "tide"]), (False, ["weather"])])
async def test_parallel_tool_calls(parallel: bool, calls: list[str]) -> None:
    choice = await answer(request({"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": parallel}))
    assert [call.name for call in choice.tool_calls] == calls
    assert len({call.id for call in choice.tool_calls}) == len(calls)


async def test_arguments_are_streamed_in_fragments() -> None:
    deltas = await generate(request({"tools": TOOLS, "tool_choice": "required"}))
    first = [delta.tool_calls[0] for delta in deltas if delta.tool_calls[0].index == 0]
    assert first[0].name == "weather"
    assert len(first) > 2
    assert all(fragment.id is None and fragment.name is None for fragment in first[1:])
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)


@pytest.mark.parametrize("tool_choice", ["none", "auto", None])
async def test_text_if_no_tool_is_to_be_called(tool_choice: str | None) -> None:
    messages = PROMPT if tool_choice == "none" else [*PROMPT, Message(role="tool", content="rain", tool_call_id="c")]
    choice = await answer(request({"tools": TOOLS, "tool_choice": tool_choice}, messages))
    assert choice.finish_reason == "length"
    assert choice.text
    assert not choice.tool_calls


async def test_reasoning_precedes_the_text() -> None:
    choice = await answer(request({"reasoning_effort": "low"}))
    assert (choice.reasoning, choice.finish_reason) == ("The wheel asks for water.", "length")
    assert choice.text
    assert (await answer(request({"reasoning_effort": "none"}))).reasoning is None
    assert (await answer(request({"reasoning_effort": "low", "include_reasoning": False}))).reasoning is None


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ({"json_schema": CITY}, '{"city":"water"}'),
        ({"json_object": True}, "{}"),
        ({"choice": ["left", "right"]}, "left"),
        ({"choice": ["", "right"]}, ""),
    ],
)
async def test_structured_outputs(output: dict[str, Any], text: str) -> None:
    choice = await answer(request(structured_outputs=StructuredOutputs(**output)))
    assert (choice.text, choice.finish_reason) == (text, "stop")


async def test_max_tokens_truncates_a_call() -> None:
    deltas = await generate(request({"tools": TOOLS, "tool_choice": "required"}, sampling=Sampling(max_tokens=3)))
    assert len(deltas) == 3
    assert deltas[-1].finish_reason == "length"


async def test_one_logprobs_entry_per_token_and_deterministic() -> None:
    sent = request({"reasoning_effort": "low"}, logprobs=2)
    deltas = await generate(sent)
    assert all(len(delta.logprobs) == delta.tokens for delta in deltas)
    entries = [entry for delta in deltas for entry in entries_of(delta)]
    assert len(entries) == 64
    assert all(entry["logprob"] < 0 and len(entry["top"]) == 2 for entry in entries)
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode().startswith("The wheel asks for water.")
    assert deltas == await generate(sent)


async def test_echo() -> None:
    sent = GenerateRequest(prompt="Once upon a time", echo=True, logprobs=0, sampling=Sampling(max_tokens=4))
    deltas = await generate(sent)
    assert (deltas[0].text, deltas[0].tokens) == ("Once upon a time", 0)
    assert [entry["token"] for entry in entries_of(deltas[0])] == ["Once", " upon", " a", " time"]
    assert entries_of(deltas[0])[0]["logprob"] is None
    assert sum(delta.tokens for delta in deltas) == 4


RESUMED = {
    "calls": request({"tools": TOOLS, "tool_choice": "required", "reasoning_effort": "high"}, logprobs=1),
    "reasoning and text": request({"reasoning_effort": "high"}, logprobs=0),
    "schema": request(structured_outputs=StructuredOutputs(json_schema=CITY)),
    "echo": GenerateRequest(prompt="Once upon a time", echo=True, logprobs=1, sampling=Sampling(max_tokens=24)),
}


@pytest.mark.parametrize("name", RESUMED)
async def test_resume_at_any_token(name: str) -> None:
    sent = RESUMED[name]
    deltas = await generate(sent)
    for cut in range(1, len(deltas)):
        rest = await generate(sent, deltas[:cut])
        assert choices_of([*deltas[:cut], *rest]) == choices_of(deltas), f"interrupted after {cut} deltas"


async def test_unsupported_requests_are_refused() -> None:
    lost = Tool(function=Function(name="f", parameters={"$ref": "#/$defs/lost"}))
    for sent, param in (
        (request({"tools": TOOLS, "tool_choice": {"name": "lost"}}), "tool_choice"),
        (request({"tools": [lost], "tool_choice": "required"}), "tools"),
        (request(structured_outputs=StructuredOutputs(regex="a+")), "structured_outputs"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            await generate(sent)
        assert caught.value.param == param


@pytest.mark.parametrize("stop", [(), ("never again",)], ids=["free", "with a stop string"])
@pytest.mark.parametrize(("max_tokens", "tokens", "reason"), [(None, 7, "stop"), (64, 7, "stop"), (5, 5, "length")])
async def test_an_answer_ends_by_itself(
    stop: tuple[str, ...], max_tokens: int | None, tokens: int, reason: str
) -> None:
    options = SimulatedOptions(ttft_ms=0, itl_ms=0, stop_after=7)
    engine = SimulatedEngine(SimulatedModel(name="m", engine="simulated", options=options))
    sampling = Sampling(max_tokens=max_tokens, stop=list(stop))
    async with aclosing(engine.generate("r", request(sampling=sampling))) as items:
        deltas = [item async for item in items if isinstance(item, Delta)]
    assert sum(len(delta.token_ids) for delta in deltas) == tokens
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == [reason]
