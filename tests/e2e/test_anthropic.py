"""`/v1/messages` with the official `anthropic` SDK, over real processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import httpx
import pytest

from tests.conftest import Servers
from tests.e2e.conftest import FAIL, make_stack
from tests.e2e.test_jobs import wait_for_end
from tests.support.database import drop_database
from tests.support.stack import KEY, Stack

CONTEXT = 4096
HELLO: Any = [{"role": "user", "content": "How high is the water?"}]
TOOL: Any = {
    "name": "level",
    "description": "The level of a river.",
    "input_schema": {"type": "object", "properties": {"river": {"type": "string"}}, "required": ["river"]},
}
GATE: Any = {"name": "gate", "input_schema": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The API, a worker for `sim` and one for `quick`; the upstream of `up` cannot count tokens."""
    models: list[dict[str, object]] = [
        {
            "name": "sim",
            "engine": "simulated",
            "slots": 32,
            "options": {"ttft_ms": 5, "itl_ms": 5, "fail_on": FAIL, "max_model_len": CONTEXT},
        },
        {"name": "quick", "engine": "simulated", "options": {"ttft_ms": 5, "itl_ms": 0.2, "max_model_len": CONTEXT}},
        {
            "name": "up",
            "engine": "openai",
            "model": "theirs",
            "slots": 2,
            "options": {"base_url": "http://127.0.0.1:9/v1", "api_key_env": "UPSTREAM_API_KEY"},
        },
    ]
    stack = make_stack(
        servers,
        tmp_path_factory,
        "anthropic",
        models,
        HEADRACE_LEASE_S=2,
        HEADRACE_HEARTBEAT_S=0.5,
        HEADRACE_RESYNC_S=1,
    )
    try:
        stack.start_api()
        stack.start_worker("sim")
        stack.start_worker("quick")
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_anthropic")


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=stack.url, api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.client() as client:
        yield client


def contents(message: anthropic.types.Message) -> list[dict[str, object]]:
    """The blocks of a message, without signatures, which differ per job, and without null fields."""
    return [
        {name: value for name, value in block.to_dict().items() if value is not None and name != "signature"}
        for block in message.content
    ]


def text_in(message: anthropic.types.Message) -> str:
    """The text of the only block of a message."""
    (block,) = message.content
    assert block.type == "text"
    return block.text


async def test_a_message(client: anthropic.AsyncAnthropic) -> None:
    message = await client.messages.create(model="sim", max_tokens=12, messages=HELLO)
    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", "sim")
    (block,) = message.content
    assert block.type == "text"
    assert block.text
    assert (message.stop_reason, message.stop_sequence) == ("max_tokens", None)
    assert message.usage.output_tokens == 12
    assert message.usage.input_tokens == 7
    assert message._request_id


def test_the_synchronous_client(stack: Stack) -> None:
    with anthropic.Anthropic(base_url=stack.url, auth_token=KEY, max_retries=0) as client:
        message = client.messages.create(model="sim", max_tokens=12, messages=HELLO)
        assert message.usage.output_tokens == 12
        with client.messages.stream(model="sim", max_tokens=12, messages=HELLO) as stream:
            text = "".join(stream.text_stream)
            assert contents(stream.get_final_message()) == contents(message)
        assert message.content[0].type == "text"
        assert text == message.content[0].text


async def test_the_system_prompt_reaches_the_model(client: anthropic.AsyncAnthropic) -> None:
    async def text(**options: Any) -> tuple[str, int]:
        message = await client.messages.create(model="sim", max_tokens=12, messages=HELLO, **options)
        assert message.content[0].type == "text"
        return message.content[0].text, message.usage.input_tokens

    as_text = await text(system="You are a miller.")
    as_blocks = await text(
        system=[
            {"type": "text", "text": "You are "},
            {"type": "text", "text": "a miller.", "cache_control": {"type": "ephemeral"}},
        ]
    )
    assert as_text == as_blocks
    assert as_text[0] != (await text())[0]
    assert as_text[1] == 12


async def test_a_stream_equals_the_complete_message(client: anthropic.AsyncAnthropic) -> None:
    params: Any = {"model": "sim", "max_tokens": 40, "messages": HELLO}
    complete = await client.messages.create(**params)
    raw = [event async for event in await client.messages.create(**params, stream=True)]
    kinds = [event.type for event in raw]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert raw[0].type == "message_start"
    assert raw[0].message.id.startswith("msg_")
    assert raw[0].message.stop_reason is None
    async with client.messages.stream(**params) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert contents(final) == contents(complete)
    assert complete.content[0].type == "text"
    assert text == complete.content[0].text
    assert (final.stop_reason, final.usage.output_tokens, final.usage.input_tokens) == ("max_tokens", 40, 7)


async def test_a_stream_has_the_documented_frames(http: httpx.AsyncClient) -> None:
    body = {"model": "sim", "max_tokens": 3, "messages": HELLO, "stream": True}
    response = await http.post("/v1/messages", json=body, headers={"anthropic-version": "2023-06-01"})
    assert response.headers["content-type"].startswith("text/event-stream")
    frames = [frame.split("\n") for frame in response.text.split("\n\n") if frame and not frame.startswith(":")]
    for event, data in frames:
        assert data.startswith(f'data: {{"type":"{event.removeprefix("event: ")}"'), (event, data)
    assert [event for event, _ in frames[:3]] == ["event: message_start", "event: ping", "event: content_block_start"]


async def test_the_matched_stop_sequence_is_reported(client: anthropic.AsyncAnthropic) -> None:
    complete = await client.messages.create(model="sim", max_tokens=40, messages=HELLO)
    assert complete.content[0].type == "text"
    stop = complete.content[0].text[20:26]
    params: Any = {"model": "sim", "max_tokens": 40, "messages": HELLO, "stop_sequences": ["never there", stop]}
    truncated = await client.messages.create(**params)
    async with client.messages.stream(**params) as stream:
        streamed = await stream.get_final_message()
    for message in (truncated, streamed):
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
        assert text_in(message) == complete.content[0].text.partition(stop)[0]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_tool_round_trip(client: anthropic.AsyncAnthropic, streamed: bool) -> None:
    """The tool result is sent with the model's message, as the SDK represents it."""

    async def create(messages: Any, **options: Any) -> anthropic.types.Message:
        params: Any = {"model": "sim", "max_tokens": 400, "messages": messages, "tools": [TOOL, GATE], **options}
        if not streamed:
            message: anthropic.types.Message = await client.messages.create(**params)
            return message
        async with client.messages.stream(**params) as stream:
            return await stream.get_final_message()

    calling = await create(HELLO, tool_choice={"type": "any"})
    assert calling.stop_reason == "tool_use"
    calls = [block for block in calling.content if block.type == "tool_use"]
    assert [call.name for call in calls] == ["level", "gate"]
    assert isinstance(calls[0].input["river"], str)
    assert calls[1].input == {}
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "two metres"} for call in calls]
    answer = await create([*HELLO, calling.to_param(), {"role": "user", "content": results}])
    assert answer.stop_reason == "max_tokens"
    assert answer.content[0].type == "text"

    one = await create(HELLO, tool_choice={"type": "any", "disable_parallel_tool_use": True})
    assert [block.type for block in one.content] == ["tool_use"]
    named = await create(HELLO, tool_choice={"type": "tool", "name": "gate"})
    assert [block.name for block in named.content if block.type == "tool_use"] == ["gate"]
    none = await create(HELLO, tool_choice={"type": "none"})
    assert [block.type for block in none.content] == ["text"]


async def test_a_tool_call_truncated_by_max_tokens_is_marked_invalid(client: anthropic.AsyncAnthropic) -> None:
    truncated = await client.messages.create(
        model="sim", max_tokens=2, messages=HELLO, tools=[TOOL], tool_choice={"type": "tool", "name": "level"}
    )
    assert truncated.stop_reason == "max_tokens"
    (block,) = truncated.content
    assert block.type == "tool_use"
    assert list(block.input) == ["INVALID_JSON"]


async def test_thinking(client: anthropic.AsyncAnthropic) -> None:
    params: Any = {
        "model": "quick",
        "max_tokens": 2000,
        "messages": HELLO,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    complete = await client.messages.create(**params)
    async with client.messages.stream(**params) as stream:
        streamed = await stream.get_final_message()
    assert contents(streamed) == contents(complete)
    thinking, text = complete.content
    assert (thinking.type, text.type) == ("thinking", "text")
    assert thinking.thinking
    assert thinking.signature

    hidden = await client.messages.create(**{**params, "thinking": {**params["thinking"], "display": "omitted"}})
    assert [block.type for block in hidden.content] == ["thinking", "text"]
    assert hidden.content[0].type == "thinking"
    assert hidden.content[0].thinking == ""
    disabled = await client.messages.create(**{**params, "thinking": {"type": "disabled"}})
    assert [block.type for block in disabled.content] == ["text"]
    again = await client.messages.create(
        model="quick", max_tokens=5, messages=[*HELLO, complete.to_param(), {"role": "user", "content": "And now?"}]
    )
    assert again.usage.output_tokens == 5


async def test_structured_outputs(client: anthropic.AsyncAnthropic) -> None:
    message = await client.messages.create(
        model="sim",
        max_tokens=200,
        messages=HELLO,
        output_config={"format": {"type": "json_schema", "schema": TOOL["input_schema"]}},
    )
    assert message.stop_reason == "end_turn"
    assert message.content[0].type == "text"
    assert "river" in message.content[0].text


async def test_count_tokens_equals_the_usage(client: anthropic.AsyncAnthropic) -> None:
    counted = await client.messages.count_tokens(model="sim", system="You are a miller.", messages=HELLO)
    message = await client.messages.create(model="sim", max_tokens=1, system="You are a miller.", messages=HELLO)
    assert counted.input_tokens == message.usage.input_tokens


async def test_tokens_that_nobody_can_count_are_estimated(client: anthropic.AsyncAnthropic) -> None:
    estimated = await client.messages.with_raw_response.count_tokens(model="up", messages=HELLO)
    assert estimated.headers["x-headrace-tokens-estimated"] == "true"
    assert (await estimated.parse()).input_tokens > 0
    counted = await client.messages.with_raw_response.count_tokens(model="sim", messages=HELLO)
    assert "x-headrace-tokens-estimated" not in counted.headers


async def test_the_tokens_of_an_image_that_the_model_does_not_take_are_not_counted(
    client: anthropic.AsyncAnthropic,
) -> None:
    image: Any = {"type": "image", "source": {"type": "url", "url": "https://example.com/mill.png"}}
    messages: Any = [{"role": "user", "content": [image, {"type": "text", "text": "A mill?"}]}]
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.content\[0\]"):
        await client.messages.count_tokens(model="sim", messages=messages)


async def test_tokens_are_counted_with_tools_and_calls(client: anthropic.AsyncAnthropic) -> None:
    messages: Any = [
        *HELLO,
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "It asks for a level.", "signature": "s"},
            {"type": "tool_use", "id": "call_1", "name": "level", "input": {"river": "Mill"}},
        ]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": "2 m"}]},
    ]  # fmt: skip
    params: Any = {"model": "sim", "messages": messages, "tools": [TOOL, GATE], "tool_choice": {"type": "auto"}}
    counted = await client.messages.count_tokens(**params)
    message = await client.messages.create(max_tokens=1, **params)
    assert counted.input_tokens == message.usage.input_tokens


async def test_a_message_is_a_job(client: anthropic.AsyncAnthropic, http: httpx.AsyncClient) -> None:
    response = await client.messages.with_raw_response.create(
        model="sim", max_tokens=5, messages=HELLO, metadata={"user_id": "miller"}
    )
    job = (await http.get(f"/v1/jobs/{response.headers['x-headrace-job-id']}")).json()
    assert job["status"] == "incomplete"
    assert job["metadata"] == {"user_id": "miller"}
    assert response.headers["request-id"] == response.headers["x-request-id"]


async def test_errors_raise_the_sdks_exceptions(client: anthropic.AsyncAnthropic, stack: Stack) -> None:
    async def kind(expected: type[anthropic.APIStatusError], words: str, **changes: Any) -> str:
        params: Any = {"model": "sim", "max_tokens": 5, "messages": HELLO, **changes}
        with pytest.raises(expected, match=words) as raised:
            await client.messages.create(**params)
        body: Any = raised.value.body
        assert body["type"] == "error"
        assert set(body["error"]) == {"type", "message"}
        return str(body["error"]["type"])

    bad, failed = anthropic.BadRequestError, anthropic.InternalServerError
    assert await kind(anthropic.NotFoundError, "gpt-4", model="gpt-4") == "not_found_error"
    assert await kind(bad, "max_tokens", max_tokens=0) == "invalid_request_error"
    assert await kind(bad, r"messages\[0\]\.content\[1\]\.text: ", messages=[
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text"}]}
    ]) == "invalid_request_error"  # fmt: skip
    assert await kind(bad, r"messages\[0\]\.content\[0\]: the model `sim` does not support images", messages=[
        {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "https://x"}}]}
    ]) == "invalid_request_error"  # fmt: skip
    assert await kind(bad, "context is 4096", max_tokens=CONTEXT + 1) == "invalid_request_error"
    assert await kind(failed, "configured to fail", messages=[{"role": "user", "content": FAIL}]) == "api_error"
    too_long: Any = [{"role": "user", "content": "x" * (5 << 20)}]
    assert await kind(anthropic.ContentTooLargeError, "larger", messages=too_long) == "request_too_large"
    async with anthropic.AsyncAnthropic(base_url=stack.url, api_key="hr_wrong", max_retries=0) as unauthorized_client:
        with pytest.raises(anthropic.AuthenticationError) as unauthorized:
            await unauthorized_client.messages.create(model="sim", max_tokens=5, messages=HELLO)
    body: Any = unauthorized.value.body
    assert body["error"]["type"] == "authentication_error"


async def test_a_failure_ends_a_stream_with_an_error(client: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.APIStatusError, match="configured to fail"):
        async with client.messages.stream(
            model="sim", max_tokens=5, messages=[{"role": "user", "content": FAIL}]
        ) as stream:
            await stream.get_final_message()


async def test_a_disconnect_cancels_the_job(client: anthropic.AsyncAnthropic, http: httpx.AsyncClient) -> None:
    stream = await client.messages.create(model="sim", max_tokens=3000, messages=HELLO, stream=True)
    job_id = stream.response.headers["x-headrace-job-id"]
    async for event in stream:
        if event.type == "content_block_delta":
            break
    await stream.close()
    assert (await wait_for_end(http, job_id))["status"] == "cancelled"


async def test_a_stream_continues_after_its_worker_is_killed(
    client: anthropic.AsyncAnthropic, http: httpx.AsyncClient, stack: Stack
) -> None:
    params: Any = {"model": "sim", "max_tokens": 600, "messages": HELLO}
    complete = await client.messages.create(**params)
    (worker,) = stack.workers("sim")
    kinds = []
    async with client.messages.stream(**params) as stream:
        job_id = stream.response.headers["x-headrace-job-id"]
        async for event in stream:
            kinds.append(event.type)
            if kinds.count("content_block_delta") == 5 and worker in stack.processes:
                stack.kill(worker)
                await asyncio.to_thread(stack.start_worker, "sim")
        final = await stream.get_final_message()
    assert contents(final) == contents(complete)
    assert final.usage.output_tokens == 600
    assert (kinds.count("message_start"), kinds.count("content_block_start")) == (1, 1)
    done = await wait_for_end(http, job_id)
    assert [attempt["outcome"] for attempt in done["attempts"]] == ["worker_lost", "incomplete"]


async def test_a_message_from_vllm(vllm_stack: Stack) -> None:
    async with anthropic.AsyncAnthropic(base_url=vllm_stack.url, api_key=KEY, max_retries=0) as client:
        params: Any = {
            "model": "smollm2",
            "max_tokens": 24,
            "extra_body": {"temperature": 0},
            "system": "Answer in one word.",
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
        }
        complete = await client.messages.create(**params)
        async with client.messages.stream(**params) as stream:
            streamed = await stream.get_final_message()
        assert complete.content[0].type == "text"
        assert "Paris" in complete.content[0].text
        assert contents(streamed) == contents(complete)
        assert streamed.stop_reason == complete.stop_reason
        counted = await client.messages.count_tokens(
            model="smollm2", system=params["system"], messages=params["messages"]
        )
        usage = complete.usage
        assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
        # Only the worker renders a message to continue.
        continued = [*params["messages"], {"role": "assistant", "content": "The capital is"}]
        by_worker = await client.messages.count_tokens(model="smollm2", messages=continued)
        usage = (await client.messages.create(model="smollm2", max_tokens=1, messages=continued)).usage
        assert by_worker.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
        async with vllm_stack.client() as http:
            page = await http.get("/v1/jobs", params={"limit": 2})
        assert [job["usage"]["completion_tokens"] > 1 for job in page.json()["data"]] == [False, True], (
            "the job that counted has been deleted"
        )
