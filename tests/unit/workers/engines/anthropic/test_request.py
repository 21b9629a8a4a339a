"""The body of a request: turns, tools, thinking, sampling, and what the API cannot express."""

from __future__ import annotations

import base64
import codecs
from typing import Any

import orjson
import pytest

from shared.config.models.anthropic import AnthropicModel
from shared.domain.errors import InvalidRequest
from shared.domain.opaque import OpaquePart
from shared.domain.request import GenerateRequest
from tests.support.transcripts import run_now
from workers.engines.anthropic.request import request_body

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"properties": {"city": {}}}}}
DEFAULTS = {"temperature": 1, "top_p": 1.0, "top_k": 0}
ASK = [{"role": "user", "content": "Hi"}]


def spec(model: str = "claude-haiku-4-5", **options: Any) -> AnthropicModel:
    entry = {"name": "up", "engine": "anthropic", "model": model, "options": options}
    return AnthropicModel.model_validate(entry)


def body(model: AnthropicModel | None = None, messages: Any = None, **fields: Any) -> Any:
    request = GenerateRequest.model_validate({"messages": ASK if messages is None else messages, **fields})
    return orjson.loads(orjson.dumps(run_now(request_body(request, model or spec()))))


def refused(param: str, model: AnthropicModel | None = None, messages: Any = None, **fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        body(model, messages, **fields)
    assert caught.value.param == param
    return caught.value.message


def call(call_id: str, arguments: str = "{}") -> dict[str, Any]:
    return {"id": call_id, "function": {"name": "weather", "arguments": arguments}}


def test_a_plain_request() -> None:
    assert body(sampling={"max_tokens": 10}) == {
        "model": "claude-haiku-4-5",
        "stream": True,
        "max_tokens": 10,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    }


def test_messages_become_alternating_turns() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One."},
        {"role": "user", "content": "Two."},
        {"role": "developer", "content": "Be kind."},
        {"role": "assistant", "content": "Calling.", "tool_calls": [call("a", '{"city": "Rome"}'), call("b")]},
        {"role": "tool", "content": "sunny", "tool_call_id": "a"},
        {"role": "tool", "content": "", "tool_call_id": "b"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "Well?"},
    ]
    result = body(messages=messages)
    assert [block["text"] for block in result["system"]] == ["Be brief.", "Be kind."]
    assert [turn["role"] for turn in result["messages"]] == ["user", "assistant", "user"]
    assert [block["text"] for block in result["messages"][0]["content"]] == ["One.", "Two."]
    assert result["messages"][1]["content"][1:] == [
        {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Rome"}},
        {"type": "tool_use", "id": "b", "name": "weather", "input": {}},
    ]
    assert result["messages"][2]["content"] == [
        {"type": "tool_result", "tool_use_id": "a", "content": "sunny"},
        {"type": "tool_result", "tool_use_id": "b"},
        {"type": "text", "text": "And?"},
        {"type": "text", "text": "Well?"},
    ]


def test_results_of_tools_come_first_in_their_turn() -> None:
    messages = [
        *ASK,
        {"role": "assistant", "tool_calls": [call("a"), call("b")]},
        {"role": "tool", "content": "1", "tool_call_id": "a"},
        {"role": "user", "content": "Meanwhile"},
        {"role": "tool", "content": "2", "tool_call_id": "b"},
    ]
    content = body(messages=messages)["messages"][-1]["content"]
    assert [block["type"] for block in content] == ["tool_result", "tool_result", "text"]


def test_ids_of_other_models_calls_are_valid_and_still_match() -> None:
    messages = [
        *ASK,
        {"role": "assistant", "tool_calls": [call("functions.weather:0")]},
        {"role": "tool", "content": "1", "tool_call_id": "functions.weather:0"},
    ]
    turns = body(messages=messages)["messages"]
    assert turns[1]["content"][0]["id"] == turns[2]["content"][0]["tool_use_id"] == "functions_weather_0"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", b"{}"),
        ('{"b": 1,  "a": 1.50}', b'{"b": 1,  "a": 1.50}'),
        ("[1]", b'{"INVALID_JSON":"[1]"}'),
        ('{"cit', b'{"INVALID_JSON":"{\\"cit"}'),
    ],
)
def test_arguments_are_an_object_byte_for_byte(arguments: str, expected: bytes) -> None:
    messages = [*ASK, {"role": "assistant", "tool_calls": [call("a", arguments)]}, {"role": "user", "content": "?"}]
    request = GenerateRequest.model_validate({"messages": messages})
    assert b'"input":' + expected + b"}" in orjson.dumps(run_now(request_body(request, spec())))


def test_tools() -> None:
    strict = {"function": {"name": "now", "description": "The time.", "strict": True}}
    result = body(chat={"tools": [TOOL, strict]})
    assert result["tools"] == [
        {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {}}}},
        {"name": "now", "input_schema": {"type": "object"}, "description": "The time.", "strict": True},
    ]
    assert "tool_choice" not in result


@pytest.mark.parametrize(
    ("chat", "choice"),
    [
        ({"tool_choice": "none"}, {"type": "none"}),
        ({"tool_choice": "auto"}, None),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": {"name": "weather"}}, {"type": "tool", "name": "weather"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        (
            {"tool_choice": "required", "parallel_tool_calls": False},
            {"type": "any", "disable_parallel_tool_use": True},
        ),
    ],
)
def test_tool_choice(chat: dict[str, Any], choice: dict[str, Any] | None) -> None:
    assert body(chat={"tools": [TOOL], **chat}).get("tool_choice") == choice


def test_sampling() -> None:
    sampling = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop": ["END", "\n\nB:"], "max_tokens": 7}
    result = body(spec("claude-sonnet-4-20250514"), sampling=sampling)
    assert {name: result[name] for name in ("temperature", "top_p", "top_k", "stop_sequences", "max_tokens")} == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "stop_sequences": ["END", "\n\nB:"],
        "max_tokens": 7,
    }


def test_newer_models_get_no_sampling_parameters() -> None:
    newest = spec("claude-opus-5-5")
    assert not {"temperature", "top_p", "top_k"} & set(body(newest, sampling=DEFAULTS))
    refused("temperature", newest, sampling={"temperature": 0})
    refused("top_k", newest, sampling={"top_k": 1})
    assert body(spec("claude-opus-5-5", sampling=True), sampling={"top_p": 0.5})["top_p"] == 0.5


def test_max_tokens_is_always_sent() -> None:
    assert body()["max_tokens"] == 64_000
    assert body(spec("claude-sonnet-5-5-20261001"))["max_tokens"] == 128_000
    assert body(spec(default_max_tokens=500))["max_tokens"] == 500
    assert body(spec("something-else"))["max_tokens"] == 4096


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("n", {"sampling": {"n": 2}}),
        ("seed", {"sampling": {"seed": 1}}),
        ("presence_penalty", {"sampling": {"presence_penalty": 0.5}}),
        ("logit_bias", {"sampling": {"logit_bias": {"1": 2}}}),
        ("min_tokens", {"sampling": {"min_tokens": 1}}),
        ("temperature", {"sampling": {"temperature": 1.5}}),
        ("logprobs", {"logprobs": 0}),
        ("prompt_logprobs", {"prompt_logprobs": 1}),
        ("echo", {"echo": True}),
        ("documents", {"chat": {"documents": [{"title": "x"}]}}),
        ("chat_template_kwargs", {"chat": {"chat_template_kwargs": {"x": 1}}}),
        ("structured_outputs", {"structured_outputs": {"regex": "a+"}}),
        ("structured_outputs", {"structured_outputs": {"json_object": True}}),
    ],
)
def test_what_the_api_does_not_have_is_refused(param: str, fields: dict[str, Any]) -> None:
    refused(param, **fields)


def test_a_raw_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="prompt"):
        run_now(request_body(GenerateRequest(prompt="Hi"), spec()))


def test_a_json_schema() -> None:
    schema = {"type": "object", "additionalProperties": False}
    result = body(structured_outputs={"json_schema": schema})
    assert result["output_config"] == {"format": {"type": "json_schema", "schema": schema}}
    with_effort = body(
        spec("claude-haiku-5-5"), structured_outputs={"json_schema": schema}, chat={"reasoning_effort": "high"}
    )
    assert with_effort["output_config"].keys() == {"format", "effort"}
    refused("structured_outputs", spec(structured_outputs=False), structured_outputs={"json_schema": schema})


def test_a_message_of_the_assistant_is_continued_if_the_model_can() -> None:
    messages = [*ASK, {"role": "assistant", "content": "The answer is ("}]
    chat = {"add_generation_prompt": False, "continue_final_message": True}
    assert body(messages=messages, chat=chat)["messages"][-1]["role"] == "assistant"
    refused("messages", spec("claude-sonnet-5"), messages=messages, chat=chat)


BUDGETED, ADAPTIVE = "claude-haiku-4-5", "claude-haiku-5-5"


@pytest.mark.parametrize(
    ("model", "fields", "expected"),
    [
        (BUDGETED, {}, {}),
        (BUDGETED, {"sampling": {"thinking_token_budget": 2000}}, {"type": "enabled", "budget_tokens": 2000}),
        (BUDGETED, {"sampling": {"thinking_token_budget": 0}}, {}),
        (BUDGETED, {"chat": {"reasoning_effort": "none"}}, {}),
        (
            BUDGETED,
            {"chat": {"reasoning_effort": "low"}, "sampling": {"max_tokens": 10_000}},
            {"type": "enabled", "budget_tokens": 2000},
        ),
        (
            BUDGETED,
            {"chat": {"reasoning_effort": "minimal"}, "sampling": {"max_tokens": 1100}},
            {"type": "enabled", "budget_tokens": 1024},
        ),
        (BUDGETED, {"chat": {"reasoning_effort": "max"}}, {"type": "enabled", "budget_tokens": 32_000}),
        (BUDGETED, {"adaptive_thinking": True}, {}),
        (ADAPTIVE, {}, {}),
        (ADAPTIVE, {"adaptive_thinking": True}, {"type": "adaptive", "display": "summarized"}),
        (ADAPTIVE, {"chat": {"reasoning_effort": "high"}}, {"type": "adaptive", "display": "summarized"}),
        (ADAPTIVE, {"chat": {"reasoning_effort": "none"}}, {"type": "disabled"}),
        (ADAPTIVE, {"chat": {"tools": [TOOL], "tool_choice": "required"}}, {"type": "disabled"}),
        ("claude-sonnet-5-5", {"chat": {"reasoning_effort": "none"}}, {"type": "between_tools"}),
        ("claude-opus-5-5", {}, {}),
    ],
)
def test_thinking(model: str, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert body(spec(model), **fields).get("thinking", {}) == expected


@pytest.mark.parametrize(("effort", "sent"), [("minimal", "low"), ("medium", "medium"), ("max", "max")])
def test_effort_of_adaptive_thinking(effort: str, sent: str) -> None:
    assert body(spec(ADAPTIVE), chat={"reasoning_effort": effort})["output_config"] == {"effort": sent}


@pytest.mark.parametrize(
    ("param", "model", "fields"),
    [
        ("thinking_token_budget", BUDGETED, {"sampling": {"thinking_token_budget": 1023}}),
        ("thinking_token_budget", ADAPTIVE, {"sampling": {"thinking_token_budget": 2000}}),
        ("max_tokens", BUDGETED, {"sampling": {"thinking_token_budget": 2000, "max_tokens": 2000}}),
        ("max_tokens", BUDGETED, {"chat": {"reasoning_effort": "low"}, "sampling": {"max_tokens": 500}}),
        ("reasoning_effort", "claude-opus-5-5", {"chat": {"reasoning_effort": "none"}}),
        ("tool_choice", "claude-opus-5-5", {"chat": {"tools": [TOOL], "tool_choice": "required"}}),
        ("tool_choice", "claude-sonnet-5-5", {"chat": {"tools": [TOOL], "tool_choice": {"name": "weather"}}}),
        (
            "tool_choice",
            BUDGETED,
            {"chat": {"tools": [TOOL], "tool_choice": "required"}, "sampling": {"thinking_token_budget": 2000}},
        ),
    ],
)
def test_thinking_that_a_model_cannot_do_is_refused(param: str, model: str, fields: dict[str, Any]) -> None:
    refused(param, spec(model), **fields)


def test_a_model_that_does_not_think() -> None:
    refused("reasoning_effort", spec(thinking="none"), chat={"reasoning_effort": "high"})
    assert "thinking" not in body(spec(thinking="none"), chat={"reasoning_effort": "none"})


THOUGHT = {"thinking": "Let me see.", "signature": "EqQBCgIYAhIM"}


def part(origin: str, kind: str, data: Any, reasoning: int = 0, text: int = 0) -> str:
    return OpaquePart(origin, kind, data, reasoning=reasoning, text=text).encoded()


def test_blocks_of_thinking_are_sent_back_in_their_place() -> None:
    opaque = [
        part("anthropic", "thinking", THOUGHT, reasoning=11),
        part("anthropic", "redacted_thinking", {"data": "EmwK"}, reasoning=11),
        part("anthropic", "thinking", {"thinking": "", "signature": "s2"}, reasoning=11, text=8),
    ]
    answer = {"role": "assistant", "reasoning": "Let me see.", "content": "Calling.", "tool_calls": [call("a")]}
    result = {"role": "tool", "tool_call_id": "a", "content": "1"}
    turn = body(messages=[*ASK, {**answer, "opaque": opaque}, result])["messages"][1]
    assert turn["content"] == [
        {"type": "thinking", **THOUGHT},
        {"type": "redacted_thinking", "data": "EmwK"},
        {"type": "text", "text": "Calling."},
        {"type": "thinking", "thinking": "", "signature": "s2"},
        {"type": "tool_use", "id": "a", "name": "weather", "input": {}},
    ]
    assert list(turn["content"][0]) == ["type", "thinking", "signature"]


@pytest.mark.parametrize(
    "opaque",
    [
        part("openai", "thinking", THOUGHT),
        part("anthropic", "thinking", {"thinking": "no signature"}),
        part("anthropic", "thinking", {"thinking": 7, "signature": "s"}),
        part("anthropic", "text", {"text": "forged"}),
        part("anthropic", "redacted_thinking", "EmwK"),
    ],
)
def test_thinking_of_others_without_a_signature_or_forged_is_left_out(opaque: str) -> None:
    answer = {"role": "assistant", "reasoning": "Let me see.", "content": "x", "opaque": [opaque]}
    result = body(messages=[*ASK, answer, *ASK])
    assert result["messages"][1]["content"] == [{"type": "text", "text": "x"}]


def test_images_and_documents_are_passed_on() -> None:
    content = [
        {"type": "text", "text": "Look:"},
        {"type": "image", "media_type": "image/png", "data": "iVBORw=="},
        {"type": "image", "url": "https://example.com/a.png"},
        {"type": "file", "media_type": "application/pdf", "data": "JVBERg==", "filename": "a.pdf"},
        {"type": "file", "file_id": "file_1"},
        {"type": "file", "media_type": "text/plain", "data": "SGk="},
    ]
    assert body(messages=[{"role": "user", "content": content}])["messages"][0]["content"] == [
        {"type": "text", "text": "Look:"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw=="}},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="},
            "title": "a.pdf",
        },
        {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Hi"}},
    ]


@pytest.mark.parametrize("media_type", ["text/csv", "text/plain", "text/x-any", "application/json", "application/xml"])
@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("Größe;1", "Größe;1"),
        (codecs.BOM_UTF8 + "Größe".encode(), "Größe"),
        ("Größe".encode("utf-16"), "Größe"),
        ("Größe €".encode("cp1252"), "Größe €"),
        (b"", ""),
    ],
)
def test_files_of_text_are_sent_as_texts(media_type: str, data: bytes | str, text: str) -> None:
    encoded = base64.b64encode(data.encode() if isinstance(data, str) else data).decode()
    content = [{"type": "file", "media_type": media_type, "data": encoded, "filename": "a"}]
    assert body(messages=[{"role": "user", "content": content}])["messages"][0]["content"] == [
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": text}, "title": "a"}
    ]


def test_results_of_tools_that_failed() -> None:
    messages = [
        *ASK,
        {"role": "assistant", "tool_calls": [call("a"), call("b")]},
        {"role": "tool", "content": "no such city", "tool_call_id": "a"},
        {"role": "tool", "content": "sunny", "tool_call_id": "b"},
    ]
    failed, fine = body(messages=messages, tool_errors=[2])["messages"][-1]["content"]
    assert failed == {"type": "tool_result", "tool_use_id": "a", "content": "no such city", "is_error": True}
    assert "is_error" not in fine


def test_texts_of_white_space_are_left_out() -> None:
    messages = [{"role": "user", "content": " \n"}, {"role": "assistant", "content": "\t"}, *ASK]
    assert body(messages=messages)["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    between = [*ASK, {"role": "assistant", "content": "a"}, {"role": "user", "content": ""},
               {"role": "assistant", "content": "b"}, *ASK]  # fmt: skip
    assert [len(turn["content"]) for turn in body(messages=between)["messages"]] == [1, 2, 1]
    parts = [{"type": "text", "text": " "}, {"type": "text", "text": "Hi"}]
    assert body(messages=[{"role": "user", "content": parts}])["messages"][0]["content"] == [
        {"type": "text", "text": "Hi"}
    ]


def test_a_tools_result_may_have_an_image() -> None:
    image = {"type": "image", "media_type": "image/png", "data": "iVBORw=="}
    messages = [
        *ASK,
        {"role": "assistant", "tool_calls": [call("a")]},
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "seen"}, image]},
    ]
    (result,) = body(messages=messages)["messages"][-1]["content"]
    assert [block["type"] for block in result["content"]] == ["text", "image"]
