"""Conversion of OpenAI requests to engine requests. Invalid requests are tested in tests/e2e/test_bad_input.py."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from api.jobs.schemas import JobCreate
from api.openai.schemas import ChatCompletionRequest, CompletionRequest
from shared.domain.request import (
    ChatOptions,
    FunctionCall,
    GenerateRequest,
    Message,
    MessageToolCall,
    StructuredOutputs,
)
from tests.support.members import read

MESSAGES: Any = [{"role": "user", "content": "the mill"}]
TOOL: Any = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


def chat(**body: Any) -> GenerateRequest:
    (request,) = read(ChatCompletionRequest, {"model": "m", "messages": MESSAGES, **body}).generate_requests()
    return request


def completions(**body: Any) -> list[GenerateRequest]:
    return read(CompletionRequest, {"model": "m", "prompt": "x", **body}).generate_requests()


def test_a_plain_chat_uses_the_defaults() -> None:
    assert chat(max_tokens=None, tools=None).model_dump(exclude_defaults=True, exclude={"messages", "sampling"}) == {
        "priority": 3
    }


def test_tools_and_tool_choice() -> None:
    named = {"type": "function", "function": {"name": "look_up"}}
    request = chat(tools=[TOOL], tool_choice=named, parallel_tool_calls=False)
    assert request.chat is not None
    assert request.chat.tool_choice == {"name": "look_up"}
    assert not request.chat.parallel_tool_calls
    default = chat(tools=[TOOL]).chat
    assert default is not None
    assert default.tool_choice is None


def test_template_options() -> None:
    options: dict[str, Any] = {
        "reasoning_effort": "high",
        "include_reasoning": False,
        "add_generation_prompt": False,
        "continue_final_message": True,
        "add_special_tokens": True,
        "chat_template_kwargs": {"enable_thinking": True},
        "documents": [{"title": "a", "text": "b"}],
    }
    assert chat(**options).chat == ChatOptions(**options)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
            {"json_schema": {"type": "object"}},
        ),
        (
            {"response_format": {"type": "structural_tag", "format": {"type": "json_schema"}}},
            {"structural_tag": '{"type":"structural_tag","format":{"type":"json_schema"}}'},
        ),
        ({"structured_outputs": {"json": {"type": "object"}}}, {"json_schema": {"type": "object"}}),
        ({"structured_outputs": {"json": '{"type": "object"}'}}, {"json_schema": {"type": "object"}}),
        ({"structured_outputs": {"regex": "a+", "json_object": False}}, {"regex": "a+"}),
        ({"structured_outputs": {"choice": ["a"]}, "response_format": {"type": "text"}}, {"choice": ["a"]}),
    ],
)
def test_structured_outputs(body: dict[str, Any], expected: dict[str, Any] | None) -> None:
    structured = None if expected is None else StructuredOutputs(**expected)
    assert chat(**body).structured_outputs == structured
    assert completions(**body)[0].structured_outputs == structured
    job = read(JobCreate, {"model": "m", "prompt": "x", **body})
    assert job.generate_request().structured_outputs == structured


def test_logprobs() -> None:
    assert [chat(**body).logprobs for body in ({}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 2})] == [
        None,
        0,
        2,
    ]
    assert completions(logprobs=0)[0].logprobs == 0


def test_response_messages_are_accepted_unchanged() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    history = [
        {"role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None, "tool_calls": [call]},
        {
            "role": "tool",
            "tool_call_id": "c",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
        {"role": "assistant", "content": "x", "reasoning_content": "y", "tool_calls": []},
    ]
    assert chat(messages=[*MESSAGES, *history]).messages == [
        Message(role="user", content="the mill"),
        Message(
            role="assistant",
            tool_calls=[MessageToolCall(id="c", function=FunctionCall(name="f", arguments="{}"))],
        ),
        Message(role="tool", tool_call_id="c", content="a\nb"),
        Message(role="assistant", content="x", reasoning="y"),
    ]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("x", ["x"]),
        ([1, 2], [[1, 2]]),
        (["x", "y"], ["x", "y"]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_prompts(prompt: Any, prompts: list[Any]) -> None:
    assert [request.prompt for request in completions(prompt=prompt)] == prompts


def test_echo() -> None:
    (request,) = completions(echo=True, logprobs=1, max_tokens=0)
    assert (request.echo, request.prompt_only, request.sampling.max_tokens) == (True, True, 1)
    assert request.prompt_logprobs == 1, "as in vLLM"
    assert completions(echo=True, logprobs=1, stream=True)[0].prompt_logprobs is None
    with pytest.raises(ValidationError, match="at least 1"):
        completions(max_tokens=0)


def test_token_counts_are_requested_for_continuous_usage() -> None:
    def counted(**options: Any) -> bool:
        return chat(stream=True, stream_options=options).token_counts

    assert counted(include_usage=True, continuous_usage_stats=True)
    assert not counted(include_usage=True)
    assert not counted(continuous_usage_stats=True)
