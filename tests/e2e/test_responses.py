"""The Responses API over real processes, asked by the official `openai` SDK."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from tests.e2e.conftest import FAIL
from tests.support.stack import KEY, Stack
from tests.support.waiting import eventually

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
CLOCK: Any = {**WEATHER, "name": "clock"}


class River(BaseModel):
    """What a structured answer is parsed into."""

    name: str
    length_km: int


@pytest.fixture
async def sdk(sim_stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{sim_stack.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


async def ended(sdk: openai.AsyncOpenAI, response_id: str) -> Response:
    async def probe() -> Response | None:
        found = await sdk.responses.retrieve(response_id)
        return None if found.status in ("queued", "in_progress") else found

    return await eventually(probe, f"{response_id} ends")


async def running(sdk: openai.AsyncOpenAI, response_id: str) -> None:
    async def probe() -> bool:
        return (await sdk.responses.retrieve(response_id)).status == "in_progress"

    await eventually(probe, f"{response_id} runs")


async def events_of(sdk: openai.AsyncOpenAI, response_id: str, after: int | None = None) -> list[dict[str, Any]]:
    options: Any = {} if after is None else {"starting_after": after}
    stream = await sdk.responses.retrieve(response_id, stream=True, **options)
    return [event.to_dict() async for event in stream]


class TestWhole:
    async def test_a_text(self, sdk: openai.AsyncOpenAI) -> None:
        made = await sdk.responses.create(
            model="sim", input="the mill", max_output_tokens=9, instructions="Be brief.", metadata={"a": "b"}, user="me"
        )
        assert made.id.startswith("resp_")
        assert (made.status, made.error) == ("incomplete", None)
        assert made.incomplete_details is not None
        assert made.incomplete_details.reason == "max_output_tokens"
        assert made.output_text
        assert made.usage is not None
        assert (made.usage.output_tokens, made.usage.total_tokens) == (9, made.usage.input_tokens + 9)
        assert (made.instructions, made.metadata, made.user) == ("Be brief.", {"a": "b"}, "me")
        assert await sdk.responses.retrieve(made.id) == made

    def test_a_text_with_the_synchronous_client(self, sim_stack: Stack) -> None:
        with openai.OpenAI(base_url=f"{sim_stack.url}/v1", api_key=KEY, max_retries=0) as client:
            made = client.responses.create(model="sim", input=[{"role": "user", "content": "hi"}], max_output_tokens=5)
            kinds = [event.type for event in client.responses.retrieve(made.id, stream=True)]
        assert made.output_text
        assert (kinds[0], kinds[-1]) == ("response.created", "response.incomplete")

    async def test_parsed_into_a_model(self, sdk: openai.AsyncOpenAI) -> None:
        made = await sdk.responses.parse(model="sim", input="A river.", text_format=River)
        assert made.status == "completed"
        assert isinstance(made.output_parsed, River)

    async def test_a_json_object(self, sdk: openai.AsyncOpenAI) -> None:
        made = await sdk.responses.create(model="sim", input="x", text={"format": {"type": "json_object"}})
        assert made.output_text.startswith("{")

    async def test_reasoning_is_an_item_before_the_answer(self, sdk: openai.AsyncOpenAI) -> None:
        made = await sdk.responses.create(
            model="sim", input="x", reasoning={"effort": "low"}, max_output_tokens=30, stream=False
        )
        assert [item.type for item in made.output] == ["reasoning", "message"]
        assert made.output[0].type == "reasoning"
        assert made.output[0].content
        assert made.usage is not None
        assert 0 < made.usage.output_tokens_details.reasoning_tokens < made.usage.output_tokens
        assert made.reasoning is not None
        assert made.reasoning.effort == "low"

    async def test_logprobs(self, sdk: openai.AsyncOpenAI) -> None:
        made = await sdk.responses.create(
            model="sim", input="x", max_output_tokens=4, include=["message.output_text.logprobs"], top_logprobs=2
        )
        (item,) = made.output
        assert item.type == "message"
        (part,) = item.content
        assert part.type == "output_text"
        assert part.logprobs
        assert len(part.logprobs) == 4
        assert all(len(entry.top_logprobs) == 2 for entry in part.logprobs)

    async def test_a_job_that_fails_is_an_error(self, sdk: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.InternalServerError) as failed:
            await sdk.responses.create(model="sim", input=FAIL)
        assert failed.value.code == "engine_error"

    async def test_it_is_a_job(self, sdk: openai.AsyncOpenAI, sim: httpx.AsyncClient) -> None:
        made = await sdk.responses.with_raw_response.create(model="sim", input="x", max_output_tokens=3)
        job = (await sim.get(f"/v1/jobs/{made.headers['x-headrace-job-id']}")).json()
        assert job["output_text"] == made.parse().output_text
        assert job["id"].removeprefix("job_") == made.parse().id.removeprefix("resp_")


class TestStream:
    async def test_it_is_the_response(self, sdk: openai.AsyncOpenAI) -> None:
        stream = await sdk.responses.create(model="sim", input="the mill", max_output_tokens=30, stream=True)
        events = [event async for event in stream]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        last = events[-1]
        assert last.type == "response.incomplete"
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert text == last.response.output_text
        assert await sdk.responses.retrieve(last.response.id) == last.response
        # Every later reader gets the same, byte for byte and number for number.
        assert await events_of(sdk, last.response.id) == [event.to_dict() for event in events]

    async def test_the_helper(self, sdk: openai.AsyncOpenAI) -> None:
        async with sdk.responses.stream(model="sim", input="A river.", text_format=River) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.completed"
        assert isinstance(final.output_parsed, River)

    async def test_resuming_after_every_event_gives_the_rest(self, sdk: openai.AsyncOpenAI) -> None:
        made = await sdk.responses.create(
            model="sim", input="x", max_output_tokens=12, background=True, reasoning={"effort": "low"}
        )
        whole = await events_of(sdk, made.id)
        assert [event["type"] for event in whole[:3]] == [
            "response.created",
            "response.queued",
            "response.in_progress",
        ]
        assert whole[-1]["type"] == "response.incomplete"
        for number in range(len(whole)):
            assert await events_of(sdk, made.id, number) == whole[number + 1 :]

    async def test_a_failure_is_the_last_event(self, sdk: openai.AsyncOpenAI) -> None:
        stream = await sdk.responses.create(model="sim", input=FAIL, stream=True)
        events = [event async for event in stream]
        last = events[-1]
        assert last.type == "response.failed"
        assert last.response.error is not None
        assert last.response.error.code == "server_error"

    async def test_who_leaves_cancels(self, sdk: openai.AsyncOpenAI) -> None:
        stream = await sdk.responses.create(model="small", input="x", max_output_tokens=500, stream=True)
        first = await anext(aiter(stream))
        assert first.type == "response.created"
        await running(sdk, first.response.id)
        await stream.close()
        assert (await ended(sdk, first.response.id)).status == "cancelled"


class TestBackground:
    async def test_it_is_answered_at_once_and_goes_on(self, sdk: openai.AsyncOpenAI) -> None:
        made = await sdk.responses.create(model="sim", input="x", max_output_tokens=20, background=True)
        assert (made.status, made.background, made.output) == ("queued", True, [])
        done = await ended(sdk, made.id)
        assert done.status == "incomplete"
        assert done.output_text

    async def test_it_goes_on_when_its_reader_leaves(self, sdk: openai.AsyncOpenAI) -> None:
        stream = await sdk.responses.create(model="sim", input="x", max_output_tokens=100, background=True, stream=True)
        seen: list[dict[str, Any]] = []
        async for event in stream:
            seen.append(event.to_dict())
            if len(seen) == 12:
                break
        await stream.close()
        response_id = seen[0]["response"]["id"]
        seen += await events_of(sdk, response_id, seen[-1]["sequence_number"])
        assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
        text = "".join(event["delta"] for event in seen if event["type"] == "response.output_text.delta")
        done = await sdk.responses.retrieve(response_id)
        assert (done.status, done.output_text) == ("incomplete", text)

    async def test_cancel_and_cancel_again(self, sdk: openai.AsyncOpenAI) -> None:
        made = await sdk.responses.create(model="small", input="x", max_output_tokens=500, background=True)
        await running(sdk, made.id)
        cancelled = await sdk.responses.cancel(made.id)
        assert cancelled.status == "cancelled"
        assert await sdk.responses.cancel(made.id) == cancelled
        last = (await events_of(sdk, made.id))[-1]
        assert (last["type"], last["response"]["status"]) == ("response.incomplete", "cancelled")

    async def test_cancel_while_it_waits(self, sdk: openai.AsyncOpenAI) -> None:
        made = await sdk.responses.create(model="orphan", input="x", background=True)
        assert (await sdk.responses.cancel(made.id)).status == "cancelled"

    async def test_what_somebody_waits_for_is_not_cancelled_so(self, sdk: openai.AsyncOpenAI) -> None:
        made = await sdk.responses.create(model="sim", input="x", max_output_tokens=3)
        with pytest.raises(openai.BadRequestError, match="background"):
            await sdk.responses.cancel(made.id)


class TestConversations:
    async def test_a_round_trip_through_a_tool(self, sdk: openai.AsyncOpenAI) -> None:
        turns: list[Any] = [{"role": "user", "content": "How is the weather in Ulm?"}]
        called = await sdk.responses.create(model="sim", input=turns, tools=[WEATHER])
        assert called.status == "completed"
        (call,) = called.output
        assert call.type == "function_call"
        assert call.name == "weather"
        turns += called.output
        turns.append({"type": "function_call_output", "call_id": call.call_id, "output": '{"sky": "grey"}'})
        answer = await sdk.responses.create(model="sim", input=turns, tools=[WEATHER], max_output_tokens=9)
        assert [item.type for item in answer.output] == ["message"]
        # The same by reference to the response that has the call: the engine sees the same conversation.
        chained = await sdk.responses.create(
            model="sim", input=turns[-1:], previous_response_id=called.id, tools=[WEATHER], max_output_tokens=9
        )
        assert chained.previous_response_id == called.id
        assert chained.output_text == answer.output_text

    async def test_two_calls_at_once_are_streamed(self, sdk: openai.AsyncOpenAI) -> None:
        async with sdk.responses.stream(
            model="sim", input="x", tools=[WEATHER, CLOCK], tool_choice="required"
        ) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_response()
        calls = [item for item in final.output if item.type == "function_call"]
        assert [call.name for call in calls] == ["weather", "clock"]
        for call in calls:
            own = [event for event in events if getattr(event, "item_id", None) == call.id]
            deltas = [event.delta for event in own if event.type == "response.function_call_arguments.delta"]
            assert "".join(deltas) == call.arguments
            assert call.parsed_arguments is not None

    async def test_a_named_tool_and_none(self, sdk: openai.AsyncOpenAI) -> None:
        named = await sdk.responses.create(
            model="sim", input="x", tools=[WEATHER, CLOCK], tool_choice={"type": "function", "name": "clock"}
        )
        assert [item.name for item in named.output if item.type == "function_call"] == ["clock"]
        none = await sdk.responses.create(
            model="sim", input="x", tools=[WEATHER], tool_choice="none", max_output_tokens=3
        )
        assert [item.type for item in none.output] == ["message"]

    async def test_a_chain_has_all_turns_and_its_own_instructions(
        self, sdk: openai.AsyncOpenAI, sim: httpx.AsyncClient
    ) -> None:
        options: Any = {"model": "sim", "max_output_tokens": 4}
        first = await sdk.responses.create(input="one", instructions="Be first.", **options)
        second = await sdk.responses.create(input="two", previous_response_id=first.id, **options)
        third = await sdk.responses.create(
            input="three", previous_response_id=second.id, instructions="Be third.", **options
        )
        # The engine's answer follows from the whole conversation: said in full, it is the same.
        said: list[Any] = [
            {"role": "system", "content": "Be third."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "two"},
            {"role": "assistant", "content": second.output_text},
            {"role": "user", "content": "three"},
        ]
        full = await sdk.responses.create(input=said, **options)
        assert third.output_text == full.output_text
        assert third.usage is not None
        assert full.usage is not None
        assert third.usage.input_tokens == full.usage.input_tokens

    async def test_only_an_answer_can_be_gone_on_from(self, sdk: openai.AsyncOpenAI, sim_stack: Stack) -> None:
        first = await sdk.responses.create(model="sim", input="one", max_output_tokens=3)
        waiting = await sdk.responses.create(model="orphan", input="one", background=True)
        with pytest.raises(openai.BadRequestError, match="queued"):
            await sdk.responses.create(model="sim", input="two", previous_response_id=waiting.id)
        await sdk.responses.cancel(waiting.id)
        key = sim_stack.command("api.keys", "create", "stranger").stdout.strip()
        async with openai.AsyncOpenAI(base_url=f"{sim_stack.url}/v1", api_key=key, max_retries=0) as stranger:
            for call in (
                stranger.responses.create(model="sim", input="two", previous_response_id=first.id),
                stranger.responses.retrieve(first.id),
                stranger.responses.delete(first.id),
                stranger.responses.cancel(first.id),
            ):
                with pytest.raises(openai.NotFoundError):
                    await call
        await sdk.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError) as missing:
            await sdk.responses.create(model="sim", input="two", previous_response_id=first.id)
        assert missing.value.param == "previous_response_id"

    async def test_input_items_in_pages(self, sdk: openai.AsyncOpenAI) -> None:
        given: list[Any] = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "one"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "ok"},
        ]
        made = await sdk.responses.create(model="sim", input=given, max_output_tokens=3)
        items = [item async for item in sdk.responses.input_items.list(made.id, order="asc", limit=2)]
        assert [item.type for item in items] == [
            "message",
            "message",
            "reasoning",
            "function_call",
            "function_call_output",
        ]
        assert items[2].id == "rs_1"
        assert items[1].content[0].text == "one"  # type: ignore[union-attr,index]
        newest = await sdk.responses.input_items.list(made.id)
        assert [item.id for item in newest.data] == [item.id for item in reversed(items)]


class TestKeeping:
    async def test_deleted_is_gone(self, sdk: openai.AsyncOpenAI, sim: httpx.AsyncClient) -> None:
        made = await sdk.responses.create(model="sim", input="x", max_output_tokens=3)
        await sdk.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.retrieve(made.id)
        assert (await sim.get(f"/v1/jobs/{made.id.replace('resp', 'job')}")).status_code == 404

    async def test_what_runs_is_not_deleted(self, sdk: openai.AsyncOpenAI) -> None:
        made = await sdk.responses.create(model="orphan", input="x", background=True)
        with pytest.raises(openai.ConflictError):
            await sdk.responses.delete(made.id)
        await sdk.responses.cancel(made.id)

    async def test_what_is_not_stored_cannot_be_asked_for(self, sdk: openai.AsyncOpenAI) -> None:
        made = await sdk.responses.create(model="sim", input="x", max_output_tokens=3, store=False)
        assert made.output_text
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.retrieve(made.id)
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.create(model="sim", input="y", previous_response_id=made.id)

    async def test_a_job_that_is_no_response(self, sdk: openai.AsyncOpenAI, sim: httpx.AsyncClient) -> None:
        job = (await sim.post("/v1/jobs", json={"model": "sim", "prompt": "x", "max_tokens": 2})).json()
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.retrieve(job["id"].replace("job_", "resp_"))

    async def test_an_idempotency_key_gives_the_same_response(self, sdk: openai.AsyncOpenAI) -> None:
        asked: Any = {
            "model": "sim",
            "input": "x",
            "max_output_tokens": 3,
            "extra_headers": {"Idempotency-Key": "responses-once"},
        }
        one, other = await asyncio.gather(sdk.responses.create(**asked), sdk.responses.create(**asked))
        assert one == other


BAD: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ({"tools": [WEATHER, WEATHER]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
    ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"max_tool_calls": 3}, "max_tool_calls"),
    ({"truncation": "auto"}, "truncation"),
    ({"include": ["reasoning.encrypted_content"]}, "include[0]"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
    ({"reasoning": {"effort": "great"}}, "reasoning.effort"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
    ({"background": True, "store": False}, "store"),
    ({"stream_options": {}}, "stream_options"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 1_000_000}, "max_output_tokens"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"input": []}, "input"),
    ({"input": 7}, "input"),
    ({"input": ["x"]}, "input[0]"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
    ({"input": [{"type": "function_call_output", "call_id": "nobody", "output": "x"}]}, "input"),
    (
        {"input": [{"role": "user", "content": "x", "id": "a"}, {"role": "user", "content": "y", "id": "a"}]},
        "input[1].id",
    ),
    ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]}, "input[0].encrypted_content"),
    ({"input": "word " * 5000}, "input"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"model": "nobody"}, "model"),
]


@pytest.mark.parametrize(("wrong", "param"), BAD)
async def test_what_is_not_supported_is_named(sim: httpx.AsyncClient, wrong: dict[str, Any], param: str) -> None:
    answer = await sim.post("/v1/responses", json={"model": "sim", "input": "x", **wrong})
    assert answer.status_code == (404 if param in ("previous_response_id", "model") else 400), answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["message"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"input": "\ud800"},
        {"instructions": "\ud800"},
        {"input": [{"role": "user", "content": "x", "id": "\ud800"}]},
        {"tools": [{**WEATHER, "parameters": {"a": "\ud800"}}]},
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"const": 2**70}}}},
    ],
)
async def test_what_cannot_be_kept_is_refused(sim: httpx.AsyncClient, wrong: dict[str, Any]) -> None:
    content = json.dumps({"model": "sim", "input": "x", **wrong})  # which escapes what is no text
    answer = await sim.post("/v1/responses", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text


async def test_a_cursor_needs_a_stream(sdk: openai.AsyncOpenAI, sim: httpx.AsyncClient) -> None:
    made = await sdk.responses.create(model="sim", input="x\0", max_output_tokens=3)
    for params, param in (
        ({"starting_after": 3}, "starting_after"),
        ({"stream": True, "starting_after": -1}, "starting_after"),
    ):
        answer = await sim.get(f"/v1/responses/{made.id}", params=params)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    answer = await sim.get(f"/v1/responses/{made.id}/input_items", params={"after": "nobody"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "after")
