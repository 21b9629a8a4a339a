"""Messages of earlier turns, in the forms in which clients send them back."""

from __future__ import annotations

from typing import Any

import pytest

from api.openai.schemas import ChatCompletionRequest
from shared.domain.request import Message
from tests.support.members import read


def messages(*given: dict[str, Any]) -> list[Message]:
    """The messages that an engine gets."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}, *given]}
    (request,) = read(ChatCompletionRequest, body).generate_requests()
    return (request.messages or [])[1:]


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ({"arguments": {"path": "/ä", "n": [1, None]}}, '{"path":"/ä","n":[1,null]}'),
        ({"arguments": ""}, "{}"),
        ({"arguments": " \n"}, "{}"),
        ({"arguments": None}, "{}"),
        ({"arguments": {}}, "{}"),
        ({"arguments": []}, "{}"),
        ({}, "{}"),
        ({"arguments": '{"a": 1}'}, '{"a": 1}'),
        ({"arguments": '{"a": '}, '{"a": '),
    ],
)
def test_arguments_of_earlier_calls_are_json_texts(function: dict[str, Any], text: str) -> None:
    call = {"id": "c", "type": "function", "index": 0, "function": {"name": "f", **function}}
    (message,) = messages({"role": "assistant", "content": None, "tool_calls": [call]})
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.arguments == text


@pytest.mark.parametrize("result", [{"content": None}, {"content": []}, {"content": ""}, {}])
def test_a_result_of_nothing_is_an_empty_message(result: dict[str, Any]) -> None:
    assert messages({"role": "tool", "tool_call_id": "c", **result}) == [
        Message(role="tool", tool_call_id="c", content="")
    ]


def test_parts_of_all_of_openais_apis_are_texts() -> None:
    content = [{"type": "input_text", "text": "a"}, {"text": "b"}, {"type": "text", "text": "d"}]
    refusal = [{"type": "refusal", "refusal": "e"}, {"type": "output_text", "text": "f", "annotations": [{}]}]
    given = messages({"role": "user", "content": content}, {"role": "assistant", "content": refusal})
    assert [message.content for message in given] == ["a\nb\nd", "e\nf"]
