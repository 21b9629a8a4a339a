"""Messages requests are converted as by vLLM's Anthropic endpoint."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from api.anthropic.requests import conversation, generate_request
from api.anthropic.schemas import CountTokensRequest, MessagesRequest
from shared.domain.errors import InvalidRequest
from tests.support.members import read

USER = {"role": "user", "content": "How high is the water?"}
TOOL = {
    "name": "level",
    "description": "The level of a river.",
    "input_schema": {"type": "object", "properties": {"river": {"type": "string"}}, "required": ["river"]},
}
OTHER = {"name": "gate-1", "input_schema": {"properties": {}}}
CALLED: list[dict[str, Any]] = [
    USER,
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "It asks for a level.", "signature": "s"},
            {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "call_1", "name": "level", "input": {"river": "Mühlbach", "at": [1, 2.5, None]}},
            {"type": "tool_use", "id": "call_2", "name": "gate-1", "input": {}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "call_1", "content": "two metres"},
            {
                "type": "tool_result",
                "tool_use_id": "call_2",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                "is_error": True,
            },
            {"type": "text", "text": "And now?"},
        ],
    },
]
REQUESTS: dict[str, dict[str, Any]] = {
    "a text": {"messages": [USER]},
    "blocks": {"messages": [{"role": "user", "content": [{"type": "text", "text": "How high is it?"}]}]},
    "many blocks": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    },
    "a system text": {"messages": [USER], "system": "You are a miller."},
    "system blocks": {
        "messages": [USER],
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: h"},
            {"type": "text", "text": "You are a miller. ", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "Be short."},
        ],
    },
    "a system message": {"messages": [USER, {"role": "system", "content": "Be short."}, USER]},
    "an empty system": {"messages": [USER], "system": ""},
    "several messages": {"messages": [USER, {"role": "assistant", "content": "High."}, USER]},
    "sampling": {
        "messages": [USER],
        "stop_sequences": ["\n\n", "END"],
        "temperature": 0.5,
        "top_k": 5,
        "top_p": 0.9,
    },
    "greedy": {"messages": [USER], "temperature": 0},
    "tools": {"messages": [USER], "tools": [TOOL, OTHER]},
    "strict tools": {"messages": [USER], "tools": [{**TOOL, "strict": True}]},
    "auto": {"messages": [USER], "tools": [TOOL], "tool_choice": {"type": "auto"}},
    "no parallel calls": {
        "messages": [USER],
        "tools": [TOOL],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    },
    "any": {"messages": [USER], "tools": [TOOL], "tool_choice": {"type": "any"}},
    "one tool": {"messages": [USER], "tools": [TOOL, OTHER], "tool_choice": {"type": "tool", "name": "level"}},
    "no tool": {"messages": [USER], "tools": [TOOL], "tool_choice": {"type": "none"}},
    "tool results": {"messages": CALLED, "tools": [TOOL, OTHER]},
    "tool results only": {
        "messages": [*CALLED[:2], {"role": "user", "content": CALLED[2]["content"][:2]}],
        "tools": [TOOL, OTHER],
    },
    "thinking": {"messages": [USER], "thinking": {"type": "enabled", "budget_tokens": 2048}},
    "thinking disabled": {"messages": [USER], "thinking": {"type": "disabled"}},
    "adaptive thinking": {"messages": [USER], "thinking": {"type": "adaptive"}},
    "effort": {"messages": [USER], "thinking": {"type": "adaptive"}, "output_config": {"effort": "xhigh"}},
    "effort with thinking disabled": {
        "messages": [USER],
        "thinking": {"type": "disabled"},
        "output_config": {"effort": "high"},
    },
    "a schema": {
        "messages": [USER],
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
    },
}


def converted(request: dict[str, Any]) -> dict[str, Any]:
    """Our engine request, with OpenAI's parameter names."""
    engine_request = generate_request(read(MessagesRequest, request))
    assert engine_request.messages is not None
    assert engine_request.chat is not None
    choice = engine_request.chat.tool_choice
    return {
        "messages": [message.model_dump(exclude_none=True) for message in engine_request.messages],
        "tools": [tool.model_dump(exclude_none=True) for tool in engine_request.chat.tools or ()],
        "tool_choice": {"type": "function", "function": choice} if isinstance(choice, dict) else choice,
        "parallel_tool_calls": engine_request.chat.parallel_tool_calls,
        "reasoning_effort": engine_request.chat.reasoning_effort,
        "json_schema": engine_request.structured_outputs.json_schema if engine_request.structured_outputs else None,
        "sampling": engine_request.sampling.model_dump(exclude_unset=True),
    }


def converted_by_vllm(request: dict[str, Any]) -> dict[str, Any]:
    """vLLM's request in the same form. Text parts of a message are joined as by its renderer."""
    protocol = pytest.importorskip("vllm.entrypoints.anthropic.protocol")
    serving = pytest.importorskip("vllm.entrypoints.anthropic.serving")
    chat = serving.AnthropicServingMessages.to_chat_completion_request(
        protocol.AnthropicMessagesRequest.model_validate(request)
    )
    engine_request = chat.model_dump(exclude_none=True)
    messages = []
    for message in engine_request["messages"]:
        message = {name: list(value) if name == "tool_calls" else value for name, value in message.items()}
        if isinstance(message.get("content"), list):
            message["content"] = "\n".join(part["text"] for part in message["content"])
        messages.append(message)
    sampling = {
        "max_tokens": engine_request["max_tokens"],
        "stop": engine_request.get("stop"),
        **{name: engine_request.get(name) for name in ("temperature", "top_k", "top_p", "thinking_token_budget")},
    }
    schema = engine_request.get("response_format", {}).get("json_schema", {})
    return {
        "messages": messages,
        "tools": engine_request.get("tools", []),
        "tool_choice": engine_request.get("tool_choice"),
        "parallel_tool_calls": engine_request.get("parallel_tool_calls", True),
        "reasoning_effort": engine_request.get("reasoning_effort"),
        "json_schema": schema.get("schema", schema.get("json_schema")),
        "sampling": {name: value for name, value in sampling.items() if value not in (None, [])},
    }


def normalized(request: dict[str, Any]) -> dict[str, Any]:
    """Parse the arguments of calls, so that JSON formatting is ignored."""
    import json

    for message in request["messages"]:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return request


@pytest.mark.vllm
@pytest.mark.parametrize("name", REQUESTS)
def test_requests_are_converted_as_by_vllm(name: str) -> None:
    request = {"model": "m", "max_tokens": 4096, **REQUESTS[name]}
    assert normalized(converted(request)) == normalized(converted_by_vllm(request))


def test_a_final_assistant_message_is_continued() -> None:
    """Unlike vLLM's endpoint, which starts a new message."""
    engine_request = generate_request(
        read(
            MessagesRequest,
            {"model": "m", "max_tokens": 5, "messages": [USER, {"role": "assistant", "content": "It is ("}]},
        )
    )
    assert engine_request.chat is not None
    assert (engine_request.chat.continue_final_message, engine_request.chat.add_generation_prompt) == (True, False)


def test_references_to_tools_are_texts_and_calls_may_have_no_input() -> None:
    """As Claude Code sends them with `ENABLE_TOOL_SEARCH`."""
    found = {"type": "tool_reference", "tool_name": "WebFetch"}
    messages = [
        USER,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "ToolSearch"}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": [found]}]},
    ]
    body = read(CountTokensRequest, {"model": "m", "messages": messages})
    _, call, result = conversation(body).messages or []
    assert call.tool_calls is not None
    assert call.tool_calls[0].function.arguments == "{}"
    assert result.content == "Tool WebFetch is available."


def test_empty_messages_are_rejected() -> None:
    body = read(CountTokensRequest, {"model": "m", "messages": [{"role": "user", "content": ""}]})
    with pytest.raises(InvalidRequest, match="all messages are empty"):
        conversation(body)


IMAGE = {"type": "image", "source": {"type": "url", "url": "https://a.b/c.png"}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tool_choice": {"type": "tool", "name": "x"}, "tools": [TOOL]}, "'x', which is not in tools"),
        ({"tool_choice": {"type": "any"}}, "requires tools"),
        ({"tool_choice": {"type": "tool"}, "tools": [TOOL]}, "required with type `tool`"),
        ({"tools": [TOOL, TOOL]}, "must be unique"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "custom"),
        ({"thinking": {"type": "enabled"}}, "budget_tokens is required"),
        ({"thinking": {"type": "enabled", "budget_tokens": 4096}}, "less than max_tokens=4096, got 4096"),
        ({"messages": [USER, CALLED[1]]}, "tool_result"),
        ({"messages": [{"role": "user", "content": CALLED[1]["content"]}]}, "not allowed in a message of role user"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
            "must be a block whose type is one of text,",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "source"),
        (
            {"messages": [{"role": "assistant", "content": [IMAGE]}]},
            "image block is not allowed in a message of role assistant",
        ),
    ],
)
def test_invalid_requests_are_rejected(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        read(MessagesRequest, {"model": "m", "max_tokens": 4096, "messages": [USER], **changes})
