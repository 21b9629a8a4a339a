"""OpenAI's clients and LangChain with the simulated engine: tools, structured outputs, reasoning, logprobs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr, TypeAdapter

from api.openai.schemas import ChatCompletion, Completion
from tests.e2e.conftest import FAIL
from tests.e2e.test_jobs import wait_for_end
from tests.support.sse import follow
from tests.support.stack import KEY, Stack
from tests.support.waiting import eventually

QUESTION: Any = [{"role": "user", "content": "How is the weather at the mill?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "unit": {"enum": ["celsius", "kelvin"]}},
            "required": ["place", "unit"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
LEVEL: Any = {"type": "function", "function": {"name": "water_level", "parameters": {"type": "object"}}}


class Mill(BaseModel):
    """The type of a parsed answer."""

    name: str
    wheels: int
    kind: Literal["overshot", "undershot"]


@pytest.fixture
async def client(sim_stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{sim_stack.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def sync_client(sim_stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{sim_stack.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


class TestTools:
    @pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "get_weather"}}])
    def test_a_tool_call_and_its_result(self, sync_client: openai.OpenAI, choice: Any) -> None:
        params: Any = {"model": "sim", "tools": [WEATHER], "tool_choice": choice, "max_tokens": 64}
        first = sync_client.chat.completions.create(messages=QUESTION, **params).choices[0]
        assert first.finish_reason == "tool_calls"
        assert first.message.content is None
        assert first.message.tool_calls is not None
        (call,) = first.message.tool_calls
        assert call.type == "function"
        assert call.function.name == "get_weather"
        arguments = json.loads(call.function.arguments)
        assert arguments.keys() == {"place", "unit"}
        # The message is sent back unchanged, including nulls.
        turns = [*QUESTION, first.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
        second = sync_client.chat.completions.create(messages=turns, **(params | {"tool_choice": "auto"}))
        assert second.choices[0].message.content
        assert second.choices[0].message.tool_calls is None

    async def test_streamed_calls_equal_the_complete_answer(self, client: openai.AsyncOpenAI) -> None:
        params: Any = {"model": "sim", "messages": QUESTION, "tools": [WEATHER, LEVEL], "tool_choice": "required"}
        complete = await client.chat.completions.create(**params)
        async with client.chat.completions.stream(**params) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_completion()
        expected = complete.choices[0].message.tool_calls
        assert expected is not None
        assert [call.function.name for call in expected if call.type == "function"] == ["get_weather", "water_level"]
        streamed = final.choices[0].message.tool_calls
        assert streamed is not None
        assert [call.model_dump(exclude={"index": True, "function": {"parsed_arguments"}}) for call in streamed] == [
            call.model_dump() for call in expected
        ]
        assert final.choices[0].finish_reason == "tool_calls"
        done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
        assert [event.name for event in done] == ["get_weather", "water_level"]
        assert len([event for event in events if event.type == "tool_calls.function.arguments.delta"]) > 2

    async def test_streamed_calls_have_vllms_format(self, client: openai.AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(model="sim", messages=QUESTION, tools=[WEATHER], stream=True)
        fragments = [
            call.model_dump(exclude_unset=True)
            async for chunk in stream
            for choice in chunk.choices
            for call in choice.delta.tool_calls or ()
        ]
        first, *rest = fragments
        assert first.keys() == {"index", "id", "type", "function"}
        assert (first["index"], first["type"], first["function"]["name"]) == (0, "function", "get_weather")
        assert rest
        assert all(fragment.keys() == {"index", "function"} for fragment in rest)
        assert all(fragment["function"].keys() == {"arguments"} for fragment in rest)

    async def test_tool_choice_none_calls_no_tool(self, client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(
            model="sim", messages=QUESTION, tools=[WEATHER], tool_choice="none", max_tokens=5
        )
        assert answer.choices[0].message.tool_calls is None
        assert answer.choices[0].finish_reason == "length"


class TestStructuredOutputs:
    def test_parse(self, sync_client: openai.OpenAI) -> None:
        answer = sync_client.chat.completions.parse(model="sim", messages=QUESTION, response_format=Mill)
        assert answer.choices[0].finish_reason == "stop"
        assert isinstance(answer.choices[0].message.parsed, Mill)

    async def test_streamed_parse(self, client: openai.AsyncOpenAI) -> None:
        async with client.chat.completions.stream(model="sim", messages=QUESTION, response_format=Mill) as stream:
            final = await stream.get_final_completion()
        assert isinstance(final.choices[0].message.parsed, Mill)

    @pytest.mark.parametrize(
        ("params", "text"),
        [
            ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes"),
            ({"structured_outputs": {"json": '{"type": "object"}'}}, "{}"),
            ({"structured_outputs": {"json_object": True}}, "{}"),
            ({"response_format": {"type": "json_object"}}, "{}"),
        ],
    )
    async def test_vllms_and_openais_parameters(self, client: openai.AsyncOpenAI, params: Any, text: str) -> None:
        chat = await client.chat.completions.create(model="sim", messages=QUESTION, extra_body=params)
        assert chat.choices[0].message.content == text
        plain = await client.completions.create(model="sim", prompt="the mill", extra_body=params)
        assert (plain.choices[0].text, plain.choices[0].finish_reason) == (text, "stop")


class TestChat:
    async def test_reasoning(self, client: openai.AsyncOpenAI) -> None:
        params: Any = {"model": "sim", "messages": QUESTION, "reasoning_effort": "low", "max_tokens": 20}
        complete = (await client.chat.completions.create(**params)).choices[0].message.model_dump()
        assert complete["reasoning"]
        assert complete["content"]
        stream = await client.chat.completions.create(**params, stream=True)
        deltas = [chunk.choices[0].delta.model_dump() async for chunk in stream]
        assert "".join(delta.get("reasoning") or "" for delta in deltas) == complete["reasoning"]
        assert "".join(delta["content"] or "" for delta in deltas) == complete["content"]

    async def test_logprobs(self, client: openai.AsyncOpenAI) -> None:
        params: Any = {"model": "sim", "messages": QUESTION, "logprobs": True, "top_logprobs": 3, "max_tokens": 10}
        complete = (await client.chat.completions.create(**params)).choices[0].logprobs
        assert complete is not None
        assert complete.content is not None
        assert len(complete.content) == 10
        assert all(len(token.top_logprobs) == 3 for token in complete.content)
        stream = await client.chat.completions.create(**params, stream=True)
        streamed = [
            token
            async for chunk in stream
            if chunk.choices[0].logprobs is not None
            for token in chunk.choices[0].logprobs.content or ()
        ]
        assert streamed == complete.content

    async def test_usage_with_every_chunk(self, client: openai.AsyncOpenAI) -> None:
        options: Any = {"include_usage": True, "continuous_usage_stats": True}
        stream = await client.chat.completions.create(
            model="sim", messages=QUESTION, max_tokens=12, stream=True, stream_options=options
        )
        usages = [chunk.usage async for chunk in stream]
        known = [usage for usage in usages if usage is not None]
        assert len(known) == len(usages)
        assert {usage.prompt_tokens for usage in known} == {known[0].prompt_tokens}
        assert [usage.completion_tokens for usage in known] == sorted(usage.completion_tokens for usage in known)
        assert (known[0].completion_tokens, known[-1].completion_tokens) == (0, 12)

    async def test_answers_match_the_documented_schema(self, sim: httpx.AsyncClient) -> None:
        body: dict[str, Any] = {"model": "sim", "messages": QUESTION, "tools": [WEATHER], "logprobs": True}
        answer = (await sim.post("/v1/chat/completions", json=body)).json()
        # Members that are present only if a provider has data for them.
        optional: Any = {"reasoning_details": True, "tool_calls": {"__all__": {"extra_content"}}}
        absent: Any = {"choices": {"__all__": {"message": optional}}}
        assert ChatCompletion.model_validate(answer, strict=True).model_dump(exclude=absent) == answer
        assert answer["system_fingerprint"].startswith("fp_")
        body = {"model": "sim", "prompt": "the mill", "logprobs": 2, "echo": True, "max_tokens": 3}
        answer = (await sim.post("/v1/completions", json=body)).json()
        assert Completion.model_validate(answer, strict=True).model_dump() == answer


class TestCompletions:
    async def test_echo_and_logprobs(self, client: openai.AsyncOpenAI) -> None:
        params: Any = {"model": "sim", "prompt": "the old mill", "echo": True, "logprobs": 2, "max_tokens": 4}
        complete = (await client.completions.create(**params)).choices[0]
        assert complete.text.startswith("the old mill")
        logprobs = complete.logprobs
        assert logprobs is not None
        assert logprobs.tokens is not None
        assert logprobs.text_offset is not None
        assert logprobs.token_logprobs is not None
        assert logprobs.token_logprobs[0] is None
        assert "".join(logprobs.tokens) == complete.text
        starts = [0]
        for token in logprobs.tokens[:-1]:
            starts.append(starts[-1] + len(token))
        assert logprobs.text_offset == starts
        stream = await client.completions.create(**params, stream=True)
        chunks = [chunk.choices[0] async for chunk in stream]
        assert "".join(chunk.text for chunk in chunks) == complete.text
        for name in ("tokens", "text_offset", "token_logprobs", "top_logprobs"):
            parts = [getattr(chunk.logprobs, name) for chunk in chunks if chunk.logprobs is not None]
            assert [item for part in parts for item in part] == getattr(logprobs, name)

    async def test_several_prompts(self, client: openai.AsyncOpenAI) -> None:
        params: Any = {"model": "sim", "max_tokens": 6, "n": 2, "temperature": 1}
        prompts = ["the mill", "a river", "one stone"]
        separate = [await client.completions.create(prompt=prompt, **params) for prompt in prompts]
        together = await client.completions.create(prompt=prompts, **params)
        assert [choice.index for choice in together.choices] == list(range(6))
        assert [choice.text for choice in together.choices] == [one.text for each in separate for one in each.choices]
        assert together.usage is not None
        assert together.usage.completion_tokens == 36
        stream = await client.completions.create(
            prompt=prompts, stream=True, stream_options={"include_usage": True}, **params
        )
        texts = [""] * 6
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
            last = chunk
        assert texts == [choice.text for choice in together.choices]
        assert last.usage == together.usage

    async def test_one_invalid_prompt_rejects_all(self, client: openai.AsyncOpenAI, sim: httpx.AsyncClient) -> None:
        with pytest.raises(openai.BadRequestError) as rejected:
            await client.completions.create(model="small", prompt=["the mill", "x " * 9000], max_tokens=200)
        assert rejected.value.param == "prompt"
        page = (await sim.get("/v1/jobs", params={"model": "small", "limit": 1})).json()
        assert (await wait_for_end(sim, page["data"][0]["id"]))["status"] == "cancelled"

    async def test_a_failing_prompt_of_a_stream_cancels_the_others(
        self, client: openai.AsyncOpenAI, sim: httpx.AsyncClient
    ) -> None:
        stream = await client.completions.create(model="sim", prompt=["the mill", FAIL], max_tokens=3000, stream=True)
        with pytest.raises(openai.APIError):
            async for _ in stream:
                pass
        page = (await sim.get("/v1/jobs", params={"model": "sim", "limit": 2})).json()
        statuses = [(await wait_for_end(sim, job["id"]))["status"] for job in page["data"]]
        assert sorted(statuses) == ["cancelled", "failed"]

    async def test_with_an_idempotency_key_the_others_continue(
        self, client: openai.AsyncOpenAI, sim: httpx.AsyncClient
    ) -> None:
        stream = await client.completions.create(
            model="sim",
            prompt=["the mill", FAIL],
            max_tokens=300,
            stream=True,
            extra_headers={"Idempotency-Key": "one-of-two-fails"},
        )
        with pytest.raises(openai.APIError):
            async for _ in stream:
                pass
        page = (await sim.get("/v1/jobs", params={"model": "sim", "limit": 2})).json()
        statuses = [(await wait_for_end(sim, job["id"]))["status"] for job in page["data"]]
        assert sorted(statuses) == ["failed", "incomplete"]

    async def test_token_ids(self, client: openai.AsyncOpenAI) -> None:
        answer = await client.completions.create(model="sim", prompt=[[1, 2, 3], [4, 5]], max_tokens=4)
        assert len(answer.choices) == 2
        again = await client.completions.create(model="sim", prompt=[1, 2, 3], max_tokens=4)
        assert again.choices[0].text == answer.choices[0].text

    async def test_the_same_idempotency_key_returns_the_same_answer(self, client: openai.AsyncOpenAI) -> None:
        params: Any = {"model": "sim", "prompt": ["the mill", "a river"], "max_tokens": 4}
        headers = {"Idempotency-Key": "several-prompts"}
        first = await client.completions.create(**params, extra_headers=headers)
        again = await client.completions.create(**params, extra_headers=headers)
        assert again == first


class TestNativeJobs:
    async def test_jobs_support_the_fields_of_chat_completions(self, sim: httpx.AsyncClient) -> None:
        body: dict[str, Any] = {
            "model": "sim",
            "messages": QUESTION,
            "tools": [WEATHER],
            "reasoning_effort": "low",
            "logprobs": 1,
        }
        job = (await sim.post("/v1/jobs", json=body)).json()
        events = await follow(sim, job["id"])
        deltas = [item.data for item in events if item.event == "job.delta"]
        assert deltas[0]["prompt_tokens"] > 0
        (choice,) = (await wait_for_end(sim, job["id"]))["output"]
        assert choice["finish_reason"] == "tool_calls"
        assert "".join(delta.get("reasoning", "") for delta in deltas) == choice["reasoning"]
        calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
        assert calls[0]["name"] == choice["tool_calls"][0]["name"] == "get_weather"
        assert "".join(call["arguments"] for call in calls) == choice["tool_calls"][0]["arguments"]
        assert [entry for delta in deltas for entry in delta.get("logprobs", ())] == choice["logprobs"]


class TestBatches:
    async def test_lines_get_the_same_answers_as_calls(
        self, client: openai.AsyncOpenAI, sim: httpx.AsyncClient
    ) -> None:
        bodies: list[dict[str, Any]] = [
            {"tools": [WEATHER], "tool_choice": "required", "logprobs": True, "top_logprobs": 2},
            {"response_format": {"type": "json_object"}},
            {"reasoning_effort": "low", "max_tokens": 9},
        ]
        params = [{"model": "sim", "messages": QUESTION, **body} for body in bodies]
        lines = [
            json.dumps({"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body})
            for number, body in enumerate(params)
        ]
        file = await client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )

        async def output() -> str | None:
            return (await client.batches.retrieve(batch.id)).output_file_id

        content = (
            await client.files.content(await eventually(output, "the batch has an output file", within_s=60))
        ).text
        for line in map(json.loads, content.splitlines()):
            answer = (await sim.post("/v1/chat/completions", json=params[int(line["custom_id"])])).json()
            body = line["response"]["body"]
            assert {**body, "id": "", "created": 0} == {**answer, "id": "", "created": 0}
        assert len(content.splitlines()) == len(params)


class TestLangChain:
    @pytest.fixture
    def model(self, sim_stack: Stack) -> ChatOpenAI:
        return ChatOpenAI(model="sim", base_url=f"{sim_stack.url}/v1", api_key=SecretStr(KEY), max_retries=0)

    async def test_invoke_stream_and_tools(self, model: ChatOpenAI) -> None:
        @tool
        def get_weather(place: str) -> str:
            """The weather of a place."""
            return f"rain at {place}"

        message = await model.ainvoke("the mill")
        assert message.content
        pieces = [piece async for piece in model.astream("the mill")]
        assert "".join(TypeAdapter(str).validate_python(piece.content) for piece in pieces) == message.content
        with_tools = model.bind_tools([get_weather])
        calling = await with_tools.ainvoke([HumanMessage("the mill")])
        assert isinstance(calling, AIMessage)
        (call,) = calling.tool_calls
        assert (call["name"], list(call["args"])) == ("get_weather", ["place"])
        result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
        assert (await with_tools.ainvoke([HumanMessage("the mill"), calling, result])).content
        structured = await model.with_structured_output(Mill, method="json_schema").ainvoke("the mill")
        assert isinstance(structured, Mill)
