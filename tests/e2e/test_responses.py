"""The Responses API on real processes, called by the official `openai` SDK."""

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
    """The type of a structured answer."""

    name: str
    length_km: int


@pytest.fixture
async def sdk(sim_stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{sim_stack.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


async def wait_for_end(sdk: openai.AsyncOpenAI, response_id: str) -> Response:
    async def probe() -> Response | None:
        found = await sdk.responses.retrieve(response_id)
        return None if found.status in ("queued", "in_progress") else found

    return await eventually(probe, f"{response_id} ends")


async def wait_until_running(sdk: openai.AsyncOpenAI, response_id: str) -> None:
    async def probe() -> bool:
        return (await sdk.responses.retrieve(response_id)).status == "in_progress"

    await eventually(probe, f"{response_id} is running")


async def events_of(sdk: openai.AsyncOpenAI, response_id: str, after: int | None = None) -> list[dict[str, Any]]:
    options: Any = {} if after is None else {"starting_after": after}
    stream = await sdk.responses.retrieve(response_id, stream=True, **options)
    return [event.to_dict() async for event in stream]


class TestComplete:
    async def test_text(self, sdk: openai.AsyncOpenAI) -> None:
        response = await sdk.responses.create(
            model="sim", input="the mill", max_output_tokens=9, instructions="Be brief.", metadata={"a": "b"}, user="me"
        )
        assert response.id.startswith("resp_")
        assert (response.status, response.error) == ("incomplete", None)
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens"
        assert response.output_text
        assert response.usage is not None
        assert (response.usage.output_tokens, response.usage.total_tokens) == (9, response.usage.input_tokens + 9)
        assert (response.instructions, response.metadata, response.user) == ("Be brief.", {"a": "b"}, "me")
        assert await sdk.responses.retrieve(response.id) == response

    def test_text_with_the_synchronous_client(self, sim_stack: Stack) -> None:
        with openai.OpenAI(base_url=f"{sim_stack.url}/v1", api_key=KEY, max_retries=0) as client:
            response = client.responses.create(
                model="sim", input=[{"role": "user", "content": "hi"}], max_output_tokens=5
            )
            kinds = [event.type for event in client.responses.retrieve(response.id, stream=True)]
        assert response.output_text
        assert (kinds[0], kinds[-1]) == ("response.created", "response.incomplete")

    async def test_parse(self, sdk: openai.AsyncOpenAI) -> None:
        response = await sdk.responses.parse(model="sim", input="A river.", text_format=River)
        assert response.status == "completed"
        assert isinstance(response.output_parsed, River)

    async def test_json_object(self, sdk: openai.AsyncOpenAI) -> None:
        response = await sdk.responses.create(model="sim", input="x", text={"format": {"type": "json_object"}})
        assert response.output_text.startswith("{")

    async def test_reasoning_is_an_item_before_the_answer(self, sdk: openai.AsyncOpenAI) -> None:
        response = await sdk.responses.create(
            model="sim", input="x", reasoning={"effort": "low"}, max_output_tokens=30, stream=False
        )
        assert [item.type for item in response.output] == ["reasoning", "message"]
        assert response.output[0].type == "reasoning"
        assert response.output[0].content
        assert response.usage is not None
        assert 0 < response.usage.output_tokens_details.reasoning_tokens < response.usage.output_tokens
        assert response.reasoning is not None
        assert response.reasoning.effort == "low"

    async def test_logprobs(self, sdk: openai.AsyncOpenAI) -> None:
        response = await sdk.responses.create(
            model="sim", input="x", max_output_tokens=4, include=["message.output_text.logprobs"], top_logprobs=2
        )
        (item,) = response.output
        assert item.type == "message"
        (part,) = item.content
        assert part.type == "output_text"
        assert part.logprobs
        assert len(part.logprobs) == 4
        assert all(len(entry.top_logprobs) == 2 for entry in part.logprobs)

    async def test_a_failed_job_raises_an_error(self, sdk: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.InternalServerError) as failed:
            await sdk.responses.create(model="sim", input=FAIL)
        assert failed.value.code == "engine_error"

    async def test_a_response_is_a_job(self, sdk: openai.AsyncOpenAI, sim: httpx.AsyncClient) -> None:
        response = await sdk.responses.with_raw_response.create(model="sim", input="x", max_output_tokens=3)
        job = (await sim.get(f"/v1/jobs/{response.headers['x-headrace-job-id']}")).json()
        assert job["output_text"] == response.parse().output_text
        assert job["id"].removeprefix("job_") == response.parse().id.removeprefix("resp_")


class TestStream:
    async def test_the_stream_equals_the_response(self, sdk: openai.AsyncOpenAI) -> None:
        stream = await sdk.responses.create(model="sim", input="the mill", max_output_tokens=30, stream=True)
        events = [event async for event in stream]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        last = events[-1]
        assert last.type == "response.incomplete"
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert text == last.response.output_text
        assert await sdk.responses.retrieve(last.response.id) == last.response
        # Later readers get identical events.
        assert await events_of(sdk, last.response.id) == [event.to_dict() for event in events]

    async def test_the_stream_helper(self, sdk: openai.AsyncOpenAI) -> None:
        async with sdk.responses.stream(model="sim", input="A river.", text_format=River) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.completed"
        assert isinstance(final.output_parsed, River)

    async def test_resuming_after_any_event_returns_the_remaining_events(self, sdk: openai.AsyncOpenAI) -> None:
        response = await sdk.responses.create(
            model="sim", input="x", max_output_tokens=12, background=True, reasoning={"effort": "low"}
        )
        complete = await events_of(sdk, response.id)
        assert [event["type"] for event in complete[:3]] == [
            "response.created",
            "response.queued",
            "response.in_progress",
        ]
        assert complete[-1]["type"] == "response.incomplete"
        for number in range(len(complete)):
            assert await events_of(sdk, response.id, number) == complete[number + 1 :]

    async def test_a_failure_is_the_last_event(self, sdk: openai.AsyncOpenAI) -> None:
        stream = await sdk.responses.create(model="sim", input=FAIL, stream=True)
        events = [event async for event in stream]
        last = events[-1]
        assert last.type == "response.failed"
        assert last.response.error is not None
        assert last.response.error.code == "server_error"

    async def test_a_disconnect_cancels_the_response(self, sdk: openai.AsyncOpenAI) -> None:
        stream = await sdk.responses.create(model="small", input="x", max_output_tokens=500, stream=True)
        first = await anext(aiter(stream))
        assert first.type == "response.created"
        await wait_until_running(sdk, first.response.id)
        await stream.close()
        assert (await wait_for_end(sdk, first.response.id)).status == "cancelled"


class TestBackground:
    async def test_it_returns_immediately_and_continues(self, sdk: openai.AsyncOpenAI) -> None:
        response = await sdk.responses.create(model="sim", input="x", max_output_tokens=20, background=True)
        assert (response.status, response.background, response.output) == ("queued", True, [])
        done = await wait_for_end(sdk, response.id)
        assert done.status == "incomplete"
        assert done.output_text

    async def test_it_continues_after_a_disconnect(self, sdk: openai.AsyncOpenAI) -> None:
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

    async def test_cancel_is_idempotent(self, sdk: openai.AsyncOpenAI) -> None:
        response = await sdk.responses.create(model="small", input="x", max_output_tokens=500, background=True)
        await wait_until_running(sdk, response.id)
        cancelled = await sdk.responses.cancel(response.id)
        assert cancelled.status == "cancelled"
        assert await sdk.responses.cancel(response.id) == cancelled
        last = (await events_of(sdk, response.id))[-1]
        assert (last["type"], last["response"]["status"]) == ("response.incomplete", "cancelled")

    async def test_cancel_while_queued(self, sdk: openai.AsyncOpenAI) -> None:
        response = await sdk.responses.create(model="orphan", input="x", background=True)
        assert (await sdk.responses.cancel(response.id)).status == "cancelled"

    async def test_a_foreground_response_cannot_be_cancelled(self, sdk: openai.AsyncOpenAI) -> None:
        response = await sdk.responses.create(model="sim", input="x", max_output_tokens=3)
        with pytest.raises(openai.BadRequestError, match="background"):
            await sdk.responses.cancel(response.id)


class TestConversations:
    async def test_a_tool_round_trip(self, sdk: openai.AsyncOpenAI) -> None:
        turns: list[Any] = [{"role": "user", "content": "How is the weather in Ulm?"}]
        calling = await sdk.responses.create(model="sim", input=turns, tools=[WEATHER])
        assert calling.status == "completed"
        (call,) = calling.output
        assert call.type == "function_call"
        assert call.name == "weather"
        turns += calling.output
        turns.append({"type": "function_call_output", "call_id": call.call_id, "output": '{"sky": "grey"}'})
        answer = await sdk.responses.create(model="sim", input=turns, tools=[WEATHER], max_output_tokens=9)
        assert [item.type for item in answer.output] == ["message"]
        # With previous_response_id, the engine gets the same conversation.
        chained = await sdk.responses.create(
            model="sim", input=turns[-1:], previous_response_id=calling.id, tools=[WEATHER], max_output_tokens=9
        )
        assert chained.previous_response_id == calling.id
        assert chained.output_text == answer.output_text

    async def test_parallel_calls_are_streamed(self, sdk: openai.AsyncOpenAI) -> None:
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

    async def test_tool_choice_of_a_named_tool_and_none(self, sdk: openai.AsyncOpenAI) -> None:
        named = await sdk.responses.create(
            model="sim", input="x", tools=[WEATHER, CLOCK], tool_choice={"type": "function", "name": "clock"}
        )
        assert [item.name for item in named.output if item.type == "function_call"] == ["clock"]
        none = await sdk.responses.create(
            model="sim", input="x", tools=[WEATHER], tool_choice="none", max_output_tokens=3
        )
        assert [item.type for item in none.output] == ["message"]

    async def test_a_chain_has_all_turns_and_only_its_own_instructions(
        self, sdk: openai.AsyncOpenAI, sim: httpx.AsyncClient
    ) -> None:
        options: Any = {"model": "sim", "max_output_tokens": 4}
        first = await sdk.responses.create(input="one", instructions="Be first.", **options)
        second = await sdk.responses.create(input="two", previous_response_id=first.id, **options)
        third = await sdk.responses.create(
            input="three", previous_response_id=second.id, instructions="Be third.", **options
        )
        # The simulated engine's answer depends on the entire conversation, so the explicit one gives the same answer.
        conversation: list[Any] = [
            {"role": "system", "content": "Be third."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "two"},
            {"role": "assistant", "content": second.output_text},
            {"role": "user", "content": "three"},
        ]
        full = await sdk.responses.create(input=conversation, **options)
        assert third.output_text == full.output_text
        assert third.usage is not None
        assert full.usage is not None
        assert third.usage.input_tokens == full.usage.input_tokens

    async def test_previous_response_must_be_finished_and_accessible(
        self, sdk: openai.AsyncOpenAI, sim_stack: Stack
    ) -> None:
        first = await sdk.responses.create(model="sim", input="one", max_output_tokens=3)
        queued = await sdk.responses.create(model="orphan", input="one", background=True)
        with pytest.raises(openai.BadRequestError, match="queued"):
            await sdk.responses.create(model="sim", input="two", previous_response_id=queued.id)
        await sdk.responses.cancel(queued.id)
        key = sim_stack.command("api.keys", "create", "stranger", "--project", "responses-stranger").stdout.strip()
        async with openai.AsyncOpenAI(base_url=f"{sim_stack.url}/v1", api_key=key, max_retries=0) as other_client:
            for call in (
                other_client.responses.create(model="sim", input="two", previous_response_id=first.id),
                other_client.responses.retrieve(first.id),
                other_client.responses.delete(first.id),
                other_client.responses.cancel(first.id),
            ):
                with pytest.raises(openai.NotFoundError):
                    await call
        await sdk.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError) as missing:
            await sdk.responses.create(model="sim", input="two", previous_response_id=first.id)
        assert missing.value.param == "previous_response_id"

    async def test_input_items_are_listed_by_page(self, sdk: openai.AsyncOpenAI) -> None:
        items_given: list[Any] = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "one"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "ok"},
        ]
        response = await sdk.responses.create(model="sim", input=items_given, max_output_tokens=3)
        items = [item async for item in sdk.responses.input_items.list(response.id, order="asc", limit=2)]
        assert [item.type for item in items] == [
            "message",
            "message",
            "reasoning",
            "function_call",
            "function_call_output",
        ]
        assert items[2].id == "rs_1"
        assert items[1].content[0].text == "one"  # type: ignore[union-attr,index]
        newest = await sdk.responses.input_items.list(response.id)
        assert [item.id for item in newest.data] == [item.id for item in reversed(items)]


class TestStorage:
    async def test_a_deleted_response_returns_404(self, sdk: openai.AsyncOpenAI, sim: httpx.AsyncClient) -> None:
        response = await sdk.responses.create(model="sim", input="x", max_output_tokens=3)
        await sdk.responses.delete(response.id)
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.retrieve(response.id)
        assert (await sim.get(f"/v1/jobs/{response.id.replace('resp', 'job')}")).status_code == 404

    async def test_an_unfinished_response_cannot_be_deleted(self, sdk: openai.AsyncOpenAI) -> None:
        response = await sdk.responses.create(model="orphan", input="x", background=True)
        with pytest.raises(openai.ConflictError):
            await sdk.responses.delete(response.id)
        await sdk.responses.cancel(response.id)

    async def test_a_response_that_is_not_stored_returns_404(self, sdk: openai.AsyncOpenAI) -> None:
        response = await sdk.responses.create(model="sim", input="x", max_output_tokens=3, store=False)
        assert response.output_text
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.retrieve(response.id)
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.create(model="sim", input="y", previous_response_id=response.id)

    async def test_a_job_of_another_api_is_not_a_response(
        self, sdk: openai.AsyncOpenAI, sim: httpx.AsyncClient
    ) -> None:
        job = (await sim.post("/v1/jobs", json={"model": "sim", "prompt": "x", "max_tokens": 2})).json()
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.retrieve(job["id"].replace("job_", "resp_"))

    async def test_an_idempotency_key_returns_the_same_response(self, sdk: openai.AsyncOpenAI) -> None:
        params: Any = {
            "model": "sim",
            "input": "x",
            "max_output_tokens": 3,
            "extra_headers": {"Idempotency-Key": "responses-once"},
        }
        one, other = await asyncio.gather(sdk.responses.create(**params), sdk.responses.create(**params))
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
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"reasoning": {"effort": "great"}}, "reasoning.effort"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
    ({"background": True, "store": False}, "store"),
    ({"stream_options": {"include_usage": True, "include_obfuscation": False}}, "stream_options"),
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


@pytest.mark.parametrize(("invalid", "param"), BAD)
async def test_invalid_and_unsupported_parameters_are_rejected_by_name(
    sim: httpx.AsyncClient, invalid: dict[str, Any], param: str
) -> None:
    answer = await sim.post("/v1/responses", json={"model": "sim", "input": "x", **invalid})
    assert answer.status_code == (404 if param in ("previous_response_id", "model") else 400), answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["message"]


@pytest.mark.parametrize(
    "invalid",
    [
        {"input": "\ud800"},
        {"instructions": "\ud800"},
        {"input": [{"role": "user", "content": "x", "id": "\ud800"}]},
        {"tools": [{**WEATHER, "parameters": {"a": "\ud800"}}]},
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"const": 2**70}}}},
    ],
)
async def test_values_that_cannot_be_stored_are_rejected(sim: httpx.AsyncClient, invalid: dict[str, Any]) -> None:
    content = json.dumps({"model": "sim", "input": "x", **invalid})  # escapes surrogates
    answer = await sim.post("/v1/responses", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text


async def test_a_cursor_requires_a_stream(sdk: openai.AsyncOpenAI, sim: httpx.AsyncClient) -> None:
    response = await sdk.responses.create(model="sim", input="x\0", max_output_tokens=3)
    for params, param in (
        ({"starting_after": 3}, "starting_after"),
        ({"stream": True, "starting_after": -1}, "starting_after"),
    ):
        answer = await sim.get(f"/v1/responses/{response.id}", params=params)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    answer = await sim.get(f"/v1/responses/{response.id}/input_items", params={"after": "nobody"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "after")
